"""A copy of a file in which some tensors have other numbers. Every other byte is that of the original.

A tensor keeps its number format and shape, so it keeps its place too, and nothing but its bytes is written anew: the
order of a safetensors header, the pickle of a torch file and what else lies in its archive stay what they were. Memory
is that of one tensor.
"""

import contextlib
import hashlib
import itertools
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BufferedRandom, FileIO
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Shaped
from torch import Tensor

from loraport.containers.access import open_file, status, unreadable
from loraport.containers.dtypes import FORMATS
from loraport.containers.safetensors import parse_entries
from loraport.containers.stored import CHUNK_BYTES, TensorRef, list_stored, span_of
from loraport.errors import FileError, UnsupportedError

_LOCAL_CRC, _CENTRAL_CRC, _CENTRAL_SIZE = 14, 16, 46  # places in the headers of a zip archive
_DESCRIPTOR = b"PK\x07\x08"
_HAS_DESCRIPTOR = 0x08


class Rewriting:
    """A copy in work. Made by `rewriting`.

    Args:
        source: the original.
        file: the copy, open for reading and writing.
        refs: the tensors that get other numbers, whole.
        shift: by how many bytes the tensors lie further on in the copy.
    """

    def __init__(self, source: Path, file: BufferedRandom, refs: Sequence[TensorRef], shift: int):
        self.source, self._file, self._shift = source, file, shift
        self._missing = {_identity(ref) for ref in refs}

    def put(self, ref: TensorRef, tensor: Shaped[Tensor, "..."]) -> str:
        """Write the new numbers of one of the tensors; returns the checksum of its bytes.

        Args:
            ref: which.
            tensor: of the number format and shape that it has in the original.
        """
        span = span_of(ref)
        assert tensor.dtype == getattr(torch, FORMATS[ref.dtype].dtype)
        assert tuple(tensor.shape) == span.shape
        if span.strides is not None:
            with open_file(self.source) as file:
                file.seek(span.start)
                whole = torch.frombuffer(_exactly(file, span.end - span.start, self.source), dtype=torch.uint8)
            whole.view(tensor.dtype).as_strided(span.shape, span.strides).copy_(tensor)
            tensor = whole
        self._file.seek(span.start + self._shift)
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._file.write(data)
        self._file.flush()
        self._missing.discard(_identity(ref))
        return hashlib.sha256(data).hexdigest()

    def holds(self, ref: TensorRef, checksum: str) -> bool:
        """Whether the copy has a tensor's new numbers, of this checksum, from an earlier attempt. It counts as put."""
        span = span_of(ref)
        self._file.seek(span.start + self._shift)
        state, left = hashlib.sha256(), span.end - span.start
        while left and (piece := self._file.read(min(CHUNK_BYTES, left))):
            state.update(piece)
            left -= len(piece)
        found = not left and state.hexdigest() == checksum
        if found:
            self._missing.discard(_identity(ref))
        return found

    def check_whole(self) -> None:
        """Every tensor that was left out has been written."""
        assert not self._missing, self._missing


@contextlib.contextmanager
def rewriting(
    source: Path,
    target: Path,
    refs: Sequence[TensorRef],
    metadata: Mapping[str, str] | None,
    copied: Callable[[int], None],
) -> Iterator[Rewriting]:
    """A copy of a file in which some tensors will have other numbers: the block `put`s them.

    Args:
        source: the original.
        target: the name of the copy. What is there of an earlier attempt is written over, except for those tensors.
        refs: the tensors that the block puts, whole.
        metadata: the texts of the header of a safetensors file, in order; None leaves them alone, as in other files.
        copied: told how many bytes were copied, as they are.

    Raises:
        FileError: the original cannot be read.
        OSError: the copy cannot be written.
    """
    size = status(source).st_size
    with target.open("r+b" if target.exists() else "x+b") as out:
        begin, shift = _header(source, size, out, metadata)
        if out.seek(0, os.SEEK_END) > size + shift:
            out.truncate(size + shift)
        spans = sorted((span.start, span.end) for span in map(span_of, refs))
        position = begin
        for start, end in [*spans, (size, size)]:
            _copy(source, position, start, out, position + shift, copied)
            position = max(position, end)
        copy = Rewriting(source, out, refs, shift)
        yield copy
        copy.check_whole()
    if refs:
        if refs[0].container == "torch":
            _renew_checksums(source, target, [span.start for span in map(span_of, refs)])
        _compare(source, target)


