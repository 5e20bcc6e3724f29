"""What an update looks like in the coordinates of a layer: the routing matrix C = U^T D V (Eq. 2).

Entry (i, j) is how much of input direction j (the sender) the update D sends to output direction i (the receiver).
The drift's routing matrix depends on source and target only, so it serves every LoRA for that pair.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator, Operator
from loraport.core.precision import dot, square_sum, wide
from loraport.core.thin_svd import gram

_ROWS = 64


def routed(basis: SpectralBasis, update: LowRank) -> LowRank:
    """C = (U^T B)(A V) of a low-rank update, a x b, in factors."""
    return LowRank(basis.U.T @ update.B, update.A @ basis.Vh.T)


@dataclass(frozen=True)
class DriftRouting:
    """The drift in the coordinates of the source basis, for a layer with m >= n (transpose the others).

    Args:
        C: routing matrix U^T D V.
        receivers, senders: densities of the k head directions: norms of their rows and columns (Eq. 5 and 6).
        spill: ||(I - U U^T) D v_j||^2 for each sender: what leaves the thin basis. Zero if U is square.
        energy: ||D||^2.
    """

    C: Float[Tensor, "a n"]
    receivers: Float[Tensor, " k"]
    senders: Float[Tensor, " k"]
    spill: Float[Tensor, " n"]
    energy: float

    @classmethod
    def of(cls, basis: SpectralBasis, drift: Operator, k: int, density: Literal["head", "full"]) -> "DriftRouting":
        """Two products with the basis, U^T D and (U^T D) V, and one Gram matrix of D if U is not square.

        `density` "head" takes norms over the k x k head block, "full" over whole rows and columns.
        """
        factored = isinstance(drift, LowRank)
        C = routed(basis, drift).dense() if factored else drift.apply_t(basis.U).T @ basis.Vh.T
        inside = torch.linalg.vector_norm(C, dim=0).square()
        square = basis.U.shape[0] == basis.U.shape[1]
        spill = torch.zeros_like(inside) if square else (_column_energy(drift, basis.Vh) - inside).clamp_min_(0)
        if density == "head":
            receivers, senders = C[:k, :k].norm(dim=1), C[:k, :k].norm(dim=0)
        else:
            receivers, senders = C[:k].norm(dim=1), (inside + spill)[:k].sqrt()
        return cls(C, receivers, senders, spill, float(wide(inside).sum() + wide(spill).sum()))

    def tensors(self) -> dict[str, Tensor]:
        """As plain tensors, to be kept."""
        energy = torch.tensor([self.energy], dtype=torch.float64)
        parts = {"C": self.C, "receivers": self.receivers, "senders": self.senders, "spill": self.spill}
        return parts | {"energy": energy}

    @classmethod
    def from_tensors(cls, kept: Mapping[str, Tensor]) -> "DriftRouting":
        """Back from `tensors`."""
        return cls(kept["C"], kept["receivers"], kept["senders"], kept["spill"], float(kept["energy"]))


def _column_energy(drift: Operator, Vh: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """||D v_j||^2 for every j."""
    if isinstance(drift, DenseOperator):
        G = gram(drift.W)
        G = torch.tril(G).add_(torch.tril(G, -1).T)
        return ((Vh @ G) * Vh).sum(dim=1)
    return torch.linalg.vector_norm(drift.apply(Vh.T), dim=0).square()


@dataclass(frozen=True)
class Restored(Operator):
    """D' = update + U K Vh - drift (I - V_d V_d^T) for a layer with m > n, as an operator.

    `senders` marks the columns that are *not* in V_d. K holds what happens inside the thin basis: the drift's
    own entries in dominant rows (which cancel their removal) and the arbitration.
    """

    update: LowRank
    U: Float[Tensor, "m n"]
    K: Float[Tensor, "n n"]
    Vh: Float[Tensor, "n n"]
    drift: Operator
    senders: Bool[Tensor, " n"]
    known_norm: float

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.update.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the products."""
        return self.update.dtype

    @property
    def device(self) -> torch.device:
        """Where the products are computed."""
        return self.update.device

    @property
    def T(self) -> "Transposed":
        """The transpose."""
        return Transposed(self)

    def apply(self, X: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """Two products with m x n matrices, three with n x n."""
        Z = self.Vh @ X
        kept = self.Vh.T @ (Z * self.senders[:, None])
        return torch.addmm(self.update.apply(X), self.U, self.K @ Z).sub_(self.drift.apply(kept))

    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """The same, transposed."""
        kept = (self.Vh @ self.drift.apply_t(Y)).mul_(self.senders[:, None])
        Z = torch.addmm(kept, self.K.T, self.U.T @ Y, beta=-1.0)
        return torch.addmm(self.update.apply_t(Y), self.Vh.T, Z)

    def norm(self) -> float:
        """Frobenius norm, as worked out by whoever built this."""
        return self.known_norm

    def dense(self) -> Float[Tensor, "m n"]:
        """The matrix itself."""
        V = self.Vh[self.senders].T
        result = self.update.dense().addmm_(self.U, self.K @ self.Vh)
        return result.addmm_(self.drift.apply(V), V.T, alpha=-1.0)


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


def beyond_basis(
    update: LowRank,
    C: LowRank,
    basis: SpectralBasis,
    routing: DriftRouting,
    drift: Operator | None,
    senders: Bool[Tensor, " n"],
) -> tuple[float, float]:
    """||N||^2 and <N, update> for N = (I - U U^T)(update - drift V diag(senders) V^T): what the thin basis misses.

    C is the routed update. Without a drift only the update itself is missed. Thin matrices only; N is not formed.
    """
    rest = LowRank(torch.addmm(update.B, basis.U, C.B, alpha=-1.0), update.A)
    own = rest.norm() ** 2
    if drift is None:
        return own, own
    met = basis.Vh @ drift.apply_t(rest.B)  # n x r; <rest, drift V diag(senders) V^T> needs these rows of it
    cross = dot(met[senders], C.A.T[senders])
    gone = float(wide(routing.spill[senders]).sum())
    return max(own - 2 * cross + gone, 0.0), own - cross


def subtract_quiet(K: Float[Tensor, "a b"], C: Float[Tensor, "a b"], rows: Tensor, cols: Tensor) -> float:
    """K -= C in place wherever neither row nor column is marked; returns the sum of squares of what was subtracted.

    Row by row blocks, so that the passes over a block stay in the processor's cache.
    """
    energy = 0.0
    keep = (~cols).to(K.dtype)
    for target, block, marked in zip(K.split(_ROWS), C.split(_ROWS), rows.split(_ROWS), strict=True):
        quiet = (block * keep).mul_((~marked).to(K.dtype)[:, None])
        energy += square_sum(quiet)
        target.sub_(quiet)
    return energy
