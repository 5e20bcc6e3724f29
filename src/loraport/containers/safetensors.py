"""Safetensors files: the header, read and checked without mapping the file, and whole files written.

A mapped file counts towards a process's resident memory page by page, so tensors are read by offset
instead (containers/stored.py). That makes the checks of the header ours: nothing is read at an offset
that has not been checked against the length of the file.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from loraport.containers.access import damaged, open_file, status, unreadable
from loraport.containers.dtypes import FORMATS
from loraport.errors import FileError
from loraport.files import NO_ROOM, atomic_path
from loraport.wording import count

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
HASHES = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8, "modelspec.hash_sha256": "0x" + "0" * 64}
"""Texts of a header that are hashes of the file, and the place that they take."""
LEGACY_START, LEGACY_BYTES = 0x100000, 0x10000
CHUNK_BYTES = 16 * 2**20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Span:
    """Where a tensor lies in a file: bytes [start, end), and its strides where it is not contiguous."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SafetensorsHeader:
    """All tensors of a file with their places, and the free text of its header; the data begins at `base`."""

    spans: dict[str, Span]
    metadata: dict[str, str]
    base: int


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header. Raises FileError on anything but a whole, well-formed file."""
    stat = status(Path(path))
    return _read_header(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@lru_cache(maxsize=64)
def _read_header(path: str, size: int, mtime_ns: int, ctime_ns: int, inode: int) -> SafetensorsHeader:
    with open_file(Path(path)) as file:
        try:
            return parse_header(file, size, path)
        except OSError as error:
            raise unreadable(Path(path), error) from None


def parse_header(file: FileIO | BinaryIO, size: int, where: str) -> SafetensorsHeader:
    """Read and check the header of an open file.

    Args:
        file: positioned at its first byte; left at the first byte of the data.
        size: its length in bytes.
        where: its name, for messages.

    Raises:
        FileError: anything but a whole, well-formed file.
    """
    entries, base = parse_entries(file, size, where)
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise damaged(where, "the header's metadata is not a table", type(metadata).__name__)
    spans = {key: _span(where, key, entry, base) for key, entry in entries.items()}
    _check_layout(where, spans, base, size)
    texts = {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return SafetensorsHeader(spans, texts, base)


def parse_entries(file: FileIO | BinaryIO, size: int, where: str) -> tuple[dict[str, Any], int]:
    """The header as the table that it is, with names in the order of the file, and where the data begins.

    Raises:
        FileError: no header, a header that is cut short, or one that is no table.
    """
    if size < 8:
        raise damaged(where, "the file is shorter than a header", count(size, "byte"))
    begin = file.read(8)
    length = int.from_bytes(begin, "little")
    if length > MAX_HEADER_BYTES:
        raise FileError(
            "this is not a safetensors file",
            where=where,
            values=f"it begins with {(begin + file.read(16)).decode('utf-8', 'replace')!r}",
            fix="give a file that ends in .safetensors and was saved as such",
        )
    if length > size - 8:
        raise damaged(
            where, "the file is cut short", f"a header of {length:,} bytes is announced, but the file has {size:,}"
        )
    raw = file.read(length)
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
        if _SURROGATE.search(raw):
            json.dumps(entries, ensure_ascii=False).encode("utf-8")  # half a character, which nothing can print
    except (ValueError, RecursionError) as error:
        raise damaged(where, "the header is not valid JSON", str(error)[:200]) from None
    if not isinstance(entries, dict):
        raise damaged(where, "the header is not a table of tensors", type(entries).__name__)
    return entries, 8 + length


def write_safetensors(
    path: Path,
    tensors: "Mapping[str, Tensor]",
    metadata: Mapping[str, str],
    *,
    durable: bool = True,
    hashes: bool = False,
) -> None:
    """Write tensors and header with the stock safetensors writer, atomically; same content, same bytes.

    Args:
        path: the final name.
        tensors: by key.
        metadata: the header's texts.
        durable: wait until the data is on the disk (see `files.atomic_path`).
        hashes: put those into the header by which programs that manage LoRAs know a file (`HASHES`).

    Raises:
        FileError: the folder cannot be written, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    ready = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in ready.values())
    with atomic_path(path, need_bytes=size, durable=durable) as temporary:
        try:
            save_file(ready, temporary, metadata={**metadata, **(HASHES if hashes else {})})
        except SafetensorError as error:  # the Rust writer wraps operating-system errors in its own type
            raise OSError(_errno_of(error), str(error)) from error
        _finish_header(temporary, hashes=hashes)


