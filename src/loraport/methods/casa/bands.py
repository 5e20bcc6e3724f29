"""Sums over bands of singular directions that follow each other: a coarse look at a matrix in spectral coordinates."""

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.nn.functional import pad

from loraport.methods.maps import band_width, bands


def energy_of(C: Float[Tensor, "a b"]) -> Float[Tensor, "g g"]:
    """Sum of squares between every two bands of the thin basis, of which both sides of a routing matrix have p."""
    p = min(C.shape)
    C, width = C[:p, :p], band_width(p)
    whole = p - p % width
    norms = [torch.linalg.vector_norm(C[:, :whole].unflatten(1, (-1, width)), dim=2)]
    if whole < p:
        norms.append(torch.linalg.vector_norm(C[:, whole:], dim=1, keepdim=True))
    return by_band(torch.cat(norms, dim=1).square())


def energy_of_factors(B: Float[Tensor, "p r"], A: Float[Tensor, "r p"]) -> Float[Tensor, "g g"]:
    """The same of B A: the energy of a block is <B_i^T B_i, A_j A_j^T>, and no matrix is formed."""
    left, right = (_banded(each) for each in (B, A.T))
    grams = [torch.bmm(each.transpose(1, 2), each).flatten(1) for each in (left, right)]
    return (grams[0] @ grams[1].T).clamp_min_(0)


def by_band(X: Num[Tensor, "p c"]) -> Num[Tensor, "g c"]:
    """Sums over the rows of every band."""
    return _banded(X).sum(1)


def _banded(X: Num[Tensor, "p c"]) -> Num[Tensor, "g w c"]:
    """The rows of every band, the last one filled up with zeros."""
    width = band_width(len(X))
    missing = -len(X) % width
    return (pad(X, (0, 0, 0, missing)) if missing else X).reshape(bands(len(X)), width, X.shape[1])
