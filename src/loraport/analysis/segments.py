"""Singular directions after a random update, one segment of the spectrum after the other.

A small update mixes directions whose singular values lie close, and those far apart so little that perturbation theory
tells how much. So a random update is not decomposed whole: a segment of the spectrum is, with its neighbours on both
sides, and what its new directions have of all others is what an update of this size gives them in the mean. That costs
less than a third, and is within 0.01 of the whole in every figure that is told (`tests/analysis/test_segments.py`).
What is measured is never treated so.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.analysis.coordinates import Coordinates, Turned, turned

SEGMENTS = 12
"""The decomposition of three of them together is 1/64 of the whole."""
SMALL = 384
"""Up to so many directions the whole costs as little."""
FAR = 0.05
"""Of a new direction's squared length, what may lie in far directions; where it is more, the whole is decomposed."""
PULL = 0.15
"""Share that far directions may have in how an update of low rank acts between near ones: its entries hang together, so
that a detour over far ones adds up."""


def turned_at_random(
    S: Float[Tensor, " p"], update: Coordinates, spread: float, largest: float, *, name: str = "matrix"
) -> Turned:
    """`turned` for a random update.

    Args:
        S: singular values of the weight, descending.
        update: Gaussian, or a product of Gaussian factors.
        spread: mean square of an entry of it.
        largest: about its largest singular value, where it is of low rank; else 0.
        name: of the layer, for messages.

    Raises:
        NumericalError: no driver could do it.
    """
    p = len(S)
    width = -(-p // SEGMENTS)
    segments = [(first, min(first + width, p)) for first in range(0, p, width)]
    if p <= SMALL or not all(_little_is_far(S, each, width, spread, largest) for each in segments):
        return turned(S, update, name=name)
    found = Turned(*(S.new_zeros(size) for size in ((p,), (p, p), (p, p), (p,), (p,))))
    for first, last in segments:
        low, high = max(first - width, 0), min(last + width, p)
        own, at = slice(first - low, last - low), slice(first, last)
        part = turned(S[low:high], update.between(low, high), name=name)
        mine, others, apart = _far(S, part.S[own], low, high)
        shares = spread * ((mine + others) / apart.square()).sum(0)
        length = 1 / (1 + shares)
        found.S[at] = part.S[own] * (1 + spread * (1 / apart).sum(0))
        found.left[low:high, at] = part.left[:, own] * length.sqrt()
        found.right[low:high, at] = part.right[:, own] * length.sqrt()
        found.left_rest[at] = (part.left_rest[own] + shares) * length
        found.right_rest[at] = shares * length
    return found


def _far(
    S: Float[Tensor, " p"], values: Float[Tensor, " c"], low: int, high: int
) -> tuple[Float[Tensor, "1 c"], Float[Tensor, "f 1"], Float[Tensor, "f c"]]:
    """Squared singular values: of some directions, of those outside of [low, high), and their differences."""
    others = torch.cat([S[:low], S[high:]]).square()[:, None]
    mine = values.square()[None, :]
    return mine, others, mine - others


def _little_is_far(S: Float[Tensor, " p"], segment: tuple[int, int], width: int, spread: float, largest: float) -> bool:
    """Whether second-order perturbation tells what a segment has to do with directions beyond its neighbours."""
    first, last = segment
    mine, others, apart = _far(S, S[first:last], max(first - width, 0), last + width)
    shares = spread * ((mine + others) / apart.square()).sum(0)
    pull = largest * (torch.maximum(mine, others).sqrt() / apart.abs()).sum(0) / len(S)
    return bool((shares <= FAR).all()) and bool((pull <= PULL).all())
