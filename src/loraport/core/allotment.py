"""Ranks for many matrices out of one budget: which singular values are worth their bytes."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def allot(energies: Mapping[str, Float[Tensor, " q"]], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """Ranks that hold the most energy in so many bytes.

    One more rank of a matrix costs the same each time and brings less each time, so the terms of all matrices are
    taken in order of energy a byte, until one does not fit. Any other choice that fits holds at most the energy of
    that one term more; where all cost the same and the budget is a whole number of them, none holds more.

    Args:
        energies: name -> squared singular values, the largest first.
        costs: name -> bytes of a rank.
        budget: bytes.

    Returns:
        Name -> rank. Terms without energy are not taken.
    """
    names = list(energies)
    counts = [len(energies[name]) for name in names]
    if not any(counts):
        return dict.fromkeys(names, 0)
    values = torch.cat([energies[name].double() / costs[name] for name in names])
    owners = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(counts))
    order = torch.argsort(values, descending=True, stable=True)
    order = order[values[order] > 0]
    sizes = torch.tensor([costs[name] for name in names])[owners[order]]
    taken = owners[order][sizes.cumsum(0) <= budget]
    ranks = torch.bincount(taken, minlength=len(names))
    return {name: int(rank) for name, rank in zip(names, ranks, strict=True)}


def rank_for_energy(energies: Float[Tensor, " q"], share: float) -> int:
    """The smallest rank that holds a share of the energy; 0 where there is none.

    Args:
        energies: squared singular values, the largest first.
        share: in (0, 1].
    """
    held = energies.double().cumsum(0)
    total = float(held[-1]) if len(held) else 0.0
    if total == 0.0:
        return 0
    return min(int((held < share * total * (1 - 1e-12)).sum()) + 1, len(held))
