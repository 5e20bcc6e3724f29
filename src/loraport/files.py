"""The only place that writes files: whole or not at all.

`atomic_path` hands out a temporary sibling; when the block ends well the data is flushed to the disk
and renamed over the final name in one step, and the folder entry is flushed too. When anything goes
wrong the sibling is removed and the final name is as it was.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraport.errors import FileError

if TYPE_CHECKING:
    from torch import Tensor

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_path(path: Path, *, need_bytes: int = 0, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    Args:
        path: the final name. An existing file is replaced only at the very end.
        need_bytes: size to be written, checked against the free space before anything is written.
        durable: wait until the data is on the disk. Without it a power cut may leave a torn file, which is
            fine for what can be recognised as torn and made again.

    Raises:
        FileError: the folder cannot be written, or the disk is full. Nothing is left behind.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_room(path, need_bytes)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise _write_error(path, error, need_bytes) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            _flush(temporary)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private; an output is an ordinary file
        os.replace(temporary, path)
        if durable:
            _flush_folder(path.parent)
    except OSError as error:
        raise _write_error(path, error, need_bytes) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_safetensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str], *, durable: bool = True
) -> None:
    """Write tensors and header with the stock safetensors writer, atomically; same content, same bytes.

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    ready = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in ready.values())
    with atomic_path(path, need_bytes=size, durable=durable) as temporary:
        try:
            save_file(ready, temporary, metadata=dict(metadata))
        except SafetensorError as error:  # the Rust writer wraps operating-system errors in its own type
            raise OSError(_errno_of(error), str(error)) from error
        _sort_metadata(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) atomically. Raises FileError."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a binary file atomically. Raises FileError."""
    with atomic_path(path, need_bytes=len(data)) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically. Raises FileError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class JsonLines:
    """An append-only log, one JSON object a line; each line reaches the file before the next begins."""

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
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


def _sort_metadata(path: Path) -> None:
    """Put the header's texts in order: the stock writer keeps them in a hash map, so their order is random."""
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" not in header:
            return
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))} | header
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        if len(text) > length:
            raise OSError(errno.EIO, "the header could not be put in order")
        file.seek(8)
        file.write(text.ljust(length))


def _check_room(path: Path, need_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if need_bytes > free:
        raise FileError(
            "not enough room on the disk for the output",
            where=str(path),
            values=f"{need_bytes:,} bytes needed, {free:,} free",
            fix="free some space or write to another disk",
        )


def _errno_of(error: Exception) -> int:
    text = str(error)
    for code in _NO_ROOM:
        if os.strerror(code) in text or f"os error {code}" in text:
            return code
    return errno.EIO


def _write_error(path: Path, error: OSError, need_bytes: int) -> FileError:
    full = error.errno in _NO_ROOM
    return FileError(
        "the disk is full" if full else "could not write the file",
        where=str(path),
        values=f"{need_bytes:,} bytes to write; {error.strerror or error}" if full else (error.strerror or str(error)),
        fix="free some space or write to another disk" if full else "check that the folder exists and may be written",
    )


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; its rename is already durable enough
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
