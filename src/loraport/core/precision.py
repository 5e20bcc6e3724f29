"""Sums that do not lose digits: float64 accumulation, without float64 copies of anything large."""

import torch
from jaxtyping import Float
from torch import Tensor


def wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in float64, on the CPU where its device has none (MPS). For small matrices and vectors."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def square_sum(matrix: Float[Tensor, "m n"]) -> float:
    """Sum of squares, accumulated in float64 row by row."""
    return float(wide(torch.linalg.vector_norm(matrix, dim=1)).square().sum())


def dot(x: Float[Tensor, "m n"], y: Float[Tensor, "m n"]) -> float:
    """Sum of products, accumulated in float64 row by row."""
    return float(wide((x * y).sum(dim=1)).sum())