def refuse_shared(refs: Sequence[TensorRef]) -> None:
    """Raise UnsupportedError where one of these tensors of a torch file shares its bytes with another one.

    Args:
        refs: the tensors that will be changed, whole.
    """
    for file in {ref.file for ref in refs if ref.container == "torch"}:
        mine = {_identity(ref) for ref in refs if ref.file == file}
        places: list[tuple[int, int, bool, TensorRef]] = []
        for group in list_stored(file).groups.values():
            for ref in group.values():
                span = span_of(ref)
                places += [(span.start, span.end, _identity(ref) in mine, ref)] if span.end > span.start else []
        places.sort(key=lambda place: place[:2])
        for (_, end, changed, ref), (start, _, changes, other) in itertools.pairwise(places):
            if start < end and (changed or changes):
                raise UnsupportedError(
                    "two tensors of the torch file share their numbers, so that one cannot be changed alone",
                    where=str(file),
                    values=f"{'/'.join((*ref.nest, ref.key))} and {'/'.join((*other.nest, other.key))}",
                    fix="save the weights that are meant by themselves, best as safetensors",
                )


def _identity(ref: TensorRef) -> tuple[tuple[str, ...], str]:
    return ref.nest, ref.key


def _header(source: Path, size: int, out: BinaryIO, metadata: Mapping[str, str] | None) -> tuple[int, int]:
    """Write the header of a safetensors file with other texts; where its data begins, and how much further on there."""
    if metadata is None:
        return 0, 0
    with open_file(source) as file:
        entries, base = parse_entries(file, size, str(source))
    entries.pop("__metadata__", None)
    text = json.dumps({"__metadata__": dict(metadata)} | entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(len(text) + -len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    return base, 8 + len(text) - base


def _copy(source: Path, start: int, end: int, out: BinaryIO, to: int, copied: Callable[[int], None]) -> None:
    if start >= end:
        return
    out.seek(to)
    with open_file(source) as file:
        file.seek(start)
        for at in range(start, end, CHUNK_BYTES):
            piece = _exactly(file, min(CHUNK_BYTES, end - at), source)
            out.write(piece)
            copied(len(piece))


def _exactly(file: FileIO, count: int, path: Path) -> bytearray:
    """So many bytes from where the file stands. Raises FileError."""
    data = bytearray(count)
    done = 0
    while done < count:
        try:
            got = file.readinto(memoryview(data)[done:])
        except OSError as error:
            raise unreadable(path, error) from None
        if not got:
            raise FileError("the file is cut short", where=str(path), values=f"{count - done:,} bytes are missing")
        done += got
    return data


def _renew_checksums(source: Path, target: Path, starts: Sequence[int]) -> None:
    """The checksums of the records of a torch file in which tensors begin at these places, in all that say them."""
    with zipfile.ZipFile(source) as archive, target.open("r+b") as file:
        central = archive.start_dir
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            begin = info.header_offset + 30 + name_length + extra_length
            end = begin + info.file_size
            if any(begin <= start < end for start in starts):
                checksum = struct.pack("<L", _checksum(file, begin, end))
                _replace(file, central + _CENTRAL_CRC, checksum)
                if not info.flag_bits & _HAS_DESCRIPTOR:
                    _replace(file, info.header_offset + _LOCAL_CRC, checksum)
                else:
                    file.seek(end)
                    _replace(file, end + 4 * (file.read(4) == _DESCRIPTOR), checksum)
            file.seek(central + 28)
            central += _CENTRAL_SIZE + sum(struct.unpack("<HHH", file.read(6)))


def _checksum(file: BufferedRandom, begin: int, end: int) -> int:
    file.seek(begin)
    found = 0
    for at in range(begin, end, CHUNK_BYTES):
        found = zlib.crc32(file.read(min(CHUNK_BYTES, end - at)), found)
    return found


def _replace(file: BufferedRandom, at: int, data: bytes) -> None:
    file.seek(at)
    file.write(data)


def _compare(source: Path, target: Path) -> None:
    """The copy is a whole file, and names what the original names. Raises FileError."""
    one, two = list_stored(source), list_stored(target)

    def listed(groups: Mapping[tuple[str, ...], Mapping[str, TensorRef]]) -> list[object]:
        return [(nest, key, ref.shape, ref.dtype) for nest, group in groups.items() for key, ref in group.items()]

    if listed(one.groups) != listed(two.groups):
        raise FileError("the copy does not hold what was written; the disk may be failing", where=str(target))
