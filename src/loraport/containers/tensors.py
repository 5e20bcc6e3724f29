"""The numbers of weights in files, whatever they are stored as.

The way of a weight: bytes (`stored_tensors.py`) -> what its codec makes of them (`decoding/`) -> float32. Everything
above this room that wants numbers comes in here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Shaped, UInt8
from torch import Tensor

from loraport.containers.codecs.registry import codec_of
from loraport.containers.decoding import decode
from loraport.containers.references import (
    TensorRef,
    file_identity,
    open_tensors,
    require_readable,
)
from loraport.containers.sent import Place, place_of
from loraport.containers.stored import is_contiguous
from loraport.containers.stored_tensors import (
    digest_tensor,
    hash_stored,
    in_memory,
    read_stored,
    stream_stored,
    take_rows,
)
from loraport.containers.sums import RunningSums, Sums
from loraport.errors import NumericalError

__all__ = [
    "AsRead",
    "Sums",
    "TensorRef",
    "can_stream",
    "digest",
    "digest_tensor",
    "file_identity",
    "open_tensors",
    "read_float",
    "read_float_with_digest",
    "read_numbers",
    "read_tensor",
    "read_with_sums",
    "stored_with_sums",
    "subtract",
    "take_rows",
]


_CPU = torch.device("cpu")
_SENT_AS_STORED = ("BF16", "F16", "F32")
_STRIP = {"cpu": 1 << 20}  # numbers worked on together: on the CPU so many stay in the processor's cache,
_STREAMED = 1 << 16  # numbers that are read, made float32 and subtracted at a time: in its nearest one
_STRIP_ON_A_DEVICE = 1 << 24  # elsewhere so many are sent as quickly as all at once


def read_tensor(ref: TensorRef) -> Shaped[Tensor, "..."]:
    """Read one tensor in its stored dtype, or in float32 where the stored numbers are not the weight itself.

    Raises:
        FileError: the file is gone, damaged, or changed since the reference was made.
        UnsupportedError: a dtype or a way of storing that is not read.
        NumericalError: a scale that is NaN or infinite.
    """
    if ref.codec == "raw":
        return read_stored(ref)
    require_readable(ref)
    return _decode(ref, read_stored(ref))


def read_float(ref: TensorRef) -> Float32[Tensor, "..."]:
    """Read one tensor as float32.

    Raises:
        FileError, UnsupportedError: as `read_tensor`; UnsupportedError also for integers.
        NumericalError: it holds NaN or infinity, or numbers beyond float32; by name.
    """
    require_readable(ref)
    stored = read_stored(ref)
    return _finite(_decode(ref, stored), stored, ref)


@dataclass(frozen=True)
class AsRead:
    """A tensor on the host as it was read.

    Args:
        ref: which one.
        stored: its numbers: as they lie in the file where every device makes float32 of them, else in float32.
    """

    ref: TensorRef
    stored: Float[Tensor, "..."]

    def float32(self, device: torch.device = _CPU) -> Float32[Tensor, "..."]:
        """The numbers in float32 on a device. A GPU is sent what is stored and makes float32 of it itself.

        Raises:
            NumericalError: they hold NaN or infinity.
        """
        if device.type in ("cpu", "mps") or self.stored.dim() == 0:
            return _finite(self.stored.float().to(device), self.stored, self.ref)
        whole = torch.empty(self.stored.shape, dtype=torch.float32, device=device)
        for rows, part in self._sent(device):
            whole[rows] = part
        return _finite(whole, self.stored, self.ref)

    def strips(self, device: torch.device = _CPU) -> Iterator[tuple[slice, Float32[Tensor, "..."]]]:
        """`float32` in strips of rows, so that the whole never stands there: which rows, and their numbers.

        Raises:
            NumericalError: as `float32`, after the last strip.
        """
        sums = []
        for rows, part in self._sent(device):
            sums.append(part.sum())
            yield rows, part
        if sums and not torch.isfinite(torch.stack(sums)).all():
            self.float32()  # says where

    def _sent(self, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        count = len(self.stored)
        size = _STRIP.get(device.type, _STRIP_ON_A_DEVICE)
        step = max(size * count // max(self.stored.numel(), 1), 1)
        for at in range(0, count, step):
            part = self.stored[at : at + step]
            if device.type in ("cpu", "mps"):  # whether memory is pinned torch would ask the first card that there is
                there = part.float().to(device)
            else:
                there = part.to(device, non_blocking=part.is_pinned())
            yield slice(at, at + len(part)), there.float()


def read_with_sums(
    ref: TensorRef, memory: Callable[[int], Tensor] = in_memory, *, digest: bool = True
) -> tuple[AsRead, Sums]:
    """A tensor and its sums of one and the same read.

    Args:
        ref: which one.
        memory: as for `read_stored`.
        digest: whether the digest is wanted beside the checksum.

    Raises:
        FileError, UnsupportedError: as `read_float`.
        NumericalError: it is not stored as plain numbers, and holds NaN or infinity.
    """
    require_readable(ref)
    state = RunningSums(digest)
    stored = read_stored(ref, state, memory)
    if ref.codec == "raw" and ref.dtype in _SENT_AS_STORED:
        return AsRead(ref, stored), state.sums(ref, {})
    parts = {role: read_with_sums(companion, digest=digest) for role, companion in ref.companions}
    tensor = decode(codec_of(ref), ref, stored, {role: read.float32() for role, (read, _) in parts.items()})
    sums = state.sums(ref, {role: sums for role, (_, sums) in parts.items()})
    return AsRead(ref, _finite(tensor, stored, ref)), sums


def can_stream(ref: TensorRef) -> bool:
    """Whether `subtract` takes a tensor: plain numbers that follow each other in the file. Raises FileError."""
    return ref.codec == "raw" and ref.dtype in _SENT_AS_STORED and is_contiguous(ref)


def subtract(one: TensorRef, other: TensorRef, found: Float32[Tensor, "..."]) -> tuple[str, str, float]:
    """The difference of two tensors of one shape in float32, formed while both are read, with neither ever whole.

    Args:
        one: from which.
        other: what is taken away.
        found: where the difference goes.

    Returns:
        The checksums of both, and a sum that is finite only if every number of both is.

    Raises:
        FileError, UnsupportedError: as `read_float`.
    """
    states, total = (RunningSums(False), RunningSums(False)), 0.0
    streams = (stream_stored(ref, state, _STREAMED) for ref, state in zip((one, other), states, strict=True))
    for to, minuend, subtrahend in zip(found.reshape(-1).split(_STREAMED), *streams, strict=True):
        total += float(torch.sub(minuend.float(), subtrahend.float(), out=to).sum())
    first, second = (state.sums(ref, {}).checksum for ref, state in zip((one, other), states, strict=True))
    return first, second, total


def stored_with_sums(ref: TensorRef, *, digest: bool = True) -> tuple[dict[Place, UInt8[Tensor, " n"]], Sums]:
    """A tensor for another machine, and its sums of one and the same read.

    Args:
        ref: which one.
        digest: as for `read_with_sums`.

    Returns:
        Its bytes and those of its companions as they are stored, by where they lie; and the sums.

    Raises:
        FileError, UnsupportedError: as `read_tensor`.
    """
    state = RunningSums(digest)
    stored = {place_of(ref): read_stored(ref, state).reshape(-1).view(torch.uint8)}
    parts = {role: stored_with_sums(companion, digest=digest) for role, companion in ref.companions}
    for others, _ in parts.values():
        stored |= others
    return stored, state.sums(ref, {role: sums for role, (_, sums) in parts.items()})


def read_float_with_digest(ref: TensorRef) -> tuple[Float32[Tensor, "..."], str]:
    """`read_float(ref)` and `digest(ref)` of one and the same read. Raises as `read_float`."""
    read, sums = read_with_sums(ref)
    assert sums.digest is not None
    return read.float32(), sums.digest


def read_numbers(ref: TensorRef) -> Float[Tensor, "..."]:
    """Read one tensor as float32, or as float64 where it is stored so. Raises as `read_float`."""
    if ref.dtype != "F64" or ref.codec != "raw":
        return read_float(ref)
    stored = read_stored(ref)
    return _finite(stored, stored, ref)


def digest(ref: TensorRef) -> str:
    """SHA-256 over dtype, shape and bytes, as hex, companions included.

    The same tensor has the same digest in any container. Raises FileError.
    """
    return str(sums_of(ref).digest)


def sums_of(ref: TensorRef, *, digest: bool = True) -> Sums:
    """The sums of a tensor, of which nothing is kept. Raises FileError.

    Args:
        ref: which one.
        digest: whether its digest is wanted beside the checksum.
    """
    state = RunningSums(digest)
    hash_stored(ref, state)
    return state.sums(ref, {role: sums_of(companion, digest=digest) for role, companion in ref.companions})


def _decode(ref: TensorRef, stored: Shaped[Tensor, "..."]) -> Float32[Tensor, "..."]:
    return decode(codec_of(ref), ref, stored, {role: read_float(companion) for role, companion in ref.companions})


def _finite(tensor: Float[Tensor, "..."], stored: Shaped[Tensor, "..."], ref: TensorRef) -> Float[Tensor, "..."]:
    # A finite sum proves that every entry is finite; only a suspicious one pays for the exact look.
    if torch.isfinite(tensor.sum()):
        return tensor
    bad = ~torch.isfinite(tensor)
    count = int(bad.sum())
    if count == 0:
        return tensor
    first = [int(index) for index in bad.nonzero()[0]]
    beyond = stored.is_floating_point() and bool(torch.isfinite(stored.double()).all())
    raise NumericalError(
        f"{ref.key} holds {'numbers beyond the range of float32' if beyond else 'NaN or infinity'}",
        where=str(ref.file),
        values=f"{count:,} of {tensor.numel():,} entries, the first at {first}",
        fix="the file is damaged or badly trained; use another copy",
    )
