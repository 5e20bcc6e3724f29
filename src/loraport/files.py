"""The only place that writes files: whole or not at all. Whether a name may be written `writable.py` says before.

`atomic_path` hands out a temporary sibling; when the block ends well the data is flushed to the disk and renamed over
the final name in one step, and the folder entry is flushed too. When anything goes wrong the sibling is removed and
the final name is as it was. A symbolic link under the final name is replaced itself; what it points to is left alone.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from loraport import windows
from loraport.errors import FileError
from loraport.partial import partial_file

NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the limit on file sizes here",
}
"""Errors of a file that has no room, as they are said."""


def reason_of(error: OSError | ValueError) -> str:
    """What the system, or Python, says is wrong."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextlib.contextmanager
def atomic_path(path: Path, *, need_bytes: int = 0, durable: bool = True, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    Args:
        path: the final name. An existing file is replaced only at the very end.
        need_bytes: size to be written, checked against the free space before anything is written.
        durable: wait until the data is on the disk. Without it a power cut may leave a torn file, which is
            fine for what can be recognised as torn and made again.
        overwrite: whether a file that got this name meanwhile may be replaced.

    Raises:
        FileError: the folder cannot be written, the disk is full, or the name is taken. Nothing is left behind.
    """
    with atomic_paths([path], need_bytes=need_bytes, durable=durable, overwrite=overwrite) as temporaries:
        yield temporaries[path]


@contextlib.contextmanager
def atomic_paths(
    paths: Sequence[Path], *, need_bytes: int = 0, durable: bool = True, overwrite: bool = True, job: str = ""
) -> Iterator[dict[Path, Path]]:
    """Several files at once: all of them get their names when the block ends well, or none does.

    Between the first name and the last lies no work, but some moments: who ends the process there without a chance to
    clean up (kill -9, a power cut) may find the first file alone.

    Args:
        paths: the final names, all different.
        need_bytes, durable, overwrite: as for `atomic_path`; the bytes are those of all files.
        job: as for `partial.partial_file`: the same job is given what it left when it failed.

    Yields:
        Final name -> the name to write to.

    Raises:
        FileError: as `atomic_path`. What stood under the names stands there again.
    """
    path, temporaries = Path(paths[0]), {}
    try:
        with contextlib.ExitStack() as stack:
            for path in map(Path, paths):
                path.parent.mkdir(parents=True, exist_ok=True)
                temporaries[path] = stack.enter_context(partial_file(path, job))
            there = sum(map(_room_taken, temporaries.values()))
            for path, temporary in temporaries.items():  # now that what killed runs left is gone
                _check_room(path, need_bytes - there)
                _aside(temporary).unlink(missing_ok=True)
            yield temporaries
            for temporary in temporaries.values():
                if durable:
                    _flush(temporary)
                _make_ordinary(temporary)
            with contextlib.ExitStack() as undo:
                for path, temporary in temporaries.items():
                    if len(temporaries) > 1:
                        undo.callback(_take_back, path, temporary, os.lstat(temporary))
                        if overwrite:
                            _keep_aside(path, temporary)
                    if overwrite:
                        windows.replace(temporary, path)
                    else:
                        _take_free_name(temporary, path)
                undo.pop_all()
        if durable:
            for folder in dict.fromkeys(path.parent for path in temporaries):
                _flush_folder(folder)
    except FileError as error:  # of a writer that was handed a temporary name and knows no other
        names = {str(temporary): str(path) for path, temporary in temporaries.items()}
        if error.where not in names:
            raise
        raise FileError(error.what, where=names[error.where], values=error.values, fix=error.fix) from error
    except OSError as error:
        raise _write_error(path, error, need_bytes) from error


def read_text(path: Path, what: str, *, most: int) -> str:
    """The text of a small file. Raises FileError where there is none, or it is larger than `most` bytes.

    Of a pipe or a device nothing is read: it might make the program wait for ever.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise FileError(f"the {what} is not a regular file", where=str(path), fix="give the name of a file")
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise FileError(f"the {what} is far too large", where=str(path), values=f"more than {most:,} bytes")
        return data.decode("utf-8-sig")  # Windows may mark it as UTF-8 with a first character
    except UnicodeDecodeError as error:
        raise FileError(
            f"the {what} is not UTF-8 text", where=str(path), fix="save it as UTF-8, or name another file"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = reason_of(error)
        raise FileError(f"the {what} cannot be read", where=str(path), values=reason, fix="check the name") from error


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a small JSON file that another program wrote. Raises FileError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"the {what} cannot be read", where=str(path), values=str(error)) from error
    if not isinstance(found, dict):
        raise FileError(f"the {what} cannot be read", where=str(path), values="it is not an object")
    return found


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises FileError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise FileError("the file cannot be read", where=str(path), values=error.strerror) from error
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) atomically. Raises FileError."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # a name that is no text must not stop a page


