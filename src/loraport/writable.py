"""Whether files may be written under their names: asked before any work is done. `files.py` writes them.

Nothing that the user did not give up is replaced, and no input in any case, under whatever name it goes.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from loraport import windows
from loraport.errors import FileError
from loraport.files import reason_of, write_text

MARK = ".loraport"
"""A file of this name says that a folder of results is ours to write in again."""
_LOG_EVENTS = ("started", "layer", "finished", "failed")


def check_output(
    path: Path, inputs: Iterable[tuple[str, Path]] = (), *, overwrite: bool, what: str = "output", log: bool = False
) -> None:
    """Raise FileError unless a file may be written under this name. To be asked before any work is done.

    Args:
        path: the file to be written.
        inputs: what the command reads, as (role, file or folder); none of it may be replaced, under whatever name
            (relative, through links of either kind, in other letters where the system does not tell them apart).
            Everything in a folder counts.
        overwrite: whether the user gave up what is there.
        what: the role of the file in messages.
        log: an earlier run log of ours, or an empty file, may be replaced without `overwrite`.
    """
    home = path.parts[0] if path.parts else ""
    if (
        len(path.parts) > 1 and home.startswith("~") and not os.path.lexists(home)
    ):  # the shell, or whoever made the name, knew no such home
        raise FileError(
            f"the {what} would be in a home folder that does not exist", where=str(path), fix="name a folder"
        )
    refused = windows.refused_name(path)
    if refused is not None:
        raise FileError(
            f"the {what} cannot have this name on Windows", where=str(path), values=refused, fix="rename it"
        )
    if _status(path, what) is None:
        check_folder(path, what)
        return
    try:
        followed: os.stat_result | None = os.stat(path)
    except OSError:  # a link to nowhere, or in a circle
        followed = None
    if followed is not None and stat.S_ISDIR(followed.st_mode):
        raise FileError(f"the {what} is a folder", where=str(path), fix="give the name of a file")
    if followed is not None:
        for role, file in _files_of(inputs):
            if os.path.samestat(followed, file):
                raise FileError(f"the {what} would replace the {role}", where=str(path), fix="choose another name")
    if (followed is not None and not stat.S_ISREG(followed.st_mode)) or _is_stream(path):
        raise FileError(f"the {what} is not a regular file", where=str(path), fix="give the name of a file")
    if not overwrite and not (log and followed is not None and _is_run_log(path)):
        raise FileError(
            f"the {what} file already exists" if not log else "the run log would replace a file that is not a run log",
            where=str(path),
            fix="choose another name or add --overwrite" if not log else "--log FILE with another name, or --log off",
        )
    check_folder(path, what)


def claim_folder(folder: Path, patterns: Iterable[str], what: str) -> None:
    """Make a folder for results that are replaced from run to run, and mark it.

    Args:
        folder: may be there already.
        patterns: of the files that will be written; such files in a folder without the mark are somebody else's.
        what: what makes them, for messages.

    Raises:
        FileError: there are such files, or the folder cannot be written.
    """
    check_claim(folder, patterns, what)
    if not (folder / MARK).is_file():
        write_text(folder / MARK, f"Results of the {what}; the next one replaces them.\n")


def check_claim(folder: Path, patterns: Iterable[str], what: str) -> None:
    """Raise FileError where `claim_folder` would, and change nothing.

    Args:
        folder, patterns, what: as there.
    """
    check_folder(folder / MARK, what)
    if not (folder / MARK).is_file():
        taken = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
        if taken:
            raise FileError(
                f"the folder holds files that the {what} did not make and would replace",
                where=str(folder),
                values=", ".join(taken[:5]),
                fix="name another folder: -o FOLDER",
            )


def with_settings(role: str, file: Path) -> Iterator[tuple[str, Path]]:
    """An input file with its role, and the JSON files beside it, which say how it is read."""
    yield role, file
    folder = file if file.is_dir() else file.parent
    with contextlib.suppress(OSError):
        yield from ((f"settings of the {role}", found) for found in sorted(folder.glob("*.json")))


def check_apart(outputs: Iterable[tuple[str, Path]]) -> None:
    """Raise FileError where two files to be written, as (role, path), have the same name."""
    seen: dict[str, str] = {}
    for role, path in outputs:
        name = os.path.realpath(path).casefold()
        if name in seen:
            raise FileError(f"the {role} would replace the {seen[name]}", where=str(path), fix="give each its own name")
        seen[name] = role


def _status(path: Path, what: str) -> os.stat_result | None:
    """What stands under this very name, a link itself included; None for nothing."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FileError(
            f"the {what} cannot be written there", where=str(path), values=reason_of(error), fix="choose another name"
        ) from error


def _is_stream(path: Path) -> bool:
    """Whether a name such as /dev/stdout stands for what a process has open; to replace it would break the system."""
    return path.is_symlink() and os.readlink(path).startswith(("/proc/", "/dev/fd/"))


def check_folder(path: Path, what: str) -> None:
    """Raise FileError unless the folder, or the nearest one above that exists, can take a new file."""
    folder = next((parent for parent in path.absolute().parents if os.path.lexists(parent)), None)
    effective = os.access in os.supports_effective_ids
    if folder is None or (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)):
        return
    raise FileError(
        f"the {what} cannot be written there",
        where=str(path),
        values=f"{folder} is not a folder" if not folder.is_dir() else f"no permission to write to {folder}",
        fix="choose another folder",
    )


def _files_of(inputs: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, os.stat_result]]:
    """Every file that an input consists of. What cannot be looked at here is refused when it is opened."""
    for role, path in inputs:
        for name in (path, *(path.rglob("*") if path.is_dir() else ())):
            with contextlib.suppress(OSError):
                yield role, os.stat(name)


def _is_run_log(path: Path) -> bool:
    """Whether a file is a run log of ours, or empty."""
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 20)
    except OSError:
        return False
    if not line:
        return True
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("event") in _LOG_EVENTS
