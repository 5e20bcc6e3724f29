"""The number formats of tensors in files, in one table: name, torch's name, size, precision; and single numbers."""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

PlainFormat = Literal["bfloat16", "float16", "float32"]
"""What quantised weights may become, by torch's names."""

_ROUNDING_SHARE = 0.2125  # rms relative rounding error of Gaussian weights, in units of the spacing at 1; measured


@dataclass(frozen=True)
class NumberFormat:
    """How the entries of a tensor are stored.

    Args:
        name: as safetensors headers spell it.
        dtype: torch's name, "bfloat16".
        item_bytes: size of one entry.
        significand_bits: precision with the hidden bit; None for formats that are no floating-point numbers.
        least_exponent: the smallest normal number is 2 to this power.
    """

    name: str
    dtype: str
    item_bytes: int
    significand_bits: int | None = None
    least_exponent: int = 0


FORMATS: dict[str, NumberFormat] = {
    item.name: item
    for item in (
        NumberFormat("F64", "float64", 8, 53, -1022),
        NumberFormat("F32", "float32", 4, 24, -126),
        NumberFormat("F16", "float16", 2, 11, -14),
        NumberFormat("BF16", "bfloat16", 2, 8, -126),
        NumberFormat("F8_E4M3", "float8_e4m3fn", 1, 4, -6),
        NumberFormat("F8_E5M2", "float8_e5m2", 1, 3, -14),
        NumberFormat("I64", "int64", 8),
        NumberFormat("I32", "int32", 4),
        NumberFormat("I16", "int16", 2),
        NumberFormat("I8", "int8", 1),
        NumberFormat("U64", "uint64", 8),
        NumberFormat("U32", "uint32", 4),
        NumberFormat("U16", "uint16", 2),
        NumberFormat("U8", "uint8", 1),
        NumberFormat("BOOL", "bool", 1),
    )
}
_NAMES = {item.dtype: item.name for item in FORMATS.values()}
# What a LoRA is written in when it should stay as it was; anything else is written in float32.
_WRITTEN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def name_of(dtype: object) -> str | None:
    """The safetensors name of a torch type, or None for one that is not read here."""
    return _NAMES.get(str(dtype).removeprefix("torch."))


def is_float(name: str) -> bool:
    """Whether a format holds floating-point numbers; False for one that is not known."""
    return name in FORMATS and FORMATS[name].significand_bits is not None


def written_as(name: str) -> str:
    """The torch name of the dtype in which factors stored as `name` are written again: its own, else float32."""
    return _WRITTEN.get(name, "float32")


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
        smallest = 2.0 ** FORMATS[name].least_exponent
        edge, step = smallest / rms, smallest * 2.0 ** (1 - bits) / rms
        below = math.erf(edge / math.sqrt(2.0))
        energy = below - edge * math.sqrt(2.0 / math.pi) * math.exp(-(edge**2) / 2.0)
        square = min(square * (1.0 - energy) + below * step**2 / 12.0, 1.0)
    return math.sqrt(2.0 * square)


def number(name: str, data: bytes) -> float | bool:
    """One number from its bytes in a file.

    Args:
        name: of a number format of the table.
        data: as many bytes as one number has.
    """
    return _READ[name](data) if name in _READ else int.from_bytes(data, "little", signed=name.startswith("I"))


def all_zero(name: str, data: bytes) -> bool:
    """Whether all numbers of a floating-point format are zero, of either sign.

    Args:
        name: of a floating-point format of the table.
        data: the numbers in a file.
    """
    size = FORMATS[name].item_bytes
    return not any(data[byte::size].strip(b"\0\x80" if byte == size - 1 else b"\0") for byte in range(size))


def _e4m3(data: bytes) -> float:
    sign, exponent, fraction = -1.0 if data[0] & 0x80 else 1.0, data[0] >> 3 & 15, data[0] & 7
    if (exponent, fraction) == (15, 7):
        return math.nan
    return sign * ((1 + fraction / 8) * 2.0 ** (exponent - 7) if exponent else fraction * 2.0**-9)


_READ: dict[str, Callable[[bytes], float | bool]] = {
    "F64": lambda data: float(struct.unpack("<d", data)[0]),
    "F32": lambda data: float(struct.unpack("<f", data)[0]),
    "F16": lambda data: float(struct.unpack("<e", data)[0]),
    "BF16": lambda data: float(struct.unpack("<f", b"\0\0" + data)[0]),  # the upper half of a float32
    "F8_E5M2": lambda data: float(struct.unpack("<e", b"\0" + data)[0]),  # the upper half of a float16
    "F8_E4M3": _e4m3,
    "BOOL": lambda data: data != b"\0",
}
