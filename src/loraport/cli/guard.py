"""From whatever a command raises to one message and one exit code."""

import contextlib
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import typer

from loraport.cli.console import Console
from loraport.cli.plain_help import Group
from loraport.cli.shells import taught
from loraport.cli.signals import ended_by_signals
from loraport.errors import FileError, Interrupted, LoraportError, UsageError, first_line, is_out_of_memory
from loraport.windows import page_file_is_full

try:
    from typer import TyperException as CommandLineError
except ImportError:  # before typer brought a click of its own
    from click import ClickException as CommandLineError  # type: ignore[assignment]  # it has what is used here

_UNREAD = 128 + 13
"""Exit code where the reader of the output went away: as of other programs, which SIGPIPE ends."""


class Commands(Group):
    """The top-level group: every way out of the program passes `main`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Options of the program itself."""
        return taught(super().get_params(ctx))

    def main(  # type: ignore[override]  # what typer takes besides is nothing, and nothing is swallowed here
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
    ) -> Any:
        """Run the command that `args` name, and exit with its code."""
        words = list(sys.argv[1:] if args is None else args)
        command = partial(super().main, args, prog_name, complete_var, False, windows_expand_args)
        sys.exit(guarded(command, as_json="--json" in words, verbose=_is_verbose(words), words=words))


def guarded(command: Callable[[], Any], *, as_json: bool, verbose: bool, words: Sequence[str] = ()) -> int:
    """Run a command; returns the exit code. A user's mistake never shows a traceback.

    Args:
        command: what is run.
        as_json: messages are JSON.
        verbose: a fault of the program is told with its traceback.
        words: that the user wrote, for what is to be done about them.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - it must outlive this function
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # odd names on a narrow console must not be a crash
    with ended_by_signals() as received:
        try:
            code = _guarded(command, as_json, verbose, words, received)
        except KeyboardInterrupt:  # another, in the middle of what is done about the first
            code = Interrupted.exit_code
    return 128 + received[0] if received and code == Interrupted.exit_code else code


def _guarded(
    command: Callable[[], Any], as_json: bool, verbose: bool, words: Sequence[str], received: Sequence[int]
) -> int:
    try:
        _check_working_folder()
        code = command()
        sys.stdout.flush()
        if code == 130:  # click's own answer to Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except LoraportError as error:
        return _fail(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_interrupted(), as_json)
    except CommandLineError as error:
        if not error.format_message().strip() and not as_json:
            return error.exit_code  # no command was given, and the help text has been printed instead
        return _fail(_usage_error(error, words), as_json)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it must outlive this function
        return _UNREAD
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer has seen to it
            return _UNREAD
        raise
    except Exception as error:
        if received:  # a library made another error of it, and a debugger is at work, so that it is not raised again
            return _fail(_interrupted(), as_json)
        return _fail(_refusal(error) or _bug(error, verbose), as_json)


def _check_working_folder() -> None:
    """In a folder that was deleted relative names mean nothing, and the numerical libraries end the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise FileError("the working folder is gone", values=error.strerror, fix="cd to a folder that exists") from None


def _interrupted() -> Interrupted:
    return Interrupted("interrupted", fix="run the same command again to resume; finished work is kept")


def _fail(error: LoraportError, as_json: bool) -> int:
    with contextlib.suppress(OSError):
        Console(as_json=as_json).error(error)
        sys.stdout.flush()
    return error.exit_code


def _usage_error(error: CommandLineError, words: Sequence[str]) -> UsageError:
    message = error.format_message().strip().rstrip(".")
    context, missing = getattr(error, "ctx", None), getattr(error, "param", None)
    named = words and not words[0].startswith("-")
    path = context.command_path if context is not None else f"loraport {words[0]}" if named else "loraport"
    fix = f"{path} --help"
    if missing is not None and hasattr(error, "param_type") and missing.opts[0].startswith("-") and missing.help:
        fix = f"{missing.opts[0]} {missing.metavar or ''}: {missing.help}"
    elif named and path == "loraport" and _is_file(words[0]):
        fix = f"loraport inspect {words[0]} describes it; loraport --help lists the commands"
    return UsageError(message[:1].lower() + message[1:] or "no command given", fix=fix)


def _is_file(word: str) -> bool:
    return word.startswith("zoo:") or "." in word or os.path.exists(word)


def _refusal(error: Exception) -> LoraportError | None:
    """What is no fault of the program although nobody foresaw it there: the system says no, a package is broken, or an
    input is absurd."""
    said = first_line(error)
    if _is_of_a_package(error):
        return UsageError(
            "a package that this needs cannot be imported",
            where=said,
            values=first_line(_innermost(error)),
            fix='install versions that go together: pip install -U torch "loraport[diffusers,gguf,hub,report]"',
        )
    if page_file_is_full(error):
        return FileError(
            "the page file of Windows is full",
            values=said,
            fix="let Windows manage the size of the page file, or use --workers 1; finished work is kept",
        )
    if is_out_of_memory(error):
        return FileError(
            "out of memory", values=said, fix="use a smaller --max-memory or --workers 1; finished work is kept"
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in said:
        return FileError(
            "the system lets the program start no more threads",
            values=said,
            fix="raise the limit on processes or memory (ulimit -u, -v), or use --workers 1; finished work is kept",
        )
    if isinstance(error, OSError):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return FileError(
            "the system refused to read or write",
            where=" and ".join(names) or None,
            values=error.strerror or said,
            fix="check the name, the permissions and the free disk space",
        )
    if isinstance(error, RecursionError):
        return FileError("an input is nested too deeply to be read", values=said, fix="check where the file comes from")
    if isinstance(error, UnicodeError):
        return FileError("a name or a text is not valid Unicode", values=said, fix="rename the file, or write it again")
    return None


def _is_of_a_package(error: Exception) -> bool:
    """Whether it says that something else than this program cannot be imported; diffusers says it in its own way."""
    if isinstance(error, ImportError):
        return (error.name or "").partition(".")[0] != __package__.partition(".")[0]
    return isinstance(error, RuntimeError) and str(error).startswith("Failed to import ")


def _innermost(error: BaseException) -> BaseException:
    """What an error began with."""
    before = error.__cause__ or error.__context__
    return error if before is None else _innermost(before)


def _bug(error: Exception, verbose: bool) -> LoraportError:
    trace = "".join(traceback.format_exception(error))
    fix = "please report it, with this message and the traceback"
    if verbose:
        print(trace, file=sys.stderr)
    else:
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(prefix="loraport-traceback-", suffix=".txt")
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(trace)
            fix = f"please report it, with this message and the traceback in {name}"
    return LoraportError(
        "something went wrong; this is a fault of this program, not yours",
        values=f"{type(error).__name__}: {first_line(error)}",
        fix=fix,
    )


def _is_verbose(words: Sequence[str]) -> bool:
    return "--verbose" in words or any(len(w) > 1 and w[0] == "-" and set(w[1:]) == {"v"} for w in words)
