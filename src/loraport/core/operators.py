"""Matrices known by their products: what a method returns, so that nothing larger than a layer is formed."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.core.operator import Operator, dot, norm, thin_product
from loraport.core.thin_svd import gram


@dataclass(frozen=True)
class DenseOperator(Operator):
    """A matrix that is there as it is.

    Args:
        W: the matrix.
        known_norm: its Frobenius norm, where that has been found already.
    """

    W: Float[Tensor, "m n"]
    known_norm: float | None = None

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
        return DenseOperator(self.W.T, self.known_norm)

    def apply(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """W X."""
        return thin_product(self.W, X)

    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """W^T Y."""
        return thin_product(self.W.T, Y)

    def gram_matrix(self) -> Float[Tensor, "n n"]:
        """W^T W, the blocks on and below the diagonal."""
        return gram(self.W)

    def norm(self) -> float:
        """Frobenius norm."""
        return norm(self.W) if self.known_norm is None else self.known_norm

    def dense(self) -> Float[Tensor, "m n"]:
        """W, not a copy."""
        return self.W


@dataclass(frozen=True)
class Routed(Operator):
    """U core Vh with orthonormal columns in U and rows in Vh; None stands for the identity.

    Norm, singular values and best approximations are those of `core`, so the work is done there.

    Args:
        U: orthonormal columns.
        core: the matrix between them.
        Vh: orthonormal rows.
        near: an update in the coordinates of the core whose row space is likely to overlap that of the core's best
            approximations, where one is at hand.
    """

    U: Float[Tensor, "m a"] | None
    core: Operator
    Vh: Float[Tensor, "b n"] | None
    near: LowRank | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        a, b = self.core.shape
        return a if self.U is None else self.U.shape[0], b if self.Vh is None else self.Vh.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the core."""
        return self.core.dtype

    @property
    def device(self) -> torch.device:
        """The device of the core."""
        return self.core.device

    @property
    def T(self) -> "Routed":
        """V core^T U^T, all views."""
        left, right = (None if side is None else side.T for side in (self.Vh, self.U))
        return Routed(left, self.core.T, right, None if self.near is None else self.near.T)

    def apply(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """U (core (Vh X))."""
        Y = self.core.apply(X if self.Vh is None else self.Vh @ X)
        return Y if self.U is None else self.U @ Y

    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """V (core^T (U^T Y))."""
        X = self.core.apply_t(Y if self.U is None else self.U.T @ Y)
        return X if self.Vh is None else self.Vh.T @ X

    @property
    def complete(self) -> bool:
        """Whether every matrix of this shape has coordinates in the core: U and Vh are square, or the identity."""
        return all(side is None or side.shape[0] == side.shape[1] for side in (self.U, self.Vh))

    def norm(self) -> float:
        """||core||."""
        return self.core.norm()

    def dense(self) -> Float[Tensor, "m n"]:
        """The product, formed."""
        left = self.core.dense() if self.U is None else self.U @ self.core.dense()
        return left if self.Vh is None else left @ self.Vh

    def project(self, update: LowRank) -> LowRank:
        """The update in the coordinates of the core: (U^T B)(A V)."""
        B = update.B if self.U is None else thin_product(self.U.T, update.B)
        return LowRank(B, update.A if self.Vh is None else thin_product(self.Vh, update.A.T).T)

    def lift(self, update: LowRank) -> LowRank:
        """An update given in the coordinates of the core, in those of the layer: (U B)(A Vh)."""
        B = update.B if self.U is None else thin_product(self.U, update.B)
        return LowRank(B, update.A if self.Vh is None else thin_product(self.Vh.T, update.A.T).T)


@dataclass(frozen=True)
class Transposed(Operator):
    """The transpose of an operator that has no cheaper one."""

    op: Operator

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        m, n = self.op.shape
        return n, m

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the products."""
        return self.op.dtype

    @property
    def device(self) -> torch.device:
        """Where the products are computed."""
        return self.op.device

    @property
    def T(self) -> Operator:
        """The operator itself."""
        return self.op

    def apply(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """op^T X."""
        return self.op.apply_t(X)

    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """op Y."""
        return self.op.apply(Y)

    def norm(self) -> float:
        """||op||."""
        return self.op.norm()

    def dense(self) -> Float[Tensor, "m n"]:
        """op^T, a view."""
        return self.op.dense().T


@dataclass(frozen=True)
class Blend(Operator):
    """a + t (b - a): `t` = 0 is `a`, 1 is `b`. What `--amount` means, with `a` the direct reuse. Made by `blended`."""

    a: LowRank
    b: Operator
    t: float

    @cached_property
    def met(self) -> Float[Tensor, "n r"]:
        """b^T B, with a = B A: all that sums of squares need to know of how the two overlap."""
        return self.b.apply_t(self.a.B)

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

    def gram(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """M^T M X = (u a + t b)^T (u a + t b) X, u = 1 - t: one with b's Gram matrix, and thin ones."""
        u, t, (B, A) = 1.0 - self.t, self.t, (self.a.B, self.a.A)
        inside = A @ X
        left = torch.addmm(self.met.T @ X, B.T @ B, inside, beta=u * t, alpha=u * u)
        result = torch.addmm(A.T @ left, self.met, inside, alpha=u * t)
        return result.add_(self.b.gram(X), alpha=t * t)

    def gram_matrix(self) -> Float[Tensor, "n n"]:
        """As `gram`, for all columns at once."""
        u, t, (B, A) = 1.0 - self.t, self.t, (self.a.B, self.a.A)
        left = torch.addmm(self.met.T, B.T @ B, A, beta=u * t, alpha=u * u)
        return self.b.gram_matrix().mul_(t * t).addmm_(A.T, left).addmm_(self.met, A, alpha=u * t)

    def norm(self) -> float:
        """Frobenius norm: ||u a + t b||^2 expanded, u = 1 - t."""
        u, t = 1.0 - self.t, self.t
        cross = dot(self.met.T, self.a.A)  # <B A, b> = <B^T b, A>
        square = (u * self.a.norm()) ** 2 + (t * self.b.norm()) ** 2 + 2.0 * u * t * cross
        return math.sqrt(max(square, 0.0))

    def dense(self) -> Float[Tensor, "m n"]:
        """The blend, formed."""
        return torch.lerp(self.a.dense(), self.b.dense(), self.t)


def blended(a: LowRank, b: Operator, t: float) -> Operator:
    """a + t (b - a), in the coordinates of b's core where `a` has some: products with the bases are spared there."""
    if isinstance(b, Routed) and b.complete:
        return replace(b, core=Blend(b.project(a), b.core, t))
    return Blend(a, b, t)


def inner(a: Operator, b: Operator) -> float:
    """Frobenius inner product <a, b>. Thin products only if one of them is `LowRank`, else dense."""
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        return a.inner(b)
    if isinstance(a, LowRank):
        return dot(a.B, b.apply(a.A.T))  # <B A, b> = <B, b A^T>
    if isinstance(b, LowRank):
        return inner(b, a)
    return dot(a.dense(), b.dense())


def cosine(a: Operator, b: Operator) -> float:
    """Frobenius cosine <a, b> / (||a|| ||b||); 0 if one of them is zero."""
    scale = a.norm() * b.norm()
    return inner(a, b) / scale if scale > 0 else 0.0
