"""A copy of a file in which some tensors have other numbers. What else there is stays byte for byte what it was.

Where all tensors keep their number formats they keep their places too, and nothing but the new numbers is written anew:
the order of a safetensors header, the pickle of a torch file and what else lies in its archive stay what they were.
Otherwise everything is moved as `arrange.py` says, or by `retorch.py`. Memory is that of one tensor.
"""

import contextlib
import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BufferedRandom
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Shaped
from torch import Tensor

from loraport.containers.access import open_file
from loraport.containers.arrange import Places, Put, Run, arranged
from loraport.containers.dtypes import FORMATS
from loraport.containers.retorch import places_of, write_anew
from loraport.containers.safetensors import CHUNK_BYTES
from loraport.containers.stored import TensorRef, fill, list_stored, span_of
from loraport.containers.torch_zip import begin_of
from loraport.errors import FileError

_LOCAL_CRC, _CENTRAL_CRC, _CENTRAL_SIZE = 14, 16, 46  # places in the headers of a zip archive
_DESCRIPTOR = b"PK\x07\x08"
_HAS_DESCRIPTOR = 0x08
_NUMBERS = "numbers"  # a file beside a copy that torch writes


class Rewriting:
    """A copy in work. Made by `rewriting`.

    Args:
        source: the original.
        file: what the numbers are written to, open for reading and writing.
        puts: the tensors that get other numbers.
        places: where each of them begins and ends there.
        strided: numbers of a torch file lie there in the order that they have in the original.
    """

    def __init__(self, source: Path, file: BufferedRandom, puts: Sequence[Put], places: Places, strided: bool):
        self.source, self._file, self._places, self._strided = source, file, places, strided
        self._puts = {put.name: put for put in puts}
        self._missing = set(self._puts)

    def put(self, ref: TensorRef, tensor: Shaped[Tensor, "..."]) -> str:
        """Write the new numbers of one of the tensors; returns the checksum of its bytes.

        Args:
            ref: which.
            tensor: of the number format and shape that it has in the copy.
        """
        put = self._puts[ref.nest, ref.key]
        assert tensor.dtype == getattr(torch, FORMATS[put.dtype].dtype)
        assert tuple(tensor.shape) == put.shape
        span = span_of(ref)
        if self._strided and span.strides is not None:
            whole = torch.empty(span.end - span.start, dtype=torch.uint8)
            with open_file(self.source) as file:
                fill(file, span.start, whole.numpy().data, ref.name)
            whole.view(tensor.dtype).as_strided(span.shape, span.strides).copy_(tensor)
            tensor = whole
        self._file.seek(self._places[put.name][0])
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._file.write(data)
        self._file.flush()
        self._missing.discard(put.name)
        return hashlib.sha256(data).hexdigest()

    def holds(self, ref: TensorRef, checksum: str) -> bool:
        """Whether the copy has a tensor's new numbers, of this checksum, from an earlier attempt. It counts as put."""
        begin, end = self._places[ref.nest, ref.key]
        self._file.seek(begin)
        state, left = hashlib.sha256(), end - begin
        while left and (piece := self._file.read(min(CHUNK_BYTES, left))):
            state.update(piece)
            left -= len(piece)
        found = not left and state.hexdigest() == checksum
        if found:
            self._missing.discard((ref.nest, ref.key))
        return found

    def check_whole(self) -> None:
        """Every tensor that was left out has been written."""
        assert not self._missing, self._missing


@contextlib.contextmanager
def rewriting(
    source: Path,
    target: Path,
    puts: Sequence[Put],
    dropped: Sequence[TensorRef],
    metadata: Mapping[str, str] | None,
    copied: Callable[[int], None],
) -> Iterator[Rewriting]:
    """A copy of a file in which some tensors will have other numbers: the block `put`s them.

    Args:
        source: the original.
        target: the name of the copy. What is there of an earlier attempt is written over, except for those tensors.
        puts: the tensors that the block puts.
        dropped: tensors that the copy does not have.
        metadata: the texts of the header of a safetensors file, in order; None leaves them alone, as in other files.
        copied: told how many bytes were copied, as they are.

    Raises:
        FileError: the original cannot be read.
        OSError: the copy cannot be written.
    """
    container = next((ref.container for ref in (*(put.ref for put in puts), *dropped)), "")
    if _by_torch(puts, dropped):
        target.touch()
        with _opened(target.with_name(_NUMBERS)) as out:
            copy = Rewriting(source, out, puts, places_of(puts), strided=False)
            yield copy
            copy.check_whole()
        write_anew(source, target, target.with_name(_NUMBERS), puts, dropped)
        copied(target.stat().st_size - sum(put.nbytes for put in puts))
    else:
        arrangement = arranged(source, puts, dropped, metadata)
        with _opened(target) as out:
            if out.seek(0, os.SEEK_END) > arrangement.size:
                out.truncate(arrangement.size)
            for at, data in arrangement.written.items():
                out.seek(at)
                out.write(data)
            for run in arrangement.runs:
                _copy(source, run, out, copied)
            copy = Rewriting(source, out, puts, arrangement.places, strided=True)
            yield copy
            copy.check_whole()
        if container == "torch":
            _renew_checksums(source, target, [span_of(put.ref).start for put in puts])
    if container:
        _compare(source, target, puts, dropped)


def room_beside(puts: Sequence[Put], dropped: Sequence[TensorRef]) -> int:
    """The bytes that lie beside the copy while it is in work: the new numbers, where torch writes the file."""
    return max((end for _, end in places_of(puts).values()), default=0) if _by_torch(puts, dropped) else 0


def _by_torch(puts: Sequence[Put], dropped: Sequence[TensorRef]) -> bool:
    torch_file = any(ref.container == "torch" for ref in (*(put.ref for put in puts), *dropped))
    return torch_file and (bool(dropped) or any(put.moves for put in puts))


def _opened(target: Path) -> BufferedRandom:
    return target.open("r+b" if target.exists() else "x+b")


def _copy(source: Path, run: Run, out: BinaryIO, copied: Callable[[int], None]) -> None:
    out.seek(run.to)
    with open_file(source) as file:
        for at in range(run.start, run.end, CHUNK_BYTES):
            piece = bytearray(min(CHUNK_BYTES, run.end - at))
            fill(file, at, memoryview(piece), str(source))
            out.write(piece)
            copied(len(piece))


def _renew_checksums(source: Path, target: Path, starts: Sequence[int]) -> None:
    """The checksums of the records of a torch file in which tensors begin at these places, in all that say them."""
    with zipfile.ZipFile(source) as archive, target.open("r+b") as file:
        central = archive.start_dir
        for info in archive.infolist():
            begin = begin_of(info, file)
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


def _compare(source: Path, target: Path, puts: Sequence[Put], dropped: Sequence[TensorRef]) -> None:
    """The copy is a whole file, and names what it should. Raises FileError."""
    wanted = _content(source)
    for ref in (*(put.ref for put in puts), *dropped):
        del wanted[ref.nest, ref.key]
    wanted |= {(put.ref.nest, put.key): (put.dtype, put.shape) for put in puts}
    if _content(target) != wanted:
        raise FileError("the copy does not hold what was written; the disk may be failing", where=str(target))


def _content(path: Path) -> dict[tuple[tuple[str, ...], str], tuple[str, tuple[int, ...]]]:
    """Number format and shape of every tensor in a file, by its nest and key."""
    groups = list_stored(path).groups
    return {(nest, key): (it.dtype, it.shape_in_file) for nest, group in groups.items() for key, it in group.items()}
