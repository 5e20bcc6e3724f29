"""Singular values: how little an update changes those of the weight (Eq. 1), and how many of its own it has."""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from loraport.core.operator import norm, wide

_POINTS = 2000  # of the quadrature of a density


def rigidity(before: Float[Tensor, " p"], after: Float[Tensor, " p"]) -> float:
    """||S' - S|| / ||S||, over singular values in descending order (Eq. 1)."""
    return norm(after - before) / scale if (scale := norm(before)) > 0 else 0.0


def ranks_up_to(p: int) -> tuple[int, ...]:
    """1, 2, 4, ... and p."""
    return (*(2**power for power in range(p.bit_length()) if 2**power < p), p)


def energy_kept(energies: Float[Tensor, " q"], ranks: tuple[int, ...]) -> tuple[float, ...]:
    """Shares of the energy in the first directions, for each number of them.

    Args:
        energies: squared singular values, the largest first; further ones are zero.
        ranks: how many directions.
    """
    held = wide(energies.cpu()).clamp_min(0).cumsum(0)
    total = float(held[-1]) if len(held) else 0.0
    if total == 0.0:
        return tuple(1.0 for _ in ranks)
    return tuple(float(held[min(rank, len(held)) - 1]) / total for rank in ranks)


def energies_of_noise(shape: tuple[int, int]) -> Float64[Tensor, " p"]:
    """Squared singular values of a Gaussian matrix, the largest first, as the Marchenko-Pastur law has them; their sum
    is about p.

    Args:
        shape: (m, n).
    """
    p, longer = min(shape), max(shape)
    ratio = math.sqrt(p / longer)
    angle = (torch.arange(_POINTS, dtype=torch.float64) + 0.5) * (math.pi / _POINTS)
    values = 1 + ratio**2 + 2 * ratio * torch.cos(angle)  # descending
    weight = torch.sin(angle).square() / values.clamp_min(1e-12)  # density times the step, but for a factor
    above = (weight.cumsum(0) - weight / 2) / weight.sum()
    place = (torch.arange(p, dtype=torch.float64) + 0.5) / p
    at = torch.searchsorted(above, place).clamp(1, _POINTS - 1)
    share = (place - above[at - 1]) / (above[at] - above[at - 1]).clamp_min(1e-300)
    return torch.lerp(values[at - 1], values[at], share.clamp(0, 1))


def largest_of_noise(size: float, shape: tuple[int, int]) -> float:
    """Largest singular value of a Gaussian matrix of this Frobenius norm, in the limit of large ones."""
    m, n = shape
    return size * (math.sqrt(m) + math.sqrt(n)) / math.sqrt(m * n)
