"""Matrices known by their products: what a method returns, so that nothing larger than a layer is formed."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.core.precision import dot, square_sum


class Operator(ABC):
    """An m x n matrix that can be applied to thin matrices from both sides. `LowRank` is one.

    A base class and no protocol: checking a value against a protocol evaluates its properties, and `T` makes
    another operator each time.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the products."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the products are computed."""

    @property
    @abstractmethod
    def T(self) -> "Operator":
        """The transpose; nothing is copied."""

    @abstractmethod
    def apply(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """M X."""

    @abstractmethod
    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """M^T Y; a left product Y^T M is its transpose."""

    @abstractmethod
    def norm(self) -> float:
        """Frobenius norm, accumulated in float64."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "m n"]:
        """The matrix itself."""


Operator.register(LowRank)


@dataclass(frozen=True)
class DenseOperator(Operator):
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

    @property
    def device(self) -> torch.device:
        """The device of W."""
        return self.W.device

    @property
    def T(self) -> "DenseOperator":
        """W^T, a view."""
        return DenseOperator(self.W.T)

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
class Spectral(Operator):
    """U K Vh with orthonormal columns in U and rows in Vh: an update given by its routing matrix K.

    Its norm, its singular values and its best approximations are those of K, so all work is done on K.
    """

    U: Float[Tensor, "m a"]
    K: Float[Tensor, "a b"]
    Vh: Float[Tensor, "b n"]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of K."""
        return self.K.dtype

    @property
    def device(self) -> torch.device:
        """The device of K."""
        return self.K.device

    @property
    def T(self) -> "Spectral":
        """V K^T U^T, all views."""
        return Spectral(self.Vh.T, self.K.T, self.U.T)

    def apply(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """U (K (Vh X))."""
        return self.U @ (self.K @ (self.Vh @ X))

    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """V (K^T (U^T Y))."""
        return self.Vh.T @ (self.K.T @ (self.U.T @ Y))

    def norm(self) -> float:
        """||K||."""
        return math.sqrt(square_sum(self.K))

    def dense(self) -> Float[Tensor, "m n"]:
        """The product, formed."""
        return self.U @ self.K @ self.Vh

    def routed(self, update: LowRank) -> LowRank:
        """An update in the coordinates of K: (U^T B)(A V)."""
        return LowRank(self.U.T @ update.B, update.A @ self.Vh.T)

    def unrouted(self, core: LowRank) -> LowRank:
        """Back from the coordinates of K: (U B)(A Vh)."""
        return LowRank(self.U @ core.B, core.A @ self.Vh)


@dataclass(frozen=True)
class Blend(Operator):
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

    @property
    def device(self) -> torch.device:
        """Where the products are computed."""
        return self.a.device

    @property
    def T(self) -> "Blend":
        """The blend of the transposes."""
        return Blend(self.a.T, self.b.T, self.t)

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
        return dot(a.B, b.apply(a.A.T))  # <B A, b> = <B, b A^T>
    if isinstance(b, LowRank):
        return inner(b, a)
    return dot(a.dense(), b.dense())
