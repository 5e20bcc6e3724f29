"""Pure functions of one layer: how an update meets the singular values and vectors of the weight that it changes."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.operator import square_sum, wide
from loraport.core.operators import Operator

HEAD_ENERGY = 0.9
"""Of the weight, in the head (Eq. 3 of the paper)."""
LEADING = 0.1
"""Share of the head's directions that count as its leading part."""


def singular_values(W: Float[Tensor, "m n"]) -> Float[Tensor, " p"]:
    """Singular values, descending, by the eigenvalues of the smaller Gram matrix: good to 1e-5 of the largest."""
    A = W if W.shape[0] >= W.shape[1] else W.T
    gram = A.T @ A if A.shape[1] > 256 else (wide(A).T @ wide(A))
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0).to(W.dtype)


def stretched(W: Float[Tensor, "m n"], S: Float[Tensor, " p"]) -> float:
    """||S' - S||^2 with S' the singular values of W: by how much an update moved them."""
    return float((wide(singular_values(W)) - wide(S)).square().sum())


def leading(basis: SpectralBasis) -> int:
    """How many directions the leading part of the head has, at least one."""
    return max(round(LEADING * basis.head(HEAD_ENERGY)), 1)


def head_energy(update: Operator, basis: SpectralBasis) -> float:
    """Squared norm of an update in the rows and columns of the head's leading directions."""
    h = leading(basis)
    U, Vh = basis.U[:, :h], basis.Vh[:h]
    columns = update.apply(Vh.T)
    return square_sum(update.apply_t(U)) + square_sum(columns) - square_sum(U.T @ columns)


def head_area(basis: SpectralBasis) -> float:
    """Share of all entries that lie in those rows and columns: of an evenly spread update, the share of its energy."""
    m, n = basis.shape
    h = leading(basis)
    return 1.0 - (1.0 - h / m) * (1.0 - h / n)


def random_like(
    shape: tuple[int, int], norm: float, generator: torch.Generator, *, rank: int | None = None
) -> Float[Tensor, "m n"]:
    """A Gaussian update of a shape and a Frobenius norm, and of a rank where one is given."""
    m, n = shape
    if rank is None or rank >= min(m, n):
        X = torch.randn(m, n, generator=generator)
    else:
        X = torch.randn(m, rank, generator=generator) @ torch.randn(rank, n, generator=generator)
    size = float(torch.linalg.vector_norm(X))
    return X * (norm / size) if size > 0 else X


def rounding_like(W: Float[Tensor, "m n"], norm: float, generator: torch.Generator) -> Float[Tensor, "m n"]:
    """What rounding to a number format with an exponent does to W, scaled to a norm: each number moves by up to half a
    step of its own size."""
    step = torch.ldexp(torch.ones_like(W), torch.frexp(W).exponent)
    X = step * (torch.rand(W.shape, generator=generator) - 0.5)
    size = float(torch.linalg.vector_norm(X))
    return X * (norm / size) if size > 0 else X


def directions_holding(S: Float[Tensor, " p"], share: float) -> int:
    """The least number of singular values that hold a share of their squared sum; 0 of zeros."""
    held = wide(S).square().cumsum(0)
    total = float(held[-1]) if held.numel() else 0.0
    return 0 if total == 0.0 else min(int((held < share * total).sum()) + 1, S.numel())


def chance_of_overlap(update: float, drift: float, shape: tuple[int, int]) -> float:
    """One standard deviation of <update, drift> where the drift points anywhere: ||update|| ||drift|| / sqrt(m n)."""
    return update * drift / math.sqrt(shape[0] * shape[1])
