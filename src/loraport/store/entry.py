"""One cache entry: a safetensors file whose header says what it is and what its bytes must add up to.

A matrix whose columns lie in order, as libraries return many, comes back so: a product rounds otherwise with the same
matrix in another order, and what is computed must not show whether it was found here.

Every read checks the header, the length, the shapes, and a checksum of all that the entry holds, which goes at the
speed of memory: XXH3 with 128 bits. It is made against accidents; whoever may write into the cache could write another
checksum as well. Tensors are read into private memory in one go: a mapped file would count as resident memory for as
long as a tensor of it lives.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path

import torch
import xxhash
from jaxtyping import UInt8
from torch import Tensor

from loraport.containers.dtypes import FORMATS, name_of
from loraport.containers.safetensors import SafetensorsHeader, Span, parse_header, write_safetensors
from loraport.containers.stored_tensors import in_memory
from loraport.core.operator import lies_turned
from loraport.errors import FileError

FORMAT_VERSION = 3
_PREFIX = "loraport.store."


class DamagedEntry(Exception):
    """An entry that must not be used. The text says what is wrong with it; the store decides what to do."""


class NewerEntry(DamagedEntry):
    """An entry written by a later version of the program: sound perhaps, but not for us."""


class OlderEntry(DamagedEntry):
    """An entry written by an earlier version of the program in a format that is not read any more."""


class Entry(dict[str, Tensor]):
    """The tensors of an entry by name, and the texts that were stored with them in `meta`."""

    def __init__(self, tensors: Mapping[str, Tensor], meta: Mapping[str, str]):
        super().__init__(tensors)
        self.meta = dict(meta)


def write_entry(path: Path, kind: str, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Write an entry atomically.

    Raises:
        FileError: the disk is full or the folder cannot be written.
    """
    turned = [name for name, tensor in tensors.items() if lies_turned(tensor)]
    ready = {name: tensor.T if name in turned else tensor for name, tensor in tensors.items()}
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in ready.items()}
    header = dict(meta)
    header[_PREFIX + "version"] = str(FORMAT_VERSION)
    header[_PREFIX + "kind"] = kind
    header[_PREFIX + "key"] = key
    if turned:
        header[_PREFIX + "turned"] = json.dumps(sorted(turned))
    pieces = {name: (str(name_of(tensor.dtype)), tensor.shape, _as_bytes(tensor)) for name, tensor in ready.items()}
    header[_PREFIX + "checksum"] = _checksum(header, pieces)
    write_safetensors(path, ready, header, durable=False)  # a torn entry is recognised and made again


def read_entry(
    path: Path,
    kind: str,
    key: str,
    *,
    expect: Mapping[str, tuple[int, ...]] | None = None,
    memory: Callable[[int], Tensor] = in_memory,
) -> Entry:
    """Read an entry and check that it is whole and that it is the one asked for.

    Args:
        path: where it lies.
        kind: what it is asked for as.
        key: likewise.
        expect: names and shapes that the entry must hold, exactly. None accepts any.
        memory: gives so many bytes to read into.

    Raises:
        DamagedEntry: not to be used; the text says why.
        FileNotFoundError: there is no such entry.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        header, checksum = _header_of(file, size, path, kind, key)
        buffer = memory(size - header.base)
        _fill(file, buffer)
    pieces = {
        name: (span.dtype, span.shape, buffer[span.start - header.base : span.end - header.base])
        for name, span in header.spans.items()
    }
    if _checksum(header.metadata, pieces) != checksum:
        raise DamagedEntry("it was altered: its checksum does not match")
    tensors = {name: _view(pieces[name][2], span) for name, span in header.spans.items()}
    for name in json.loads(header.metadata.get(_PREFIX + "turned", "[]")):
        tensors[name] = tensors[name].T
    _check_shapes(tensors, expect)
    return Entry(tensors, _texts(header))


def peek_entry(path: Path, kind: str, key: str) -> dict[str, str]:
    """The texts that were stored with an entry, from the beginning of the file alone. No checksum stands for them.

    Args:
        path: where it lies.
        kind: what it is asked for as.
        key: likewise.

    Raises:
        DamagedEntry, OSError: it cannot be read, or is not the one asked for.
    """
    with path.open("rb", buffering=0) as file:
        header, _ = _header_of(file, os.fstat(file.fileno()).st_size, path, kind, key)
    return _texts(header)


def _header_of(file: FileIO, size: int, path: Path, kind: str, key: str) -> tuple[SafetensorsHeader, str | None]:
    """The header of an entry, which is the one asked for, and the checksum that it names."""
    try:
        header = parse_header(file, size, str(path))
    except FileError as error:
        raise DamagedEntry(error.what.removeprefix("damaged file: ") + f" ({error.values})") from error
    own = {name.removeprefix(_PREFIX): text for name, text in header.metadata.items() if name.startswith(_PREFIX)}
    _check_identity(own, kind, key)
    return header, own.get("checksum")


def _texts(header: SafetensorsHeader) -> dict[str, str]:
    return {name: text for name, text in header.metadata.items() if not name.startswith(_PREFIX)}


def _check_identity(own: Mapping[str, str], kind: str, key: str) -> None:
    version = own.get("version", "")
    if not version.isdecimal():
        raise DamagedEntry("not written by loraport")
    if int(version) > FORMAT_VERSION:
        raise NewerEntry(f"written in format {version}, but this program knows only up to {FORMAT_VERSION}")
    if int(version) < FORMAT_VERSION:
        raise OlderEntry(f"written in format {version}, which is no longer read")
    if (own.get("kind"), own.get("key")) != (kind, key):
        raise DamagedEntry(f"belongs to another place: {own.get('kind')} {own.get('key')}")


def _fill(file, buffer: UInt8[Tensor, " n"]) -> None:
    target = buffer.numpy().data
    while len(target):
        count = file.readinto(target)
        if not count:
            raise DamagedEntry(f"cut short: {len(target):,} bytes missing at the end")
        target = target[count:]


def _view(piece: UInt8[Tensor, " n"], span: Span) -> Tensor:
    return piece.view(getattr(torch, FORMATS[span.dtype].dtype)).reshape(span.shape)  # the stock writer aligns tensors


def _check_shapes(tensors: Mapping[str, Tensor], expect: Mapping[str, tuple[int, ...]] | None) -> None:
    if expect is None:
        return
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tuple(shape) for name, shape in expect.items()}
    if found != wanted:
        raise DamagedEntry(f"holds {found}, expected {wanted}")


def _checksum(header: Mapping[str, str], pieces: Mapping[str, tuple[str, Sequence[int], UInt8[Tensor, " n"]]]) -> str:
    """Over the header's texts but this one, and names, number formats, shapes and bytes of the tensors."""
    texts = {name: text for name, text in header.items() if name != _PREFIX + "checksum"}
    running = xxhash.xxh3_128(json.dumps(texts, sort_keys=True).encode())
    for name, (dtype, shape, data) in sorted(pieces.items()):
        running.update(json.dumps([name, dtype, list(shape)]).encode())
        running.update(data.numpy().data)
    return running.hexdigest()


def _as_bytes(tensor: Tensor) -> UInt8[Tensor, " n"]:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
