"""Figures that say what happened to an update."""

from loraport.core.operators import Operator, inner


def cosine(a: Operator, b: Operator) -> float:
    """Frobenius cosine <a, b> / (||a|| ||b||); 0 if one of them is zero."""
    scale = a.norm() * b.norm()
    return inner(a, b) / scale if scale > 0 else 0.0
