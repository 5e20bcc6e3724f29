"""The numbers of weights in files, whatever they are stored as.

The way of a weight: bytes (`stored_tensors.py`) -> what its codec makes of them (`decoding/`) -> float32. Everything
above this room that wants numbers comes in here.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from loraport.containers import encoding
from loraport.containers.codecs.registry import codec_of
from loraport.containers.decoding import decode
from loraport.containers.encoding import has_encoder
from loraport.containers.references import (
    TensorFile,
    TensorRef,
    common_dtype,
    file_identity,
    identity,
    nearest_path,
    open_tensors,
    refusal,
    require_readable,
    rounding_floor,
)
from loraport.containers.stored_tensors import digest_tensor, hash_stored, in_memory, read_stored
from loraport.errors import NumericalError

__all__ = [
    "AsRead",
    "Encoded",
    "TensorFile",
    "TensorRef",
    "can_encode",
    "common_dtype",
    "digest",
    "digest_tensor",
    "encode",
    "encode_plainly",
    "file_identity",
    "identity",
    "nearest_path",
    "open_tensors",
    "read_float",
    "read_float_with_digest",
    "read_numbers",
    "read_tensor",
    "read_with_digest",
    "refusal",
    "require_readable",
    "rounding_floor",
]


_CPU = torch.device("cpu")
_SENT_AS_STORED = ("BF16", "F16", "F32")


def read_tensor(ref: TensorRef) -> Shaped[Tensor, "..."]:
    """Read one tensor in its stored dtype, or in float32 where the stored numbers are not the weight itself.

    Raises:
        FileError: the file is gone, damaged, or changed since the reference was made.
        UnsupportedError: a dtype or a way of storing that is not read.
        NumericalError: a scale that is NaN or infinite.
    """
    return read_stored(ref) if ref.codec == "raw" else _decode(ref, read_stored(ref))


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
        if device.type == "cuda":
            moved = self.stored.to(device, non_blocking=self.stored.is_pinned()).float()
        else:
            moved = self.stored.float().to(device)
        return _finite(moved, self.stored, self.ref)


def read_with_digest(ref: TensorRef, memory: Callable[[int], Tensor] = in_memory) -> tuple[AsRead, str]:
    """A tensor and `digest(ref)` of one and the same read: what is hashed is what is returned.

    Args:
        ref: which one.
        memory: as for `read_stored`.

    Raises:
        FileError, UnsupportedError: as `read_float`.
        NumericalError: it is not stored as plain numbers, and holds NaN or infinity.
    """
    require_readable(ref)
    state = hashlib.sha256()
    stored = read_stored(ref, state, memory)
    if ref.codec == "raw" and ref.dtype in _SENT_AS_STORED:
        return AsRead(ref, stored), state.hexdigest()
    parts = {role: read_float_with_digest(companion) for role, companion in ref.companions}
    tensor = decode(codec_of(ref), ref, stored, {role: numbers for role, (numbers, _) in parts.items()})
    found = _joined(ref, state, {role: text for role, (_, text) in parts.items()})
    return AsRead(ref, _finite(tensor, stored, ref)), found


def read_float_with_digest(ref: TensorRef) -> tuple[Float32[Tensor, "..."], str]:
    """`read_float(ref)` and `digest(ref)` of one and the same read. Raises as `read_float`."""
    read, found = read_with_digest(ref)
    return read.float32(), found


def read_numbers(ref: TensorRef) -> Float[Tensor, "..."]:
    """Read one tensor as float32, or as float64 where it is stored so. Raises as `read_float`."""
    if ref.dtype != "F64" or ref.codec != "raw":
        return read_float(ref)
    stored = read_stored(ref)
    return _finite(stored, stored, ref)


@dataclass(frozen=True)
class Encoded:
    """Numbers as they will be stored.

    Args:
        tensors: each stored tensor with its content: the weight's own, and its companions'.
        numbers: what is read back.
    """

    tensors: tuple[tuple[TensorRef, Tensor], ...]
    numbers: Tensor


def can_encode(ref: TensorRef) -> bool:
    """Whether other numbers can be stored in the place of a tensor, in the same way."""
    return refusal(ref) is None and has_encoder(codec_of(ref))


def encode(ref: TensorRef, numbers: Float[Tensor, "..."]) -> Encoded:
    """Other numbers in the place of a tensor, stored in the same way.

    Args:
        ref: which, whole; `can_encode` is true of it.
        numbers: of its shape.
    """
    codec, companions = codec_of(ref), {role: read_float(companion) for role, companion in ref.companions}
    stored, scales = encoding.encode(codec, ref, numbers, companions)
    back = stored.double() if numbers.dtype == torch.float64 else decode(codec, ref, stored, scales)
    beside = [(other, encoding.cast(scales[role], other.dtype)) for role, other in ref.companions]
    return Encoded(((ref, stored), *beside), back)


def encode_plainly(ref: TensorRef, numbers: Float[Tensor, "..."], dtype: str) -> Encoded:
    """The same as numbers of a plain format, which need no companions.

    Args:
        ref: which, whole.
        numbers: of its shape.
        dtype: the format, as safetensors spells it.
    """
    stored = encoding.cast(numbers, dtype)
    return Encoded(((ref, stored),), stored.to(numbers.dtype))


def digest(ref: TensorRef) -> str:
    """SHA-256 over dtype, shape and bytes, as hex, companions included.

    The same tensor has the same digest in any container. Raises FileError.
    """
    state = hashlib.sha256()
    hash_stored(ref, state)
    return _joined(ref, state, {role: digest(companion) for role, companion in ref.companions})


def _decode(ref: TensorRef, stored: Shaped[Tensor, "..."]) -> Float32[Tensor, "..."]:
    return decode(codec_of(ref), ref, stored, {role: read_float(companion) for role, companion in ref.companions})


def _joined(ref: TensorRef, state: "hashlib._Hash", companions: dict[str, str]) -> str:
    if ref.codec == "raw":
        return state.hexdigest()
    lines = [ref.codec, state.hexdigest(), *(f"{role} {text}" for role, text in companions.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
        fix="the file was damaged or badly trained; use another copy",
    )
