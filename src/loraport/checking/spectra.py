"""What `analysis` has of a layer by its routing matrix, here by products with a few directions alone: cheap enough.

Rigidity, the leading tenth of the head, the Gaussian update and the rounding are those of `analysis`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.operator import square_sum, wide
from loraport.core.operators import Operator
from loraport.core.thin_svd import gram


def singular_values(W: Float[Tensor, "m n"]) -> Float[Tensor, " p"]:
    """Singular values, descending, by the eigenvalues of the smaller Gram matrix: good to 1e-5 of the largest."""
    A = W if W.shape[0] >= W.shape[1] else W.T
    G = gram(A) if A.shape[1] > 256 else (wide(A).T @ wide(A))
    return torch.linalg.eigvalsh(G).clamp_min(0).sqrt().flip(0).to(W.dtype)


def energy_in_first(update: Operator, basis: SpectralBasis, h: int) -> float:
    """Squared norm of an update in the rows and columns of the first h directions: over all of its energy and
    `routing_maps.area`, this is `routing_maps.concentration`."""
    U, Vh = basis.U[:, :h], basis.Vh[:h]
    columns = update.apply(Vh.T)
    return square_sum(update.apply_t(U)) + square_sum(columns) - square_sum(U.T @ columns)


def chance_of_overlap(update: float, drift: float, shape: tuple[int, int]) -> float:
    """One standard deviation of <update, drift> where the drift points anywhere: ||update|| ||drift|| / sqrt(m n)."""
    return update * drift / math.sqrt(shape[0] * shape[1])