def write_bytes(path: Path, data: bytes) -> None:
    """Write a binary file atomically. Raises FileError."""
    with atomic_path(path, need_bytes=len(data)) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically. Raises FileError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class RunLog:
    """An append-only log, one JSON object a line; each line reaches the file before the next begins.

    It is always a new file: what stood under its name (see `writable.check_output`) loses the name and is not written
    to, so that a link leads nowhere it should not.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            self._file = self.path.open("x", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise _write_error(self.path, error, 0) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line. Raises FileError when the disk is full."""
        try:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise _write_error(self.path, error, 0) from error

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        with contextlib.suppress(OSError):
            self._file.close()


def _aside(temporary: Path) -> Path:
    return temporary.with_name("before")


def _keep_aside(path: Path, temporary: Path) -> None:
    """Give what stands under a name a second one, beside the new file.

    Raises:
        OSError: it may not be given up. Windows removes no second name of a file that is in use, so there it is moved.
    """
    if not os.path.lexists(path):
        return
    if not windows.WINDOWS:
        with contextlib.suppress(OSError, NotImplementedError):  # no second names on this file system, or not of links
            os.link(path, _aside(temporary), follow_symlinks=False)
            return
    windows.replace(path, _aside(temporary))


def _take_back(path: Path, temporary: Path, ours: os.stat_result) -> None:
    """Make a name mean again what it meant before the new file (`ours`) got it, if it did get it."""
    now = os.lstat(path) if os.path.lexists(path) else None
    if now is not None and not os.path.samestat(now, ours):
        return
    if os.path.lexists(_aside(temporary)):
        windows.replace(_aside(temporary), path)
    elif now is not None:
        path.unlink()


def _take_free_name(temporary: Path, path: Path) -> None:
    """Give the file its name unless another has it. A second name cannot replace one, unlike a rename."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise FileError(
            "a file of this name appeared while the output was being made",
            where=str(path),
            fix="choose another name or add --overwrite; finished work is kept",
        ) from error
    except OSError:  # a file system without second names: look, and rename
        if os.path.lexists(path):
            raise FileError("the output file already exists", where=str(path), fix="choose another name") from None
        windows.replace(temporary, path)


def _check_room(path: Path, need_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if need_bytes > free:
        raise FileError(
            "not enough room on the disk for the output",
            where=str(path),
            values=f"{need_bytes:,} bytes needed, {free:,} free",
            fix="free some space or write to another disk",
        )


def _room_taken(path: Path) -> int:
    """Bytes of the disk that a file has already, which may have holes."""
    try:
        return 512 * getattr(os.stat(path), "st_blocks", 0)
    except OSError:
        return 0


def _write_error(path: Path, error: OSError, need_bytes: int) -> FileError:
    full, reason = NO_ROOM.get(error.errno or 0), reason_of(error)
    fix = windows.advice(path, error) or "check that the folder exists and is writable"
    if full is not None:
        reason = f"{need_bytes:,} bytes to write; {reason}" if need_bytes else reason
        fix = "free some space or write to another disk"
    if error.errno == errno.EFBIG:
        fix = "raise the limit on file sizes (ulimit -f), or write to another disk"
    return FileError(full or "could not write the file", where=str(path), values=reason, fix=fix)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # how some network drives say that they
                raise  # do no such thing; anything else means that the data may be lost


def _flush_folder(folder: Path) -> None:
    """As far as the system does that: Windows opens no folder, nor does anybody one that he may not list, and some
    file systems refuse. The file has its name by now, so none of that is a failure."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _make_ordinary(temporary: Path) -> None:
    """Give a file the permissions of a new one, since some writers make private files.

    A new one shows what they are: to ask for the mask of the process is to change it, for all its threads. A drive that
    has its own permissions for all files (of Windows under WSL, of a network) may refuse, which is no failure.
    """
    new = temporary.with_name("new")
    with new.open("wb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    new.unlink()
    with contextlib.suppress(OSError):
        os.chmod(temporary, mode)
