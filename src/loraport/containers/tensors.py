"""Weights in files: what they are called, and their numbers, whatever they are stored as.

The way of a weight: bytes (`stored.py`) -> codec (`codecs/`) -> float32. Everything above this room comes in here.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from loraport.containers import dtypes
from loraport.containers.access import nearest_path
from loraport.containers.codecs.base import Encoder
from loraport.containers.codecs.registry import codec_of, logical_group
from loraport.containers.stored import (
    TensorFile,
    TensorRef,
    digest_tensor,
    file_identity,
    hash_stored,
    list_stored,
    read_stored,
)
from loraport.errors import NumericalError, UnsupportedError

__all__ = [
    "Encoded",
    "TensorFile",
    "TensorRef",
    "can_encode",
    "common_dtype",
    "digest",
    "digest_tensor",
    "encode",
    "file_identity",
    "identity",
    "nearest_path",
    "open_tensors",
    "read_float",
    "read_float_with_digest",
    "read_numbers",
    "read_tensor",
    "refusal",
    "rounding_floor",
]


def open_tensors(path: Path) -> TensorFile:
    """List the weights of a safetensors, torch or GGUF file without reading their data.

    Raises:
        FileError: missing, damaged, or unsafe to load.
        UnsupportedError: tensors of a type, or a GGUF file of a version, that is not known.
    """
    file = list_stored(path)
    return replace(file, groups={nest: logical_group(group, file.metadata) for nest, group in file.groups.items()})


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
    _require_readable(ref)
    stored = read_stored(ref)
    return _finite(_decode(ref, stored), stored, ref)


def read_float_with_digest(ref: TensorRef) -> tuple[Float32[Tensor, "..."], str]:
    """`read_float(ref)` and `digest(ref)` of one and the same read: what is hashed is what is returned.

    Raises:
        FileError, UnsupportedError, NumericalError: as `read_float`.
    """
    _require_readable(ref)
    state = hashlib.sha256()
    stored = read_stored(ref, state)
    parts = {role: read_float_with_digest(companion) for role, companion in ref.companions}
    tensor = codec_of(ref).decode(ref, stored, {role: numbers for role, (numbers, _) in parts.items()})
    return _finite(tensor, stored, ref), _joined(ref, state, {role: text for role, (_, text) in parts.items()})


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
    return refusal(ref) is None and isinstance(codec_of(ref), Encoder)


def encode(ref: TensorRef, numbers: Float[Tensor, "..."]) -> Encoded:
    """Other numbers in the place of a tensor, stored in the same way.

    Args:
        ref: which, whole; `can_encode` is true of it.
        numbers: of its shape.
    """
    codec = codec_of(ref)
    assert isinstance(codec, Encoder)
    stored, scales = codec.encode(ref, numbers, {role: read_float(companion) for role, companion in ref.companions})
    back = stored.double() if numbers.dtype == torch.float64 else codec_of(ref).decode(ref, stored, scales)
    beside = [(other, dtypes.cast(scales[role], other.dtype)) for role, other in ref.companions]
    return Encoded(((ref, stored), *beside), back)


def digest(ref: TensorRef) -> str:
    """SHA-256 over dtype, shape and bytes, as hex, companions included.

    The same tensor has the same digest in any container. Raises FileError.
    """
    state = hashlib.sha256()
    hash_stored(ref, state)
    return _joined(ref, state, {role: digest(companion) for role, companion in ref.companions})


def identity(ref: TensorRef) -> tuple[str, str]:
    """Under which names a digest can be remembered: the state of the files it depends on, and the tensor in them.

    Raises:
        FileError: a file is gone.
    """
    files = dict.fromkeys([ref.file, *(companion.file for _, companion in ref.companions)])
    rows = "" if ref.rows is None else "".join(f"[{start}:{end}]" for start, end in ref.rows)
    codec = "" if ref.codec == "raw" else f" {ref.codec}"
    return "\n".join(file_identity(file) for file in files), "/".join((*ref.nest, ref.key)) + rows + codec


def refusal(ref: TensorRef) -> str | None:
    """Why a tensor cannot be read as a weight ("nvfp4", "integers (I64)"); None where it can."""
    return codec_of(ref).refusal(ref)


def rounding_floor(ref: TensorRef, rms: float | None = None) -> float:
    """Relative Frobenius distance of two equal weights that were stored so from different neighbours.

    A drift no larger than that of the coarser weight cannot be told from rounding noise.

    Args:
        ref: the weight.
        rms: root of the mean square of its numbers, if it is known. Numbers that are stored as they are, without a
            scale that makes them large, lose more the smaller they are.
    """
    if ref.codec == "raw":
        return dtypes.rounding_floor(ref.dtype, rms)
    return codec_of(ref).rounding_floor(ref)


def common_dtype(a: TensorRef, b: TensorRef) -> str | None:
    """The torch name of the dtype to which both weights are rounded before they are compared, or None.

    Weights that had to be decoded are compared as they are.
    """
    return dtypes.common_dtype(a.dtype, b.dtype) if a.codec == b.codec == "raw" else None


def _decode(ref: TensorRef, stored: Shaped[Tensor, "..."]) -> Float32[Tensor, "..."]:
    return codec_of(ref).decode(ref, stored, {role: read_float(companion) for role, companion in ref.companions})


def _joined(ref: TensorRef, state: "hashlib._Hash", companions: dict[str, str]) -> str:
    if ref.codec == "raw":
        return state.hexdigest()
    lines = [ref.codec, state.hexdigest(), *(f"{role} {text}" for role, text in companions.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _require_readable(ref: TensorRef) -> None:
    reason = refusal(ref)
    if reason is not None:
        raise UnsupportedError(
            f"{ref.key} cannot be read as a weight: {reason}",
            where=str(ref.file),
            values=f"{ref.dtype} {list(ref.shape)}",
            fix="use the bf16, fp16 or fp32 copy",
        )


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
