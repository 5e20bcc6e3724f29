"""The header of a safetensors file, read and checked without mapping the file.

A mapped file counts towards a process's resident memory page by page, so tensors are read by offset
instead (containers/tensors.py). That makes the checks of the header ours: nothing is read at an offset
that has not been checked against the length of the file.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from loraport.containers.dtypes import FORMATS
from loraport.errors import FileError

MAX_HEADER_BYTES = 16 * 2**20  # the largest honest headers (tag lists of trainers) stay below 2 MB


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
    """All tensors of a file with their places, and the free text of its header."""

    spans: dict[str, Span]
    metadata: dict[str, str]


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header. Raises FileError on anything but a whole, well-formed file."""
    stat = Path(path).stat()
    return _read_header(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=64)
def _read_header(path: str, size: int, mtime_ns: int, inode: int) -> SafetensorsHeader:
    if size < 8:
        raise _damaged(path, "the file is shorter than a header", f"{size} bytes")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            file.seek(0)
            raise FileError(
                "this is no safetensors file",
                where=path,
                values=f"it begins with {file.read(24).decode('utf-8', 'backslashreplace')!r}",
                fix="give a file that ends in .safetensors and was saved as such",
            )
        if length > size - 8:
            raise _damaged(
                path,
                "the file is cut short",
                f"a header of {length:,} bytes is announced, the file has {size:,}",
            )
        raw = file.read(length)
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "the header is not valid JSON", str(error)[:200]) from None
    if not isinstance(entries, dict):
        raise _damaged(path, "the header is not a table of tensors", type(entries).__name__)
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _damaged(path, "the header's metadata is not a table", type(metadata).__name__)
    base = 8 + length
    spans = {key: _span(path, key, entry, base) for key, entry in entries.items()}
    _check_layout(path, spans, base, size)
    return SafetensorsHeader(spans, {str(key): _text(value) for key, value in metadata.items()})


def _span(path: str, key: str, entry: Any, base: int) -> Span:
    if not isinstance(entry, dict):
        raise _damaged(path, f"the header entry of {key!r} is not a table", type(entry).__name__)
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _damaged(path, f"the header entry of {key!r} is malformed", str(entry)[:200])
    start, end = offsets
    if len(shape) > 16 or end < start:
        raise _damaged(path, f"the header entry of {key!r} is malformed", str(entry)[:200])
    known = FORMATS.get(dtype)
    if known is not None and prod(shape) * known.item_bytes != end - start:
        raise _damaged(
            path,
            f"the size of {key!r} does not fit its shape",
            f"{end - start:,} bytes for {dtype} {list(shape)}",
        )
    return Span(dtype, tuple(shape), base + start, base + end)


def _check_layout(path: str, spans: dict[str, Span], base: int, size: int) -> None:
    position, last = base, "the header"
    for key, span in sorted(spans.items(), key=lambda item: (item[1].start, item[1].end)):
        if span.start < position:
            raise _damaged(path, f"{key!r} overlaps {last!r}", f"bytes {span.start:,} to {span.end:,}")
        if span.start > position:
            raise _damaged(path, f"there is a hole before {key!r}", f"bytes {position:,} to {span.start:,}")
        position, last = span.end, key
    if position != size:
        what = "the file is cut short" if position > size else "there is data after the last tensor"
        raise _damaged(path, what, f"{size:,} bytes, the header describes {position:,}")


def _naturals(value: Any) -> bool:
    # bool is an int to Python; a header that says `true` for a size is still malformed.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**62 for item in value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _damaged(path: str, what: str, values: str) -> FileError:
    return FileError(f"damaged file: {what}", where=path, values=values, fix="download or export the file again")
