"""Thin SVD of a matrix, and the best rank-r approximation of an operator."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.core.operators import Operator, square_sum
from loraport.errors import NumericalError


ALGORITHM = "thin-svd-1"
"""Part of the cache key of a basis: raised whenever `thin_svd` would return other numbers than before."""


@dataclass(frozen=True)
class ThinSVD:
    """U (m x p), S (p, descending), Vh (p x n), p = min(m, n), and the name of the driver that answered."""

    U: Float[Tensor, "m p"]
    S: Float[Tensor, " p"]
    Vh: Float[Tensor, "p n"]
    driver: str


def thin_svd(W: Float[Tensor, "m n"], *, name: str = "matrix") -> ThinSVD:
    """Thin SVD of W.

    Raises:
        NumericalError: W holds NaN or infinity, or no driver could do it.
    """
    if not bool(torch.isfinite(W).all()):
        raise NumericalError("a weight holds NaN or infinity", where=name)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return ThinSVD(U, S, Vh, "gesdd")


@dataclass(frozen=True)
class Compressed:
    """A low-rank approximation: balanced factors, the share of ||op||^2 they hold, and their rank."""

    update: LowRank
    energy_kept: float
    rank: int


def compress(
    op: Operator,
    *,
    rank: int | str | None = None,
    energy: float | None = None,
    start: LowRank | None = None,
    seed: int = 0,
    name: str = "update",
) -> Compressed:
    """Best low-rank approximation of `op`: of a given rank, or "full", or holding a share `energy` of ||op||^2."""
    m, n = op.shape
    total = op.norm() ** 2
    svd = thin_svd(op.dense(), name=name)
    if energy is not None:
        held = svd.S.double().square().cumsum(0)
        count = int((held < energy * held[-1]).sum()) + 1
    else:
        count = min(m, n) if rank == "full" or rank is None else min(int(rank), m, n)
    update = LowRank.from_svd(svd.U[:, :count], svd.S[:count], svd.Vh[:count])
    kept = square_sum(svd.S[:count, None]) / total if total > 0 else 1.0
    return Compressed(update, min(kept, 1.0), count)
