"""Numbers as they are kept: few digits, as plain values."""

from jaxtyping import Float
from torch import Tensor

from loraport.analysis.quantities import Curve, Matrix, Measured


def ratio(part: float, whole: float) -> float:
    """part / whole, and 0 of nothing."""
    return part / whole if whole > 0 else 0.0


def short(value: float, digits: int = 5) -> float:
    """Few digits: what is kept of hundreds of layers should not be large, and no more is known."""
    return float(f"{value:.{digits}g}")


def measured(value: float, gaussian: float, rounding: float | None = None) -> Measured:
    """A figure beside its null models."""
    return Measured(short(value), short(gaussian), None if rounding is None else short(rounding))


def curve(values: Tensor) -> Curve:
    """A vector."""
    return tuple(short(value) for value in values.tolist())


def grid(values: Tensor, digits: int = 4) -> Matrix:
    """A matrix."""
    return tuple(tuple(short(value, digits) for value in row) for row in values.tolist())


def sampled(S: Float[Tensor, " p"], at: tuple[int, ...]) -> Curve:
    """A vector at some places."""
    return curve(S[list(at)])
