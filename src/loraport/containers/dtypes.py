"""The number formats of tensors in files, in one table: name, torch's type, size, precision."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDING_SHARE = 0.2125  # rms relative rounding error of Gaussian weights, in units of the spacing at 1; measured


@dataclass(frozen=True)
class NumberFormat:
    """How the entries of a tensor are stored.

    Args:
        name: as safetensors headers spell it.
        dtype: torch's type.
        item_bytes: size of one entry.
        significand_bits: precision with the hidden bit; None for formats that are no floating-point numbers.
    """

    name: str
    dtype: torch.dtype
    item_bytes: int
    significand_bits: int | None = None


FORMATS: dict[str, NumberFormat] = {
    item.name: item
    for item in (
        NumberFormat("F64", torch.float64, 8, 53),
        NumberFormat("F32", torch.float32, 4, 24),
        NumberFormat("F16", torch.float16, 2, 11),
        NumberFormat("BF16", torch.bfloat16, 2, 8),
        NumberFormat("F8_E4M3", torch.float8_e4m3fn, 1, 4),
        NumberFormat("F8_E5M2", torch.float8_e5m2, 1, 3),
        NumberFormat("I64", torch.int64, 8),
        NumberFormat("I32", torch.int32, 4),
        NumberFormat("I16", torch.int16, 2),
        NumberFormat("I8", torch.int8, 1),
        NumberFormat("U64", torch.uint64, 8),
        NumberFormat("U32", torch.uint32, 4),
        NumberFormat("U16", torch.uint16, 2),
        NumberFormat("U8", torch.uint8, 1),
        NumberFormat("BOOL", torch.bool, 1),
    )
}
_NAMES = {item.dtype: item.name for item in FORMATS.values()}
# What a LoRA is written in when it should stay as it was; anything else is written in float32.
_WRITTEN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def name_of(dtype: torch.dtype) -> str | None:
    """The safetensors name of a torch type, or None for one that is not read here."""
    return _NAMES.get(dtype)


def is_float(name: str) -> bool:
    """Whether a format holds floating-point numbers; False for one that is not known."""
    return name in FORMATS and FORMATS[name].significand_bits is not None


def written_as(name: str) -> str:
    """The torch name of the dtype in which factors stored as `name` are written again: its own, else float32."""
    return _WRITTEN.get(name, "float32")


def cast(numbers: Float[Tensor, "..."], name: str) -> Float[Tensor, "..."]:
    """Numbers in a format, each rounded to the nearest. 8 bits have no infinity to show that one is too large for
    them, so there the largest number is taken."""
    dtype = FORMATS[name].dtype
    if FORMATS[name].item_bytes == 1:
        largest = torch.finfo(dtype).max
        numbers = numbers.clamp(-largest, largest)
    return numbers.to(dtype)


def common_dtype(a: str, b: str) -> str | None:
    """The torch name of the coarser of two dtypes, to which both weights are rounded before they are compared.

    Otherwise the rounding of one file alone would pass for a difference. None where they are equal, or where one
    of them is narrower than 16 bits: rounding the other to it would throw away most of what it holds.
    """
    if a == b or not {a, b} <= {"F64", "F32", "F16", "BF16"}:
        return None
    return "bfloat16" if "BF16" in (a, b) else "float16" if "F16" in (a, b) else None


def rounding_floor(name: str, rms: float | None = None) -> float:
    """Relative Frobenius distance of two equal weights that were rounded to this dtype from different neighbours.

    A drift no larger than that cannot be told from rounding noise. 0.0 for a format that is not known.

    Args:
        name: of the number format.
        rms: of the weight, taken as Gaussian. Below the smallest normal number the spacing stays the same, so small
            weights lose more; without it the weight is taken to be well above.
    """
    bits = FORMATS[name].significand_bits if name in FORMATS else None
    if bits is None:
        return 0.0
    square = (_ROUNDING_SHARE * 2.0 ** (1 - bits)) ** 2
    if rms:
        limits = torch.finfo(FORMATS[name].dtype)
        edge, step = limits.smallest_normal / rms, limits.smallest_normal * limits.eps / rms
        below = math.erf(edge / math.sqrt(2.0))
        energy = below - edge * math.sqrt(2.0 / math.pi) * math.exp(-(edge**2) / 2.0)
        square = min(square * (1.0 - energy) + below * step**2 / 12.0, 1.0)
    return math.sqrt(2.0 * square)
