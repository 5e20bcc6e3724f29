"""Matrices known by their products: what a method returns, so that nothing larger than needed is formed."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.lowrank import LowRank


@runtime_checkable
class Operator(Protocol):
    """An m x n matrix that can be applied to thin matrices from both sides. `LowRank` is one."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the products."""

    def apply(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """M X."""

    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """M^T Y; a left product Y^T M is its transpose."""

    def norm(self) -> float:
        """Frobenius norm, accumulated in float64."""

    def dense(self) -> Float[Tensor, "m n"]:
        """The matrix itself."""


@dataclass(frozen=True)
class DenseOperator:
    """A matrix that is there as it is."""

    W: Float[Tensor, "m n"]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.W.shape[0], self.W.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of W."""
        return self.W.dtype

    def apply(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """W X."""
        return self.W @ X

    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """W^T Y."""
        return self.W.T @ Y

    def norm(self) -> float:
        """Frobenius norm."""
        return math.sqrt(square_sum(self.W))

    def dense(self) -> Float[Tensor, "m n"]:
        """W, not a copy."""
        return self.W


@dataclass(frozen=True)
class Sum:
    """`dense_sign * D + F`: a matrix that is there as it is (never copied) plus a low-rank one.

    `known_norm` is given where algebra knows the Frobenius norm better than a sum over entries could.
    """

    D: Float[Tensor, "m n"]
    sign: float
    F: LowRank
    known_norm: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.F.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of D and F."""
        return self.D.dtype

    def apply(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """sign D X + B (A X)."""
        return torch.addmm(self.F.apply(X), self.D, X, alpha=self.sign)

    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """sign D^T Y + A^T (B^T Y)."""
        return torch.addmm(self.F.apply_t(Y), self.D.T, Y, alpha=self.sign)

    def norm(self) -> float:
        """Frobenius norm."""
        return math.sqrt(square_sum(self.dense())) if self.known_norm is None else self.known_norm

    def dense(self) -> Float[Tensor, "m n"]:
        """The sum, formed."""
        return torch.addmm(self.D, self.F.B, self.F.A, beta=self.sign)


@dataclass(frozen=True)
class Blend:
    """a + t (b - a): `t` = 0 is `a`, 1 is `b`. What `--amount` means, with `a` the direct reuse."""

    a: Operator
    b: Operator
    t: float

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.a.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the products."""
        return self.a.dtype

    def apply(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """The blend times X."""
        return torch.lerp(self.a.apply(X), self.b.apply(X), self.t)

    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """The blend, transposed, times Y."""
        return torch.lerp(self.a.apply_t(Y), self.b.apply_t(Y), self.t)

    def norm(self) -> float:
        """Frobenius norm: ||(1 - t) a + t b||^2 expanded, with one inner product."""
        u, t = 1.0 - self.t, self.t
        cross = inner(self.a, self.b) if u != 0.0 and t != 0.0 else 0.0
        square = (u * self.a.norm()) ** 2 + (t * self.b.norm()) ** 2 + 2.0 * u * t * cross
        return math.sqrt(max(square, 0.0))

    def dense(self) -> Float[Tensor, "m n"]:
        """The blend, formed."""
        return torch.lerp(self.a.dense(), self.b.dense(), self.t)


def inner(a: Operator, b: Operator) -> float:
    """Frobenius inner product <a, b>. Thin products only if one of them is `LowRank`, else dense."""
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        return a.inner(b)
    if isinstance(a, LowRank):
        return _dot(a.B, b.apply(a.A.T))  # <B A, b> = <B, b A^T>
    if isinstance(b, LowRank):
        return inner(b, a)
    return _dot(a.dense(), b.dense())


def square_sum(matrix: Float[Tensor, "..."]) -> float:
    """Sum of squares, accumulated in float64 without a float64 copy of the whole."""
    if matrix.numel() == 0:
        return 0.0
    rows = matrix.reshape(matrix.shape[0], -1)
    return float(torch.linalg.vector_norm(rows, dim=1).double().square().sum())


def _dot(x: Float[Tensor, "m c"], y: Float[Tensor, "m c"]) -> float:
    return float((x * y).sum(dim=1).double().sum())
