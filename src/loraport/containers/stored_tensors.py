"""Stored tensors as torch has them: their bytes, read one tensor at a time in bounded memory, and hashed meanwhile."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from loraport.containers.access import open_file
from loraport.containers.dtypes import FORMATS, name_of
from loraport.containers.safetensors import CHUNK_BYTES
from loraport.containers.sent import bytes_sent
from loraport.containers.stored import (
    TensorRef,
    fill,
    identifying,
    is_contiguous,
    pour,
    span_of,
)
from loraport.errors import FileError, UnsupportedError


@runtime_checkable
class Hash(Protocol):
    """Something that adds up bytes as they come, as those of hashlib and xxhash do."""

    def update(self, data: bytes | memoryview, /) -> object:
        """More bytes."""
        ...


def in_memory(count: int) -> UInt8[Tensor, " n"]:
    """So many bytes of ordinary memory."""
    return torch.empty(count, dtype=torch.uint8)


def read_stored(
    ref: TensorRef, state: Hash | None = None, memory: Callable[[int], Tensor] = in_memory
) -> Shaped[Tensor, "..."]:
    """Read one tensor in its stored dtype and shape to the CPU; peak memory is the tensor itself.

    Args:
        ref: which tensor; companions are not looked at. A number format that torch does not have comes as bytes where
            a codec knows what to make of them.
        state: fed with what identifies the tensor (dtype, shape, bytes), as the bytes come in.
        memory: gives so many bytes to read into. A tensor whose numbers are not in order in the file has its own.

    Raises:
        FileError: the file is gone, damaged, or changed since the reference was made.
        UnsupportedError: a dtype that torch cannot hold.
    """
    dtype = _dtype_of(ref)
    update = (lambda data: None) if state is None else state.update
    update(identifying(ref.dtype, ref.shape))
    if not is_contiguous(ref):
        tensor = _strided(ref, dtype)
        update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return tensor
    _check_size(ref, dtype)
    buffer = memory(prod(ref.shape_in_file) * dtype.itemsize)
    for part in pour(ref, buffer.numpy().data):
        update(part)
    return buffer.view(dtype).reshape(ref.shape_in_file)


def stream_stored(ref: TensorRef, state: Hash, count: int) -> Iterator[Shaped[Tensor, " k"]]:
    """The numbers of a contiguous tensor as `read_stored` has them, so many at a time, always in the same memory.

    Args:
        ref: which tensor.
        state: as for `read_stored`.
        count: how many.

    Raises:
        FileError, UnsupportedError: as `read_stored`.
    """
    state.update(identifying(ref.dtype, ref.shape))
    dtype = _dtype_of(ref)
    _check_size(ref, dtype)
    buffer, filled = torch.empty(count, dtype=dtype), 0
    target = buffer.view(torch.uint8).numpy().data
    for part in pour(ref, target):
        state.update(part)
        filled += len(part)
        if filled == len(target):
            yield buffer
            filled = 0
    if filled:
        yield buffer[: filled // dtype.itemsize]


def _strided(ref: TensorRef, dtype: torch.dtype) -> Tensor:
    """A tensor whose numbers are not in order in the file."""
    span = span_of(ref)
    assert span.strides is not None
    whole = torch.empty(span.end - span.start, dtype=torch.uint8)
    with open_file(ref.file) as file:
        fill(file, span.start, whole.numpy().data, ref.name)
    tensor = whole.view(dtype).as_strided(span.shape, span.strides)
    if ref.rows is not None:
        tensor = take_rows(tensor, ref.rows)
    return tensor.contiguous()


def take_rows(tensor: Shaped[Tensor, "M *rest"], rows: Sequence[tuple[int, int]]) -> Shaped[Tensor, "m *rest"]:
    """These half-open ranges of rows, one behind the other."""
    return torch.cat([tensor[start:end] for start, end in rows])


def _dtype_of(ref: TensorRef) -> torch.dtype:
    """torch's name of the stored numbers; bytes where it has none and a codec knows what to make of them."""
    known = FORMATS.get(ref.dtype)
    if known is None and ref.codec == "raw":
        raise UnsupportedError(
            f"{ref.key} has a number format that is not known", where=str(ref.file), values=ref.dtype
        )
    dtype: torch.dtype = torch.uint8 if known is None else getattr(torch, known.dtype)
    return dtype


def _check_size(ref: TensorRef, dtype: torch.dtype) -> None:
    if bytes_sent(ref) is not None:
        return
    span = span_of(ref)
    if prod(span.shape) * dtype.itemsize != span.end - span.start:
        raise FileError(
            "the size of a tensor does not fit its shape",
            where=ref.name,
            values=f"{span.end - span.start:,} bytes for {ref.dtype} {list(span.shape)}",
            fix="download or export the file again",
        )


def hash_stored(ref: TensorRef, state: Hash) -> None:
    """Feed `state` as `read_stored` does, in the memory of one piece. Raises FileError."""
    if not is_contiguous(ref):
        read_stored(ref, state)
        return
    state.update(identifying(ref.dtype, ref.shape))
    for part in pour(ref, memoryview(bytearray(min(ref.own_bytes, CHUNK_BYTES)))):
        state.update(part)


def digest_tensor(tensor: Shaped[Tensor, "..."]) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor in memory, as hex; that of the same tensor in a file."""
    tensor = tensor.detach().cpu().contiguous()
    state = hashlib.sha256(identifying(str(name_of(tensor.dtype)), tuple(tensor.shape)))
    state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
