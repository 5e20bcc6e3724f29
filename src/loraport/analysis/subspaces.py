"""Singular directions: how far an update turns them, measured and predicted."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loraport.analysis.coordinates import Coordinates
from loraport.core import labelled

LEADING = 10
"""Directions that are looked at for intruders (arXiv 2410.21228)."""
FOREIGN = 0.5
"""Cosine with every old direction below which a new one is an intruder."""
_ROWS = 128  # worked on at a time, so that the passes over them stay in the processor's cache


def mixing(
    S: Float[Tensor, " p"], update: Coordinates
) -> tuple[Float[Tensor, "p p"], Float[Tensor, "p p"], Float[Tensor, " p"]]:
    """What old direction i has of the squared length of new direction j, by first-order perturbation.

    To first order u'_j = u_j + sum_i Omega_ij u_i with Omega_ij = (S_j C_ij + S_i C_ji) / (S_j^2 - S_i^2), and likewise
    for v with S_i and S_j exchanged. Each pair is taken as a system of two levels, whose angle cannot be beyond 45
    degrees however close they lie (tan 2 theta = 2 Omega), and each new direction is brought back to length one.

    Args:
        S: singular values of the weight.
        update: what is added to it.

    Returns:
        Shares of the longer side's directions, those of the other side's, and what new directions of the longer side
        have outside of all old ones.
    """
    C, energies = update.C, S.square()
    about = torch.finfo(S.dtype)
    floor = max(about.eps * float(energies[0]), about.tiny)  # of a weight of zeros too, where nothing is to be told
    left, right = torch.empty_like(C), torch.empty_like(C)
    for first in range(0, len(S), _ROWS):
        rows = slice(first, first + _ROWS)
        apart = energies[None, :] - energies[rows, None]
        apart = torch.where(apart.abs() < floor, floor, apart)
        sent, received = C[rows], C[:, rows].T.contiguous()
        new, old = S[None, :], S[rows, None]
        left[rows] = _two_levels((sent * new).add_(received * old).div_(apart))
        right[rows] = _two_levels((sent * old).add_(received * new).div_(apart))
    left.fill_diagonal_(0.0)
    beyond = (update.rest_energy / energies.clamp_min(about.tiny)).clamp_max(about.eps**-2)
    lengths = 1 + left.sum(0) + beyond
    left.fill_diagonal_(1.0).div_(lengths)
    right.fill_diagonal_(1.0).div_(right.sum(0))
    return left, right, beyond / lengths


def _two_levels(omega: Float[Tensor, "a b"]) -> Float[Tensor, "a b"]:
    """tan^2 of the angle: (sqrt(1 + x) - 1)^2 / x = x / (sqrt(1 + x) + 1)^2 for x = 4 Omega^2."""
    x = omega.square_().mul_(4.0)
    return x.div_((x + 1.0).sqrt_().add_(1.0).square_())


def leaving(
    shares: Float[Tensor, "p p"], labels: Int[Tensor, " p"], count: int, more: Float[Tensor, " p"] | None = None
) -> Float[Tensor, " count"]:
    """Energy that the new directions of each group have outside of the group's old ones: ||sin Theta||_F^2.

    Args:
        shares: [i, j] is what old direction i has of new direction j (squared cosines, or `mixing`).
        labels: of the directions; a negative label is no group.
        count: number of groups.
        more: what new direction j has outside of all old ones.
    """
    inside = (labels >= 0).nonzero()[:, 0]
    if len(inside) < len(labels):
        shares, more = shares.index_select(1, inside), None if more is None else more[inside]
    group, own = torch.where(labels < 0, count, labels), labels[inside]
    held = labelled.sums(shares, group, count + 1)
    lost = held.scatter_(0, own[None, :], 0.0).sum(0)  # its own taken out first: nothing cancels
    if more is not None:
        lost = lost + more
    return labelled.sums(lost, own, count)


def groups(p: int, most: int) -> tuple[int, ...]:
    """First index of each of at most so many groups of neighbours, about equal in size."""
    count = min(p, most)
    return tuple(at * p // count for at in range(count))


def labels_of(first: tuple[int, ...], p: int) -> Int[Tensor, " p"]:
    """The group of every direction."""
    starts = torch.zeros(p, dtype=torch.int64)
    starts[torch.tensor(first[1:], dtype=torch.int64)] = 1
    return starts.cumsum(0)


def intruders(left: Float[Tensor, "p c"]) -> float:
    """How many of the leading new directions have a cosine below `FOREIGN` with every old one."""
    return float((left[:, :LEADING].abs().max(dim=0).values < FOREIGN).sum())
