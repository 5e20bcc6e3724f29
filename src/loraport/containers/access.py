"""Looking at paths and opening files, with a sentence for everything the system may answer.

Only regular files are opened: a pipe or a device would make the program wait for ever, or read without end.
"""

import errno
import os
import stat
from difflib import get_close_matches
from io import FileIO
from pathlib import Path

from loraport import windows
from loraport.containers.names import ENDINGS
from loraport.containers.sent import state_sent
from loraport.errors import FileError

_SPECIAL = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_WHAT = {
    errno.ELOOP: "the path is a loop of symbolic links",
    errno.ENAMETOOLONG: "the name is longer than the system allows",
    errno.EACCES: "the file or a folder on the way to it may not be read",
    errno.EPERM: "the file or a folder on the way to it may not be read",
}
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def kind_of(path: Path) -> str:
    """What a path leads to, links followed: "file", "folder", or "" where there is nothing.

    Raises:
        FileError: something is there that is neither, or the system does not say.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _ABSENT:
            return ""
        raise unreadable(path, error) from None
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    what = next((name for test, name in _SPECIAL if test(mode)), "something special")
    raise FileError(f"this is {what}, not a file", where=str(path), fix="save its content to a file, and name that")


def status(path: Path) -> os.stat_result:
    """Size, times and inode of a regular file.

    Raises:
        FileError: it is not there, is empty or a folder, or may not be looked at.
    """
    kind = kind_of(path)
    if kind == "folder":
        raise FileError("a folder was given where a file is needed", where=str(path))
    if not kind:
        raise FileError("the file cannot be read", where=str(path), values="no such file", fix=nearest_path(path))
    try:
        found = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None
    if found.st_size == 0:  # also what the system makes up as it is read, such as /proc/kmsg, which may never end
        raise FileError("the file is empty", where=str(path), fix="download or export the file again")
    return found


def open_file(path: Path) -> FileIO:
    """A regular file, opened for reading. Raises FileError."""
    assert state_sent(path) is None, f"{path} was read, although another machine sent tensors of it"
    status(path)
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise unreadable(path, error) from None


def read_begin(path: Path, count: int) -> bytes:
    """The first bytes of a file. Raises FileError."""
    with open_file(path) as file:
        try:
            return file.read(count)
        except OSError as error:
            raise unreadable(path, error) from None


def list_folder(path: Path) -> list[Path]:
    """Everything in a folder, in order of names. Raises FileError."""
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError | ValueError) -> FileError:
    """The error for what the system answered instead of the file."""
    if isinstance(error, ValueError):
        return FileError("no file can have this name", where=repr(str(path)), values=str(error), fix="check the path")
    if error.errno in _ABSENT:
        return FileError("the file cannot be read", where=str(path), values="no such file", fix=nearest_path(path))
    what = _WHAT.get(error.errno or 0, "the file cannot be read")
    fix = {"the path is a loop of symbolic links": "remove the link, or name the file that it should point to"}.get(
        what
    )
    if error.errno in (errno.EACCES, errno.EPERM):
        fix = windows.advice(path, error) or (
            "give yourself permission to read it (chmod), or copy it to where you have permission"
        )
    shown = str(path) if len(str(path)) <= 300 else f"{str(path)[:300]}..."
    return FileError(what, where=shown, values=error.strerror or str(error), fix=fix or "check the path and the disk")


def damaged(where: str, what: str, values: str) -> FileError:
    """The error for a file whose header cannot be true."""
    return FileError(
        f"damaged file: {what}", where=where, values=values or None, fix="download or export the file again"
    )


def nearest_path(path: Path) -> str:
    """What to try instead of a path that is not there: the neighbour that was most likely meant."""
    advice = windows.advice(path)
    if advice is not None:
        return advice
    if path.parts and path.parts[0] in ("http:", "https:"):
        return "download it first; a model on the Hugging Face Hub is named OWNER/NAME"
    while not os.path.isdir(path.parent) and path.parent != path:
        path = path.parent  # to the first part that is wrong
    try:
        items = sorted(path.parent.iterdir(), key=lambda item: (item.suffix == path.suffix, item))  # the last one wins
        meant = (*ENDINGS, "") if path.suffix in ENDINGS else None  # no page or log in the place of weights
        fit = [item for item in items if meant is None or item.suffix in meant or os.path.isdir(item)]
        there = {_without_ending(item): item for item in fit if item != path}  # a link to nowhere is not there
    except OSError:
        there = {}
    close = get_close_matches(_without_ending(path), there, n=1)
    return f"did you mean {there[close[0]]}?" if close else "check the path"


def _without_ending(path: Path) -> str:
    """The name without `.safetensors` and the like: a common ending makes no two names alike. `Wan2.1` has none."""
    return path.stem if path.suffix[1:].isalpha() else path.name
