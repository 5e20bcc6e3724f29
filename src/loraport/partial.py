"""Temporary files that can be told from those that a killed process left behind.

A file is written inside a folder of its own beside its final name, so that whatever a writer puts there on the way
(the stock safetensors writer makes a temporary file itself) is found together. The folder stays locked while it is in
use, and the system takes the lock back when the process ends, however it ends. So a folder of this kind that can be
locked belongs to nobody, and whoever finds it removes it; or goes on with it, where it says that the same job left it.

Windows cannot lock a folder. There the owner holds a file in it open, which nobody can remove as long as he does.
"""

import contextlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # the only name that differs between systems

_AGE = 3600.0  # seconds; on a file system without locks, what is older is taken for abandoned
_HELD = "held"
_LONGEST = 150  # bytes of the final name within the temporary one, which may not be much longer itself
_ENDING = re.compile(r"[a-z0-9_]{8}\.partial")
_JOB = "job"  # a file in the folder, with the name of the job that may go on with what is there


@contextlib.contextmanager
def partial_file(path: Path, job: str = "") -> Iterator[Path]:
    """Yield the name of a file that can be written and renamed to `path`; it is not there yet, except for a `job`.

    Whatever is left of it when the block ends is removed. So is, before, what killed processes left on the way to the
    same `path`.

    Args:
        path: the final name.
        job: names what is made from what. Where the block fails the file then stays, with what lies beside it, and is
            yielded to the next who comes with this name, in whatever state it is; see `forget`. Where folders cannot
            be locked nothing stays.

    Raises:
        OSError: the folder cannot be written.
    """
    left = _left_by(path, job) if job else None
    remove_abandoned(path)
    handle, folder = left or _locked(path)
    data = Path(folder, "data")
    failed = True
    try:
        if job and left is None and handle is not None and fcntl is not None:
            data.with_name(_JOB).write_text(job, encoding="utf-8")
        yield data
        failed = False
    finally:
        if fcntl is None and handle is not None:  # before, since Windows removes no file that is open
            os.close(handle)
        if not (failed and will_stay(data)):
            _remove(folder)
        if fcntl is not None and handle is not None:
            os.close(handle)


def forget(temporary: Path) -> None:
    """Nobody shall go on with this file of a job: it is removed when its block ends, however that is."""
    temporary.with_name(_JOB).unlink(missing_ok=True)


def will_stay(temporary: Path) -> bool:
    """Whether this file would stay if its block failed now."""
    return temporary.is_file() and temporary.with_name(_JOB).is_file()


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Hold a folder while the block runs, until the process ends at the latest; yields False where another holds it.

    Where folders cannot be locked (Windows, some network file systems) nobody is kept out.

    Args:
        folder: is there.

    Raises:
        OSError: it cannot be opened.
    """
    if fcntl is None:
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(handle) is not False
    finally:
        os.close(handle)


def remove_abandoned(path: Path) -> int:
    """Remove what killed processes left of earlier attempts to write `path`; returns how many there were."""
    return sum(remove_if_abandoned(Path(name)) for name in _folders(path))


def remove_if_abandoned(temporary: Path) -> bool:
    """Remove a temporary folder, or a file of that name, unless it is in use. Returns whether it was removed."""
    if fcntl is None:
        return _remove_if_not_held(temporary)
    try:
        handle = os.open(temporary, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:  # gone, or somebody else's
        return False
    try:
        locked = _lock(handle)
        if locked is None:
            locked = time.time() - os.fstat(handle).st_mtime > _AGE
        return locked and _remove(str(temporary))
    except OSError:
        return False
    finally:
        os.close(handle)


def _remove_if_not_held(temporary: Path) -> bool:
    try:
        status = os.lstat(temporary)
        if stat.S_ISDIR(status.st_mode):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary / _HELD)
        elif not stat.S_ISREG(status.st_mode):
            return False
    except OSError:  # held, gone, or somebody else's
        return False
    return _remove(str(temporary))


def _remove(temporary: str) -> bool:
    """Remove a file; or a folder, the files in it, and folders of this kind that a file was being written in."""
    try:
        if not stat.S_ISDIR(os.lstat(temporary).st_mode):
            os.unlink(temporary)
            return True
        with os.scandir(temporary) as items:
            for item in list(items):
                if item.name.endswith(".partial"):
                    _remove(item.path)
                else:
                    os.unlink(item.path)
        os.rmdir(temporary)
    except OSError:
        return False
    return True


def _folders(path: Path) -> list[str]:
    """The temporary folders on the way to `path`, in use or not."""
    prefix = _prefix(path)
    try:
        with os.scandir(path.parent) as items:
            ours = [item for item in items if item.name.startswith(prefix)]
            return [item.path for item in ours if _ENDING.fullmatch(item.name, len(prefix))]
    except OSError:
        return []


def _prefix(path: Path) -> str:
    name = path.name
    while len(os.fsencode(name)) > _LONGEST:
        name = name[:-1]
    return f".{name}."


def _left_by(path: Path, job: str) -> tuple[int, str] | None:
    """A folder of ours that the same job left on the way to the same `path`, and the handle that holds its lock."""
    for folder in _folders(path):
        try:
            handle = os.open(folder, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError:
            continue
        try:
            found = os.fstat(handle)
            ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()  # nobody else put links in there
            mine = ours and _lock(handle) and os.path.samestat(os.stat(folder), found)
            if mine and Path(folder, _JOB).read_text(encoding="utf-8") == job:
                return handle, folder
        except (OSError, ValueError):
            pass
        os.close(handle)
    return None


def _locked(path: Path) -> tuple[int | None, str]:
    """A new folder, and the handle that holds its lock or the file in it; None where there are no locks."""
    while True:
        folder = tempfile.mkdtemp(prefix=_prefix(path), suffix=".partial", dir=path.parent)
        try:
            if fcntl is None:
                return os.open(os.path.join(folder, _HELD), os.O_CREAT | os.O_EXCL | os.O_WRONLY), folder
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # found and removed before it was locked
            continue
        locked = _lock(handle)
        if locked is None:
            os.close(handle)
            return None, folder
        with contextlib.suppress(FileNotFoundError):  # found before it was locked, and removed or about to be
            if locked and os.path.samestat(os.stat(folder), os.fstat(handle)):
                return handle, folder
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """Lock what is open; False if another has it locked, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
