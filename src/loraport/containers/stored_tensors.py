"""Stored tensors as torch has them: their bytes, read one tensor at a time in bounded memory, and hashed meanwhile."""

import hashlib
from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from loraport.containers.access import open_file
from loraport.containers.dtypes import FORMATS, name_of
from loraport.containers.safetensors import Span
from loraport.containers.sent import bytes_sent
from loraport.containers.stored import (
    TensorRef,
    chunks,
    fill,
    identifying,
    is_contiguous,
    pieces_of,
    shape_of_rows,
    span_of,
)
from loraport.errors import FileError, UnsupportedError

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray


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
    sent = bytes_sent(ref)
    if sent is not None:
        buffer = memory(len(sent))
        buffer.numpy()[:] = sent
        if state is not None:
            state.update(identifying(ref.dtype, ref.shape))
            state.update(buffer.numpy().data)
        return buffer.view(_dtype_of(ref)).reshape(ref.shape_in_file)
    span, dtype = _where(ref)
    if state is not None:
        state.update(identifying(ref.dtype, ref.shape))
    if span.strides is not None:
        whole = torch.empty(span.end - span.start, dtype=torch.uint8)
        with open_file(ref.file) as file:
            fill(file, span.start, whole.numpy().data, ref.name)
        tensor = whole.view(dtype).as_strided(span.shape, span.strides)
        if ref.rows is not None:
            tensor = torch.cat([tensor[start:end] for start, end in ref.rows])
        tensor = tensor.contiguous()
        if state is not None:
            state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return tensor
    pieces = pieces_of(ref, span)
    buffer = memory(sum(size for _, size in pieces))
    target, done = buffer.numpy().data, 0
    with open_file(ref.file) as file:
        for position, size in pieces:
            part = target[done : done + size]
            fill(file, position, part, ref.name)
            done += size
            if state is not None:
                state.update(part)
    return buffer.view(dtype).reshape(shape_of_rows(span.shape, ref.rows))


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
    sent = bytes_sent(ref)
    if sent is not None:
        yield from _stream_sent(sent, state, torch.empty(count, dtype=_dtype_of(ref)))
        return
    span, dtype = _where(ref)
    buffer = torch.empty(count, dtype=dtype)
    target, filled = buffer.view(torch.uint8).numpy().data, 0
    with open_file(ref.file) as file:
        for position, size in pieces_of(ref, span):
            done = 0
            while done < size:
                part = min(size - done, len(target) - filled)
                fill(file, position + done, target[filled : filled + part], ref.name)
                done, filled = done + part, filled + part
                if filled == len(target):
                    state.update(target)
                    yield buffer
                    filled = 0
    if filled:
        state.update(target[:filled])
        yield buffer[: filled // dtype.itemsize]


def _stream_sent(sent: "NDArray[uint8]", state: Hash, buffer: Tensor) -> Iterator[Tensor]:
    target = buffer.view(torch.uint8).numpy()
    for start in range(0, len(sent), len(target)):
        part = target[: min(len(target), len(sent) - start)]
        part[:] = sent[start : start + len(part)]
        state.update(part.data)
        yield buffer[: len(part) // buffer.dtype.itemsize]


def _dtype_of(ref: TensorRef) -> torch.dtype:
    """torch's name of the stored numbers; bytes where it has none and a codec knows what to make of them."""
    known = FORMATS.get(ref.dtype)
    if known is None and ref.codec == "raw":
        raise UnsupportedError(
            f"{ref.key} has a number format that is not known", where=str(ref.file), values=ref.dtype
        )
    dtype: torch.dtype = torch.uint8 if known is None else getattr(torch, known.dtype)
    return dtype


def _where(ref: TensorRef) -> tuple[Span, torch.dtype]:
    span, dtype = span_of(ref), _dtype_of(ref)
    if span.strides is None and prod(span.shape) * dtype.itemsize != span.end - span.start:
        raise FileError(
            "the size of a tensor does not fit its shape",
            where=ref.name,
            values=f"{span.end - span.start:,} bytes for {ref.dtype} {list(span.shape)}",
            fix="download or export the file again",
        )
    return span, dtype


def hash_stored(ref: TensorRef, state: Hash) -> None:
    """Feed `state` as `read_stored` does, in the memory of one chunk. Raises FileError."""
    if not is_contiguous(ref):
        read_stored(ref, state)
        return
    state.update(identifying(ref.dtype, ref.shape))
    for part in chunks(ref):
        state.update(part)


def digest_tensor(tensor: Shaped[Tensor, "..."]) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor in memory, as hex; that of the same tensor in a file."""
    tensor = tensor.detach().cpu().contiguous()
    state = hashlib.sha256(identifying(str(name_of(tensor.dtype)), tuple(tensor.shape)))
    state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
