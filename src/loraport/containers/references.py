"""Weights in files by what headers say: which there are, what they are called, how they are stored. No torch.

Everything above this room that wants no numbers comes in here, what wants them through `tensors.py`, and what stores
others through `encoded.py`.
"""

from dataclasses import replace
from pathlib import Path

from loraport.containers import dtypes
from loraport.containers.access import nearest_path
from loraport.containers.codecs.registry import ENCODED, codec_of, logical_group
from loraport.containers.stored import (
    TensorFile,
    TensorRef,
    file_identity,
    is_contiguous,
    list_stored,
    pour,
    read_bytes,
)
from loraport.errors import UnsupportedError

_LOOKED_AT = 4096  # bytes of a tensor at a time, to see whether it is zero

__all__ = [
    "TensorFile",
    "TensorRef",
    "all_zero",
    "can_encode",
    "common_dtype",
    "file_identity",
    "identity",
    "nearest_path",
    "open_tensors",
    "place",
    "read_number",
    "refusal",
    "require_readable",
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


def identity(ref: TensorRef) -> tuple[str, str]:
    """Under which names a digest can be remembered: the state of the files it depends on, and the tensor in them.

    Raises:
        FileError: a file is gone.
    """
    return "\n".join(map(file_identity, ref.files)), place(ref)


def place(ref: TensorRef) -> str:
    """Which tensor of its files it is, and as what it is read."""
    rows = "" if ref.rows is None else "".join(f"[{start}:{end}]" for start, end in ref.rows)
    codec = "" if ref.codec == "raw" else f" {ref.codec}"
    return "/".join((*ref.nest, ref.key)) + rows + codec


def refusal(ref: TensorRef) -> str | None:
    """Why a tensor cannot be read as a weight ("nvfp4", "integers (I64)"); None where it can."""
    return codec_of(ref).refusal(ref)


def require_readable(ref: TensorRef) -> None:
    """Raise UnsupportedError, by name, for a tensor that cannot be read as a weight."""
    reason = refusal(ref)
    if reason is not None:
        raise UnsupportedError(
            f"{ref.key} cannot be read as a weight: {reason}",
            where=str(ref.file),
            values=f"{ref.dtype} {list(ref.shape)}",
            fix="use the bf16, fp16 or fp32 copy",
        )


def can_encode(ref: TensorRef) -> bool:
    """Whether other numbers can be stored in the place of a tensor, in the same way."""
    return refusal(ref) is None and isinstance(codec_of(ref), ENCODED)


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


def read_number(ref: TensorRef) -> float | bool:
    """The number of a tensor that has one. Raises FileError; UnsupportedError where it is stored in no plain format."""
    if ref.codec != "raw" or ref.dtype not in dtypes.FORMATS:
        require_readable(ref)
    return dtypes.number(ref.dtype, read_bytes(ref))


def all_zero(ref: TensorRef) -> bool:
    """Whether a weight is all zero. Reads it up to the first piece that shows that it is not.

    Raises:
        FileError, UnsupportedError: it cannot be read.
        NumericalError: it is stored with scales, or in pieces, and holds NaN or infinity.
    """
    require_readable(ref)
    if ref.codec == "raw" and is_contiguous(ref):
        return all(dtypes.all_zero(ref.dtype, bytes(part)) for part in pour(ref, memoryview(bytearray(_LOOKED_AT))))
    from loraport.containers.tensors import read_float  # only the numbers tell, and they want torch

    return not bool(read_float(ref).any())
