"""Everything that can go wrong through no fault of ours, as one tree with one exit code per class.

A message says what happened, where, with which values, and what to do next. Code that raises one of
these never needs a traceback to be understood. Anything else that escapes is a bug of ours (exit 1).
"""

from collections.abc import Iterable
from typing import Any


class LoraportError(Exception):
    """Base of all expected failures. Its texts name settings as on the command line: in Python `--max-memory` is the
    parameter, or the field of `RunOptions`, that is called `max_memory`.

    Args:
        what: one sentence, what went wrong.
        where: file, tensor or layer concerned.
        values: what was found (and what was expected), as text.
        fix: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, values: str | None = None, fix: str | None = None):
        self.what = what
        self.where = where
        self.values = values
        self.fix = fix
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The whole message, a line a part."""
        return "\n  ".join(self.parts)

    @property
    def parts(self) -> list[str]:
        """The message in parts: what, and where, found and try as far as they are known."""
        parts = [self.what]
        if self.where is not None:
            parts.append(f"where: {self.where}")
        if self.values is not None:
            parts.append(f"found: {self.values}")
        if self.fix is not None:
            parts.append(f"try:   {self.fix}")
        return parts

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "type": type(self).__name__,
            "exit_code": self.exit_code,
            "message": self.message,
            "what": self.what,
            "where": self.where,
            "values": self.values,
            "fix": self.fix,
        }

    def __reduce__(self):
        # Keyword-only arguments do not survive the default pickling, and worker processes send errors home.
        return _rebuild, (type(self), self.what, self.where, self.values, self.fix)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_DEVICE_IS_FULL = ("out of memory", "ALLOC_FAILED", "STATUS_NOT_INITIALIZED", "cublasCreate", "cusolverDnCreate")
"""What torch's libraries say when a device has no room, some of them for what they begin with."""
_HOST_IS_FULL = ("can't allocate memory", "not enough memory")  # torch, and torch on Windows


def is_device_full(error: BaseException) -> bool:
    """Whether a device had no room; not all of torch's libraries say so by the type of the error."""
    named = type(error).__name__ == "OutOfMemoryError"  # of torch, which is not loaded for this
    return isinstance(error, RuntimeError) and (named or any(said in str(error) for said in _DEVICE_IS_FULL))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or beside the processor, where torch has no class of its own for it."""
    full = isinstance(error, RuntimeError) and any(said in str(error) for said in _HOST_IS_FULL)
    return full or isinstance(error, MemoryError) or is_device_full(error)


def _rebuild(cls: type[LoraportError], what: str, where: str | None, values: str | None, fix: str | None):
    return cls(what, where=where, values=values, fix=fix)


class UsageError(LoraportError):
    """The command or call itself makes no sense: an unknown method, a parameter out of range."""

    exit_code = 2


class MismatchError(LoraportError):
    """The inputs are readable but do not fit each other: wrong family, size, or an unrelated target."""

    exit_code = 3


class UnmatchedKeysError(MismatchError):
    """Keys of the LoRA that name no layer of the model, or one half of a pair without the other."""


class UnsupportedError(MismatchError):
    """A format that is recognised and refused, such as Stand-In or packed quantisations."""


class NumericalError(LoraportError):
    """NaN or infinity, a decomposition that no driver could compute, or a quality gate that was not met."""

    exit_code = 4


class FileError(LoraportError):
    """A file is missing, damaged, unsafe, already exists, or could not be written."""

    exit_code = 5


class Interrupted(LoraportError):
    """The user stopped the run; finished layers are in the cache and the same command resumes."""

    exit_code = 130


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The nearest known name as a question, for `fix`; None if none is near."""
    import difflib

    near = difflib.get_close_matches(name[:200], list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else None


def one_of(name: str, known: Iterable[str]) -> str:
    """What to use instead of a name that is none of a few, for `fix`: the nearest, and all of them."""
    known = list(known)
    near = did_you_mean(name, known)
    return f"{near} otherwise one of {', '.join(known)}" if near else f"use one of {', '.join(known)}"
