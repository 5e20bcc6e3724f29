"""A low-rank matrix kept as its two factors, and what can be said of it without ever multiplying them out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.operator import Operator, dot, norm, wide
from loraport.core.thin_svd import thin_svd
from loraport.errors import NumericalError

_SMALL = 256  # up to this rank a product costs less than looking at the factors
_ROWS = 512  # of a product that are formed together where it is only summed up


@dataclass(frozen=True)
class LowRank(Operator):
    """The m x n matrix `B @ A`, with `B` (m x r) and `A` (r x n) of one dtype on one device.

    A LoRA update is one of these with alpha / rank already folded in. Rank 0 is the zero matrix.
    Everything here costs O((m + n) r^2) at most, and only `dense` forms the product, as long as the factors are `thin`.
    """

    B: Float[Tensor, "m r"]
    A: Float[Tensor, "r n"]

    @classmethod
    def zeros(
        cls, m: int, n: int, rank: int = 0, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> "LowRank":
        """The zero matrix, with `rank` zero columns and rows."""
        return cls(torch.zeros(m, rank, dtype=dtype, device=device), torch.zeros(rank, n, dtype=dtype, device=device))

    @classmethod
    def from_dense(cls, matrix: Float[Tensor, "m n"]) -> "LowRank":
        """The same matrix, exactly, with the identity of the smaller side as one factor."""
        m, n = matrix.shape
        eye = torch.eye(min(m, n), dtype=matrix.dtype, device=matrix.device)
        return cls(matrix, eye) if n <= m else cls(eye, matrix)

    @classmethod
    def sum(cls, terms: "Sequence[LowRank]") -> "LowRank":
        """The sum of at least one term; the ranks add up."""
        return cls(torch.cat([term.B for term in terms], dim=1), torch.cat([term.A for term in terms], dim=0))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the product."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """Number of columns of B. The true rank may be lower."""
        return self.B.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of both factors."""
        return self.B.dtype

    @property
    def device(self) -> torch.device:
        """The device of both factors."""
        return self.B.device

    @property
    def T(self) -> "LowRank":
        """A^T B^T, views of the same factors."""
        return LowRank(self.A.T, self.B.T)

    @property
    def thin(self) -> bool:
        """Whether to work on the factors, (m + n) r^2 in float64, takes less time than on the product."""
        m, n = self.shape
        return self.rank <= _SMALL or 2 * self.rank * (m + n) <= m * n

    def dense(self) -> Float[Tensor, "m n"]:
        """B @ A, the whole matrix."""
        whole = self._whole()
        return self.B @ self.A if whole is None else whole[0] * whole[1]

    def apply(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """B (A X)."""
        return self.B @ (self.A @ X)

    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """(B A)^T Y = A^T (B^T Y)."""
        return self.A.T @ (self.B.T @ Y)

    def norm(self) -> float:
        """Frobenius norm by ||BA||^2 = <B^T B, A A^T>, r x r matrices in float64; of a product strip by strip."""
        return self._norm

    @cached_property  # asked for again and again, and nobody writes to the factors
    def _norm(self) -> float:
        whole = self._whole()
        if whole is not None:
            return norm(whole[0]) * abs(whole[1])
        if not self.thin:
            return math.hypot(*(norm(rows @ self.A) for rows in self.B.split(_ROWS)))
        left, right = wide(self.B), wide(self.A)
        return math.sqrt(max(float(((left.T @ left) * (right @ right.T)).sum()), 0.0))

    def _whole(self) -> tuple[Float[Tensor, "m n"], float] | None:
        """The matrix and a factor, where the other factor of the product is the identity times that (`from_dense`)."""
        m, n = self.shape
        if self.rank != min(m, n) or self.rank <= _SMALL:
            return None
        whole, other = (self.B, self.A) if n <= m else (self.A, self.B)
        diagonal = other.diagonal()
        if not bool((diagonal == diagonal[0]).all()) or int(torch.count_nonzero(other)) != self.rank:
            return None
        return whole, float(diagonal[0])

    def inner(self, other: "LowRank") -> float:
        """Frobenius inner product <B A, B' A'>, in float64 where it is small."""
        if not (self.thin or other.thin):
            return dot(self.dense(), other.dense())
        left = wide(self.B).T @ wide(other.B)
        right = wide(self.A) @ wide(other.A).T
        return float((left * right).sum())

    def svd(self) -> tuple[Float[Tensor, "m q"], Float[Tensor, " q"], Float[Tensor, "q n"]]:
        """Thin SVD (U, S, Vh) with q = min(m, n, r): QR of both factors, then the SVD of an r x r core.

        Exact if the factors are thin; else that of the product, see `thin_svd`.

        Raises:
            NumericalError: a factor holds NaN or infinity.
        """
        if not self.thin:
            basis, q = thin_svd(self.dense(), name="a low-rank update"), min(*self.shape, self.rank)
            return basis.U[:, :q], basis.S[:q], basis.Vh[:q]
        Q_left, R_left = torch.linalg.qr(wide(self.B))
        Q_right, R_right = torch.linalg.qr(wide(self.A).T)
        core = R_left @ R_right.T
        if not bool(torch.isfinite(core).all()):
            raise NumericalError(
                "a low-rank update holds NaN or infinity", fix="the file is damaged or badly trained; use another copy"
            )
        U, S, Vh = torch.linalg.svd(core, full_matrices=False)
        parts = Q_left @ U, S, Vh @ Q_right.T
        U, S, Vh = (part.to(device=self.device, dtype=self.dtype) for part in parts)
        return U, S, Vh

    def truncated(self, rank: int) -> "LowRank":
        """Best approximation of at most this rank, balanced."""
        U, S, Vh = self.svd()
        return self.from_svd(U[:, :rank], S[:rank], Vh[:rank])

    def balanced(self) -> "LowRank":
        """The same matrix with B = U sqrt(S), A = sqrt(S) Vh: both factors carry the same norm."""
        result = self.from_svd(*self.svd())
        return result.padded(max(self.rank, result.rank))

    @classmethod
    def from_svd(cls, U: Float[Tensor, "m q"], S: Float[Tensor, " q"], Vh: Float[Tensor, "q n"]) -> "LowRank":
        """Balanced factors of U diag(S) Vh."""
        root = S.clamp_min(0).sqrt()
        return cls(U * root, root[:, None] * Vh)

    def padded(self, rank: int) -> "LowRank":
        """The same matrix with zero columns and rows up to `rank`.

        Raises:
            ValueError: the update already has a higher rank.
        """
        extra = rank - self.rank
        if extra < 0:
            raise ValueError(f"cannot pad rank {self.rank} to {rank}")
        if extra == 0:
            return self
        m, n = self.shape
        return LowRank.sum([self, LowRank.zeros(m, n, extra, dtype=self.dtype, device=self.device)])

    def no_wider(self) -> "LowRank":
        """The same matrix with at most as many columns of B as its shorter side is long: multiplied out, if need be."""
        return self if self.rank <= min(self.shape) else LowRank.from_dense(self.dense())

    def scaled(self, factor: float) -> "LowRank":
        """The matrix times `factor`, its root put on both sides and its sign on B."""
        root = math.sqrt(abs(factor))
        return LowRank(self.B * math.copysign(root, factor), self.A * root)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "LowRank":
        """The same factors in another dtype or on another device."""
        B, A = (factor.to(device=device, dtype=dtype) for factor in (self.B, self.A))
        return self if B is self.B and A is self.A else LowRank(B, A)
