"""The rules of Windows about files, kept on Linux: what is open or mapped can be neither removed nor replaced."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest


def keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the functions that remove, rename and open refuse what they refuse there, in this process.

    What processes that this one started hold open counts as well. Nothing is known of locks on folders, and they
    cannot be opened. On Windows itself nothing is done, as the system keeps them.
    """
    if os.name == "nt":
        return
    monkeypatch.setattr("loraport.partial.fcntl", None)
    monkeypatch.setattr("loraport.windows.WINDOWS", True)
    monkeypatch.setattr("loraport.windows._WAITS", (0.0, 0.01))
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # they open folders
    for name in ("unlink", "remove", "replace", "rename"):
        monkeypatch.setattr(os, name, _refusing(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", _unlink)  # Python 3.10 keeps the system's function
    opened = os.open

    def open_file(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", open_file)


def _unlink(path: Path, missing_ok: bool = False) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        if not missing_ok:
            raise


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(*paths: Any, **named: Any) -> Any:
        there = {(found.st_dev, found.st_ino) for found in _found(paths)}
        if there and not there.isdisjoint(_held()):
            raise PermissionError(
                errno.EACCES, "The process cannot access the file because it is being used by another process", *paths
            )
        return function(*paths, **named)

    return refuse


def _found(paths: tuple[Any, ...]) -> Iterator[os.stat_result]:
    for path in paths:
        with contextlib.suppress(OSError):
            yield os.lstat(path)


def _held() -> Iterator[tuple[int, int]]:
    """Device and inode of every regular file that this process, or one that it started, holds open or mapped."""
    for process in ("self", *(str(child.pid) for child in psutil.Process().children(recursive=True))):
        with contextlib.suppress(OSError):
            for handle in os.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    found = os.stat(f"/proc/{process}/fd/{handle}")
                    yield found.st_dev, found.st_ino
            for line in Path(f"/proc/{process}/maps").read_text(encoding="utf-8").splitlines():
                device, inode = line.split()[3:5]
                major, minor = (int(number, 16) for number in device.split(":"))
                yield os.makedev(major, minor), int(inode)