def _finish_header(path: Path, *, hashes: bool) -> None:
    """Put the header's texts in order, since the stock writer keeps them in a hash map, so that their order is random;
    and the hashes in the place that was kept for them."""
    with path.open("rb+") as file:
        entries, base = parse_entries(file, path.stat().st_size, str(path))
        if "__metadata__" not in entries:
            return
        texts = entries.pop("__metadata__")
        if hashes:
            texts = {name: text for name, text in texts.items() if name not in HASHES}
            texts |= _hashes(file, entries, texts, base)
        ordered = {"__metadata__": dict(sorted(texts.items()))} | entries
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        if len(text) > base - 8:
            raise OSError(errno.EIO, "the header could not be put in order")
        file.seek(8)
        file.write(text.ljust(base - 8))


def _hashes(
    file: BinaryIO, entries: Mapping[str, Any], texts: Mapping[str, str], base: int
) -> Iterator[tuple[str, str]]:
    """The hashes as kohya's trainers write them and Automatic1111's web UI and Civitai (AutoV3) look files up by them.

    That of the model is over all data, whatever the header says. The older one is over a piece at a fixed place in the
    file as it would be with no other texts than those of the training.
    """
    own = {name: text for name, text in texts.items() if name.startswith("ss_")}
    header = json.dumps({"__metadata__": own} | dict(entries), separators=(",", ":"), ensure_ascii=False)
    before = 8 + -(-len(header.encode("utf-8")) // 8) * 8  # the stock writer pads it so
    state = hashlib.sha256()
    file.seek(base)
    while piece := file.read(CHUNK_BYTES):
        state.update(piece)
    yield "sshs_model_hash", state.hexdigest()
    yield "modelspec.hash_sha256", f"0x{state.hexdigest()}"
    if before <= LEGACY_START:  # else it would be over the header
        file.seek(base + LEGACY_START - before)
        yield "sshs_legacy_hash", hashlib.sha256(file.read(LEGACY_BYTES)).hexdigest()[:8]


def _errno_of(error: Exception) -> int:
    text = str(error)
    for code in NO_ROOM:
        if os.strerror(code) in text or f"os error {code}" in text:
            return code
    return errno.EIO


def _span(where: str, key: str, entry: Any, base: int) -> Span:
    if not isinstance(entry, dict):
        raise damaged(where, f"the header entry of {key!r} is not a table", type(entry).__name__)
    dtype, shape, offsets = entry.get("dtype"), _naturals(entry.get("shape")), _naturals(entry.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise damaged(where, f"the header entry of {key!r} is malformed", str(entry)[:200])
    start, end = offsets
    if len(shape) > 16 or end < start:
        raise damaged(where, f"the header entry of {key!r} is malformed", str(entry)[:200])
    known = FORMATS.get(dtype)
    if known is not None and prod(shape) * known.item_bytes != end - start:
        raise damaged(
            where,
            f"the size of {key!r} does not fit its shape",
            f"{end - start:,} bytes for {dtype} {list(shape)}",
        )
    return Span(dtype, tuple(shape), base + start, base + end)


def _check_layout(where: str, spans: dict[str, Span], base: int, size: int) -> None:
    position, last = base, "the header"
    for key, span in sorted(spans.items(), key=lambda item: (item[1].start, item[1].end)):
        if span.start < position:
            raise damaged(where, f"{key!r} overlaps {last!r}", f"bytes {span.start:,} to {span.end:,}")
        if span.start > position:
            raise damaged(where, f"there is a gap before {key!r}", f"bytes {position:,} to {span.start:,}")
        position, last = span.end, key
    if position != size:
        what = "the file is cut short" if position > size else "there is data after the last tensor"
        raise damaged(where, what, f"{size:,} bytes, the header describes {position:,}")


def _naturals(value: Any) -> list[int] | None:
    # bool is an int to Python; a header that says `true` for a size is still malformed.
    if not isinstance(value, list):
        return None
    for item in value:  # of every tensor of a file, so no generator
        if type(item) is not int or not 0 <= item < 2**62:
            return None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table
