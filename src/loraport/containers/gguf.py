"""GGUF files: the header, read and checked here for the same reason as that of safetensors files.

A number in the header says how many numbers follow; nothing is read, skipped or kept on the word of such a number
that the length of the file does not bear out. Dimensions are written last one first, and what is quantised has a shape
in bytes. ComfyUI's converters keep the names of the original checkpoint, and write the shape of a tensor that they had
to fold into a matrix under `comfy.gguf.orig_shape.<name>`.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import BinaryIO

from loraport.containers.access import damaged, open_file, status, unreadable
from loraport.containers.dtypes import FORMATS
from loraport.containers.safetensors import Span
from loraport.errors import FileError, UnsupportedError

MAGIC = b"GGUF"
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
MAX_HEADER_BYTES = 2**26  # the vocabulary of a text encoder makes ten million
MAX_ITEMS = 2**17
MAX_TEXT = 2**16
MAX_DIMENSIONS = 8
_ALIGNMENT, _ALIGNED = "general.alignment", "32"
_TEXT, _ARRAY = 8, 9
# struct's letter of the scalar types by their number.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Blocks:
    """A quantised format: `count` numbers of a row share `nbytes` bytes."""

    name: str
    count: int
    nbytes: int


_PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
_BLOCKS = {
    number: Blocks(name, count, nbytes)
    for number, name, count, nbytes in (
        (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22), (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 40), (15, "Q8_K", 256, 292), (41, "Q1_0", 128, 18),
        (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210), (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50), (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136), (29, "IQ1_M", 256, 56), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36),
    )
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """A tensor: where it lies, in the shape of its bytes where it is quantised, and the shape of the weight.

    The header says its format and its place at `entry`.
    """

    span: Span
    shape: tuple[int, ...]
    entry: int


@dataclass(frozen=True)
class GgufHeader:
    """All tensors of a file by name, and the texts and numbers of its header as text; the data begins at `base`."""

    tensors: dict[str, GgufTensor]
    metadata: dict[str, str]
    base: int

    @property
    def alignment(self) -> int:
        """Each tensor begins at a multiple of it, counted from `base`."""
        return int(self.metadata.get(_ALIGNMENT, _ALIGNED))


def place_in_header(header: bytearray, tensor: GgufTensor, offset: int, dtype: str | None) -> None:
    """Write another place of a tensor into a header, and another format.

    Args:
        header: from the beginning of the file, changed in place.
        tensor: which.
        offset: where it begins, counted from the beginning of the data.
        dtype: its format now, one of plain numbers; None leaves what is there.
    """
    if dtype is not None:
        struct.pack_into("<I", header, tensor.entry, next(number for number, name in _PLAIN.items() if name == dtype))
    struct.pack_into("<Q", header, tensor.entry + 4, offset)


def read_gguf(path: Path) -> GgufHeader:
    """Read and check the header.

    Raises:
        FileError: anything but a whole, well-formed file.
        UnsupportedError: the first version of the format, or numbers with the high byte first.
    """
    stat = status(Path(path))
    return _read(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@lru_cache(maxsize=16)
def _read(path: str, size: int, mtime_ns: int, ctime_ns: int, inode: int) -> GgufHeader:
    with open_file(Path(path)) as file, BufferedReader(file, 2**16) as buffered:
        try:
            return _Reader(buffered, size, path).header()
        except OSError as error:
            raise unreadable(Path(path), error) from None


class _Reader:
    """Reads a header from its beginning to its end, once."""

    def __init__(self, file: BinaryIO, size: int, where: str):
        self.file = file
        self.left = min(size, MAX_HEADER_BYTES)
        self.size = size
        self.where = where
        self.position = 0

    def header(self) -> GgufHeader:
        if self.take(4) != MAGIC:
            raise self.damaged("it does not begin like a GGUF file", "")
        (version,) = self.numbers("I")
        if version not in (2, 3):
            raise UnsupportedError(
                "a version of GGUF that is not supported", where=self.where, values=str(version), fix="convert it again"
            )
        tensors, pairs = self.count("Q", "tensors"), self.count("Q", "texts and numbers")
        metadata: dict[str, str] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for _ in range(pairs):
            key = self.text()
            self.value(key, metadata, shapes)
        infos = [self.info() for _ in range(tensors)]
        align = metadata.get(_ALIGNMENT, _ALIGNED)
        if align not in {str(2**power) for power in range(21)}:
            raise self.damaged("its alignment is not a power of two", align[:40])
        base = -(-self.position // int(align)) * int(align)
        found: dict[str, GgufTensor] = {}
        for name, shape, kind, offset, entry in infos:
            if name in found:
                raise self.damaged("a name occurs twice", repr(name)[:200])
            found[name] = self.tensor(name, shape, kind, base + offset, shapes.get(name), entry)
        self.check_layout(found)
        return GgufHeader(found, metadata, base)

    def value(self, key: str, metadata: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
        """Read what belongs to a key; texts, single numbers and shapes are kept."""
        (kind,) = self.numbers("I")
        if kind == _TEXT:
            metadata[key] = self.text()
        elif kind in _SCALARS:
            metadata[key] = str(self.numbers(_SCALARS[kind])[0])
        elif kind == _ARRAY:
            (item,) = self.numbers("I")
            (count,) = self.numbers("Q")
            if item == _TEXT:
                self.within(8 * count, key)
                for _ in range(count):
                    (length,) = self.numbers("Q")
                    self.skip(length, key)
            elif item in _SCALARS:
                width = struct.calcsize(_SCALARS[item])
                self.within(width * count, key)
                if key.startswith(ORIGINAL_SHAPE) and count <= MAX_DIMENSIONS:
                    values = self.numbers(_SCALARS[item] * count)
                    shapes[key.removeprefix(ORIGINAL_SHAPE)] = tuple(map(int, values))
                else:
                    self.skip(width * count, key)
            else:
                raise self.damaged(f"{key!r} is a list of an unknown type", str(item))
        else:
            raise self.damaged(f"{key!r} has an unknown type", str(kind))

    def info(self) -> tuple[str, tuple[int, ...], int, int, int]:
        name = self.text()
        (count,) = self.numbers("I")
        if count > MAX_DIMENSIONS:
            raise self.damaged(f"{name!r} has too many dimensions", str(count))
        shape = tuple(reversed(self.numbers("Q" * count)))
        entry = self.position
        kind, offset = self.numbers("IQ")
        if prod(shape) >= 2**62 or any(length >= 2**62 for length in shape) or offset >= 2**62:
            raise self.damaged(f"{name!r} is larger than any file", str(list(shape)))
        return name, shape, kind, offset, entry

    def tensor(
        self, name: str, shape: tuple[int, ...], kind: int, start: int, original: tuple[int, ...] | None, entry: int
    ) -> GgufTensor:
        weight = shape
        if original is not None:
            if prod(original) != prod(shape) or any(length < 0 for length in original):
                raise self.damaged(f"{name!r} has another size than it says", f"{list(shape)}, {list(original)}")
            weight = original
        if kind in _PLAIN:
            dtype = _PLAIN[kind]
            span = Span(dtype, weight, start, start + prod(shape) * FORMATS[dtype].item_bytes)
        elif kind in _BLOCKS:
            blocks = _BLOCKS[kind]
            if not shape or shape[-1] % blocks.count:
                raise self.damaged(f"the rows of {name!r} are not whole blocks of {blocks.name}", str(list(shape)))
            stored = (*shape[:-1], shape[-1] // blocks.count * blocks.nbytes)
            span = Span(blocks.name, stored, start, start + prod(stored))
        else:
            span = Span(f"format {kind}", (0,), start, start)
        if span.end > self.size:
            raise self.damaged(
                "the file is cut short", f"{name!r} ends at byte {span.end:,}, but the file has {self.size:,}"
            )
        return GgufTensor(span, weight, entry)

    def check_layout(self, tensors: dict[str, GgufTensor]) -> None:
        last, end = "the header", self.position
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].span.start, item[1].span.end)):
            if tensor.span.start < end:
                raise self.damaged(f"{name!r} overlaps {last!r}", f"byte {tensor.span.start:,}")
            last, end = name, tensor.span.end

    def count(self, letter: str, what: str) -> int:
        (number,) = self.numbers(letter)
        if number > MAX_ITEMS:
            raise self.damaged(f"it announces more {what} than any model has", f"{number:,}")
        return int(number)

    def text(self) -> str:
        (length,) = self.numbers("Q")
        if length > MAX_TEXT:
            self.skip(length, "a text")
            return ""
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("a text is not UTF-8", str(error)[:100]) from None

    def numbers(self, letters: str) -> tuple[int, ...]:
        return struct.unpack(f"<{letters}", self.take(struct.calcsize(f"<{letters}")))

    def take(self, count: int) -> bytes:
        self.within(count, "the header")
        data = self.file.read(count)
        if len(data) != count:
            raise self.damaged("the file is cut short", f"{self.size:,} bytes")
        self.position += count
        self.left -= count
        return data

    def skip(self, count: int, what: str) -> None:
        self.within(count, what)
        while count:
            count -= len(self.take(min(count, 2**16)))

    def within(self, count: int, what: str) -> None:
        if count > self.left:
            whole = (
                "the file is cut short"
                if self.size < MAX_HEADER_BYTES
                else ("the header is longer than that of any model")
            )
            raise self.damaged(whole, f"{count:,} more bytes of {what} announced at byte {self.position:,}")

    def damaged(self, what: str, values: str) -> FileError:
        return damaged(self.where, what, values)
