"""What Windows refuses and other systems do not, and how it says so. All of it in one place.

A file that any program holds open or mapped can be neither removed nor replaced; some names are devices or can be no
names; a path has 259 characters unless the machine was told otherwise; memory is promised from the page file.
"""

import os
import re
import time
from pathlib import Path, PurePath

WINDOWS = os.name == "nt"
"""Whether this is Windows. Tests set it."""

_WAITS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)  # seconds; a virus scanner or an indexer looks at a new file for as long
_LONGEST = 259  # characters of a path
_LONGEST_NAME = 255  # characters of a file or folder in it
_LONGER = 60  # that the temporary name of a file is longer at most
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL)
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')
_PAGE_FILE = 1455  # the system's number for memory that it cannot promise


def replace(source: str | os.PathLike[str], name: str | os.PathLike[str]) -> None:
    """`os.replace`, tried again for about a second where Windows says that another program has the file open.

    Raises:
        OSError: as `os.replace`.
    """
    for seconds in _WAITS if WINDOWS else ():
        try:
            os.replace(source, name)
            return
        except PermissionError:
            time.sleep(seconds)
    os.replace(source, name)


def refused_name(path: PurePath) -> str | None:
    """Why no file can be written under a name on Windows; None where one can, and on other systems."""
    if not WINDOWS:
        return None
    for part in path.parts[1:] if path.anchor else path.parts:
        if part in (".", ".."):
            continue
        if _DEVICES.fullmatch(part):
            return f"{part} is the name of a device"
        forbidden = _FORBIDDEN.search(part)
        if forbidden:
            return f"a name cannot have {forbidden[0]!r} in it"
        if part[-1] in " .":
            return f"{part!r} ends in a space or a dot"
        if len(part) > _LONGEST_NAME:
            return f"a name has {_LONGEST_NAME} characters at most, this one {len(part)}"
    return None


def advice(path: Path, error: OSError | None = None) -> str | None:
    """What to do about a path that Windows does not let one use; None where it is not known, and on other systems.

    Args:
        path: the file.
        error: what the system said; None where it said that there is no such file.
    """
    if not WINDOWS:
        return None
    if isinstance(error, PermissionError):
        if os.path.lexists(path):
            return "close the program that has the file open (a mapped LoRA counts), or remove its write protection"
        return "choose a folder that this program may write to (controlled folder access may forbid it)"
    most = _LONGEST if error is None else _LONGEST - _LONGER
    if isinstance(error, FileNotFoundError | None) and len(os.path.abspath(path)) > most:
        return f"use a path shorter than {most} characters, or turn on long paths in Windows"
    return None


def is_drive(head: str, tail: str) -> bool:
    r"""Whether `head:tail` is a path of Windows, such as `C:\few.pt`, and the colon no separator."""
    return len(head) == 1 and head.isascii() and head.isalpha() and tail[:1] in ("\\", "/")


def page_file_is_full(error: BaseException) -> bool:
    """Whether Windows could not promise memory, for a mapped file or a library, as Python or torch says it."""
    return getattr(error, "winerror", None) == _PAGE_FILE or f"error code: <{_PAGE_FILE}>" in str(error)
