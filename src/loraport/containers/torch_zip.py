"""Tensors of a `.pt` file, by restricted loading only, located so that they can be read one by one.

`torch.load(weights_only=True, mmap=True)` executes nothing and reads no tensor data, but whatever is
touched later stays mapped. So the load serves only to learn names, shapes and places; the places are
checked against the records of the zip archive that the file is, and the tensors are then read by
offset like those of a safetensors file.
"""

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from loraport import windows
from loraport.containers.access import status
from loraport.containers.dtypes import name_of
from loraport.containers.names import as_text
from loraport.containers.safetensors import Span
from loraport.errors import FileError, UnsupportedError

MAX_DEPTH = 4
MAX_PICKLE_BYTES = 8 * 2**20  # what describes the tensors; that of the largest models is below one
MAX_ITEMS = 100_000  # entries of all mappings, those that several others share counted each time

Groups = dict[tuple[str, ...], dict[str, Span]]


def read_groups(path: Path) -> Groups:
    """Every mapping in the file that holds tensors, by the path of names that leads to it.

    Raises:
        FileError: the file holds anything but tensors and plain containers, or is damaged.
        UnsupportedError: a tensor type that cannot be located (packed quantised tensors, old formats), or tensors that
            lie deeper than is looked.
    """
    stat = status(Path(path))
    return _read_groups(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@lru_cache(maxsize=16)
def _read_groups(path: str, size: int, mtime_ns: int, ctime_ns: int, inode: int) -> Groups:
    records = _records(path)
    tensors: dict[tuple[str, ...], dict[str, Tensor]] = {}
    _collect(load_mapped(path), path, tensors)
    locate = _Locator(path, records, [tensor for group in tensors.values() for tensor in group.values()])
    return {nest: {key: locate.span(key, tensor) for key, tensor in group.items()} for nest, group in tensors.items()}


def load_mapped(path: str) -> Any:
    """All that the file holds, its tensors mapped; nothing of their numbers is read yet. Raises FileError."""
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = named.group(1) if named else "objects that a restricted load does not make"
        raise FileError(
            "the file holds Python objects besides tensors, so it was not loaded; nothing in it was executed",
            where=path,
            values=reason,
            fix="export only the weights, as safetensors, on a machine where you trust the file",
        ) from None
    except UnicodeEncodeError as error:
        raise FileError(
            "torch cannot open a file with such a name",
            where=path,
            values=error.reason,
            fix="rename the file or its folder",
        ) from None
    except Exception as error:
        if windows.page_file_is_full(error):  # a mapping that could be written to is promised memory, all of it
            raise FileError(
                "the page file of Windows has no room to map the torch file",
                where=path,
                values=str(error)[:300],
                fix="let Windows manage the size of the page file, or save the model as safetensors, which needs none",
            ) from None
        # a damaged archive fails in whatever type the part that meets it happens to raise
        raise _damaged(path, error) from None


def _damaged(path: str, error: Exception) -> FileError:
    return FileError(
        "the torch file cannot be read",
        where=path,
        values=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
        fix="a file written by torch must not be named .safetensors; otherwise save or download it again",
    )


def _collect(content: Any, path: str, found: dict[tuple[str, ...], dict[str, Tensor]]) -> None:
    """Every mapping of tensors by the names that lead to it; one that is shared is found under each of its names."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen = 0
    beyond: tuple[str, ...] = ()
    while waiting:
        nest, value = waiting.pop()
        if not isinstance(value, Mapping):
            continue
        if len(nest) > MAX_DEPTH:
            beyond = beyond or nest
            continue
        seen += len(value)
        if seen > MAX_ITEMS:
            raise FileError(
                "the torch file holds more entries than any model has",
                where=path,
                values=f"more than {MAX_ITEMS:,}",
                fix="save only the weights, as safetensors",
            )
        inner = []
        for key, item in value.items():
            if isinstance(item, Tensor):
                found.setdefault(nest, {})[name_of_entry(key)] = item
            elif isinstance(item, Mapping):
                inner.append(((*nest, name_of_entry(key)), item))
        waiting.extend(reversed(inner))
    if beyond and not found:
        raise UnsupportedError(
            f"the torch file holds no tensors within {MAX_DEPTH} names, and deeper ones are not searched",
            where=path,
            values=f"it goes on at {'/'.join(beyond)}",
            fix="save the inner mapping by itself, preferably as safetensors",
        )


def name_of_entry(key: Any) -> str:
    """What an entry of a mapping is called in `read_groups`."""
    return as_text(str(key))


class _Locator:
    """Turns the address of a mapped storage into an offset in the file.

    All storages of a mapped load lie in one mapping, so one base address explains them all. It is found by
    trying the records of the archive for the lowest storage, and kept only if every storage then begins at
    a record that is long enough.
    """

    def __init__(self, path: str, records: dict[int, int], tensors: list[Tensor]):
        self.path = path
        self.records = records
        for tensor in tensors:
            if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
                raise UnsupportedError(
                    "the torch file holds packed or sparse tensors",
                    where=path,
                    values=f"{type(tensor).__name__}, {tensor.layout}",
                    fix="use a bf16, fp16 or fp32 copy of the model",
                )
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        storages = {address: size for address, size in storages.items() if size > 0}
        self.base = self._find_base(storages) if storages else 0

    def _find_base(self, storages: dict[int, int]) -> int:
        lowest = min(storages)
        bases = [lowest - offset for offset, size in self.records.items() if size >= storages[lowest]]
        fitting = [
            base
            for base in bases
            if all(self.records.get(address - base, -1) >= size for address, size in storages.items())
        ]
        if len(fitting) > 1:
            # Several ways are possible where records are left over; the mapping, which starts on a page, decides.
            fitting = [base for base in fitting if base % 4096 == 0]
        if len(fitting) != 1:
            raise FileError(
                "the tensors of the torch file cannot be located", where=self.path, fix="save it as safetensors"
            )
        return fitting[0]

    def span(self, key: str, tensor: Tensor) -> Span:
        name = name_of(tensor.dtype)
        if name is None:
            raise UnsupportedError(
                f"{key} has a number format that is not known", where=self.path, values=str(tensor.dtype)
            )
        shape = tuple(tensor.shape)
        item = tensor.element_size()
        if tensor.numel() == 0:
            return Span(name, shape, 0, 0)
        last = sum((size - 1) * stride for size, stride in zip(shape, tensor.stride(), strict=True))
        start = tensor.untyped_storage().data_ptr() - self.base + tensor.storage_offset() * item
        strides = None if tensor.is_contiguous() else tuple(tensor.stride())
        return Span(name, shape, int(start), int(start + (last + 1) * item), strides)


def begin_of(info: zipfile.ZipInfo, file: BinaryIO) -> int:
    """Where the data of a record of a zip archive begins: behind its local header, which ends with two names."""
    file.seek(info.header_offset + 26)  # their lengths
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    return int(info.header_offset + 30 + name_length + extra_length)


def _records(path: str) -> dict[int, int]:
    """Offset of the data of every stored record of the zip archive -> its length."""
    places: dict[int, int] = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            names = archive.namelist()
            if not any(name.endswith(".pkl") for name in names):  # where torch says what the tensors are
                raise FileError(
                    "this is a zip archive that torch did not write",
                    where=path,
                    values=f"it holds {as_text(', '.join(names[:3])[:200]) or 'nothing'}",
                    fix="unpack it and give the file inside",
                )
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise FileError(
                        "the torch file is compressed inside",
                        where=path,
                        values=info.filename[:200],
                        fix="save it again",
                    )
                if info.filename.endswith(".pkl") and info.file_size > MAX_PICKLE_BYTES:
                    raise FileError(
                        "the torch file describes more than any model has",
                        where=path,
                        values=f"{info.file_size:,} bytes before the first number",
                        fix="save only the weights, as safetensors",
                    )
                if info.filename.rpartition("/")[2] == "byteorder" and archive.read(info)[:16] != b"little":
                    raise UnsupportedError(
                        "the torch file stores numbers with the high byte first",
                        where=path,
                        fix="load it on a common machine (x86, ARM) and save it as safetensors",
                    )
                places[begin_of(info, file)] = info.file_size
    except (FileError, UnsupportedError):
        raise
    except zipfile.BadZipFile:
        raise FileError(
            "neither a safetensors file nor a torch file that can be read piece by piece",
            where=path,
            fix="save the weights again as safetensors",
        ) from None
    except Exception as error:  # the archive's own fields lie
        raise _damaged(path, error) from None
    return places
