"""Figures that say what happened to an update."""

import math

from loraport.core.operators import Operator, inner


def cosine(a: Operator, b: Operator) -> float:
    """Frobenius cosine <a, b> / (||a|| ||b||); 0 if one of them is zero."""
    scale = a.norm() * b.norm()
    return inner(a, b) / scale if scale > 0 else 0.0


_MANTISSA_BITS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}
_ROUNDING_SHARE = 0.2125  # rms relative rounding error of Gaussian weights, in units of the spacing at 1; measured


def rounding_floor(stored: str) -> float:
    """Relative Frobenius distance of two equal weights that were rounded to this dtype from different neighbours.

    A drift no larger than that cannot be told from rounding noise. `stored` is spelled as in safetensors headers;
    0.0 for a dtype that is not known.
    """
    bits = _MANTISSA_BITS.get(stored)
    return 0.0 if bits is None else math.sqrt(2.0) * _ROUNDING_SHARE * 2.0 ** (1 - bits)
