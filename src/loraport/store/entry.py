"""One cache entry: a safetensors file whose header says what it is and what its bytes must add up to.

Every read checks the header, the length, the shapes, and a 64-bit sum of each tensor (one pass at memory
speed, it sees any single damaged word and any zeroed page). `content_digest` is the strong check, kept for
`verify`. Tensors are read into private memory in one go: a mapped file would count as resident memory for
as long as a tensor of it lives.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from loraport.containers.dtypes import FORMATS, name_of
from loraport.files import write_safetensors

FORMAT_VERSION = 1
_PREFIX = "loraport.store."
_MAX_HEADER = 10_000_000  # bytes; a basis needs a few hundred


class DamagedEntry(Exception):
    """An entry that must not be used. The text says what is wrong with it; the store decides what to do."""


class NewerEntry(DamagedEntry):
    """An entry written by a later version of the program: sound perhaps, but not for us."""


class Entry(dict[str, Tensor]):
    """The tensors of an entry by name, and the texts that were stored with them in `meta`."""

    def __init__(self, tensors: Mapping[str, Tensor], meta: Mapping[str, str]):
        super().__init__(tensors)
        self.meta = dict(meta)


def write_entry(path: Path, kind: str, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> None:
    """Write an entry atomically.

    Raises:
        FileError: the disk is full or the folder cannot be written.
        ValueError: a dtype that entries do not hold, or a `meta` key that is reserved.
    """
    reserved = [name for name in meta if name.startswith(_PREFIX)]
    if reserved:
        raise ValueError(f"reserved names in the meta of a cache entry: {reserved}")
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = dict(meta)
    header[_PREFIX + "version"] = str(FORMAT_VERSION)
    header[_PREFIX + "kind"] = kind
    header[_PREFIX + "key"] = key
    header[_PREFIX + "sums"] = json.dumps({name: _sum64(_as_bytes(tensor)) for name, tensor in ready.items()})
    header[_PREFIX + "content"] = content_digest(ready)
    write_safetensors(path, ready, header, durable=False)  # a torn entry is recognised and made again


def read_entry(
    path: Path, kind: str, key: str, *, expect: Mapping[str, tuple[int, ...]] | None = None, strong: bool = False
) -> Entry:
    """Read an entry and check that it is whole and that it is the one asked for.

    Args:
        expect: names and shapes that the entry must hold, exactly. None accepts any.
        strong: also recompute the cryptographic digest of the content.

    Raises:
        DamagedEntry: not to be used; the text says why.
        FileNotFoundError: there is no such entry.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        header, meta, start = _read_header(file, size)
        own = {name.removeprefix(_PREFIX): text for name, text in meta.items() if name.startswith(_PREFIX)}
        _check_identity(own, kind, key)
        _check_layout(header, size - start)
        buffer = torch.empty(size - start, dtype=torch.uint8)
        _fill(file, buffer)
    tensors = {name: _view(buffer, slot) for name, slot in header.items()}
    _check_shapes(tensors, expect)
    _check_sums(buffer, header, own.get("sums", ""))
    if strong and content_digest(tensors) != own.get("content"):
        raise DamagedEntry("the content does not match the digest in the header")
    return Entry(tensors, {name: text for name, text in meta.items() if not name.startswith(_PREFIX)})


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in order of names, as hexadecimal."""
    running = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        stored = name_of(tensor.dtype)
        if stored is None:
            raise ValueError(f"cache entries do not hold {tensor.dtype} ({name})")
        running.update(json.dumps([name, stored, list(tensor.shape)]).encode())
        running.update(memoryview(_as_bytes(tensor).numpy()))
    return running.hexdigest()


def _read_header(file, size: int) -> tuple[dict[str, dict], dict[str, str], int]:
    length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
    if size < 8:
        raise DamagedEntry(f"{size} bytes long, too short for a header")
    if length > min(size - 8, _MAX_HEADER):
        raise DamagedEntry(f"cut short or not a cache entry: a header of {length:,} bytes in a file of {size:,}")
    try:
        header = json.loads(file.read(length))
        meta = header.pop("__metadata__")
        if not all(isinstance(text, str) for text in meta.values()):
            raise TypeError("metadata must be text")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedEntry(f"unreadable header ({type(error).__name__})") from error
    return header, meta, 8 + length


def _check_identity(own: Mapping[str, str], kind: str, key: str) -> None:
    version = own.get("version", "")
    if not version.isdecimal():
        raise DamagedEntry("not written by loraport")
    if int(version) > FORMAT_VERSION:
        raise NewerEntry(f"written in format {version}, this program knows up to {FORMAT_VERSION}")
    if (own.get("kind"), own.get("key")) != (kind, key):
        raise DamagedEntry(f"belongs to another place: {own.get('kind')} {own.get('key')}")


def _check_layout(header: Mapping[str, dict], data_bytes: int) -> None:
    """Tensors must fill the data section without gap or overlap, and each must be as long as its shape says."""
    end_of_last = 0
    try:
        for name, slot in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = slot["data_offsets"]
            needed = math.prod(slot["shape"]) * FORMATS[slot["dtype"]].item_bytes
            if start != end_of_last or end - start != needed or min(slot["shape"], default=0) < 0:
                raise DamagedEntry(f"tensor {name}: bytes {start} to {end} for shape {slot['shape']}")
            end_of_last = end
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedEntry(f"unreadable header ({type(error).__name__})") from error
    if end_of_last != data_bytes:
        raise DamagedEntry(f"cut short: {data_bytes:,} bytes of tensors, {end_of_last:,} promised by the header")


def _fill(file, buffer: UInt8[Tensor, " n"]) -> None:
    target = memoryview(buffer.numpy())
    while len(target):
        count = file.readinto(target)
        if not count:
            raise DamagedEntry(f"cut short: {len(target):,} bytes missing at the end")
        target = target[count:]


def _view(buffer: UInt8[Tensor, " n"], slot: Mapping) -> Tensor:
    start, end = slot["data_offsets"]
    dtype = FORMATS[slot["dtype"]].dtype
    piece = buffer[start:end]
    if start % dtype.itemsize:  # the stock writer aligns tensors, other writers may not
        piece = piece.clone()
    return piece.view(dtype).reshape(slot["shape"])


def _check_shapes(tensors: Mapping[str, Tensor], expect: Mapping[str, tuple[int, ...]] | None) -> None:
    if expect is None:
        return
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tuple(shape) for name, shape in expect.items()}
    if found != wanted:
        raise DamagedEntry(f"holds {found}, expected {wanted}")


def _check_sums(buffer: UInt8[Tensor, " n"], header: Mapping[str, dict], text: str) -> None:
    try:
        sums = json.loads(text)
        for name, slot in header.items():
            start, end = slot["data_offsets"]
            if _sum64(buffer[start:end]) != sums[name]:
                raise DamagedEntry(f"tensor {name} was altered: its checksum does not match")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedEntry(f"unreadable checksums ({type(error).__name__})") from error


def _as_bytes(tensor: Tensor) -> UInt8[Tensor, " n"]:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _sum64(data: UInt8[Tensor, " n"]) -> int:
    """Sum of the bytes taken as 64-bit words, modulo 2**64; the last word is filled up with zeros."""
    whole = data.numel() // 8 * 8
    head = data[:whole] if data.storage_offset() % 8 == 0 else data[:whole].clone()
    tail = int.from_bytes(data[whole:].numpy().tobytes(), "little")
    return (int(head.view(torch.int64).sum()) + tail) % 2**64
