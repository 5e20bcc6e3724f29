"""What an update looks like in the coordinates of a layer: the routing matrix C = U^T D V (Eq. 2).

Entry (i, j) is how much of input direction j (the sender) the update D sends to output direction i (the receiver).
The drift's routing matrix depends on source and target only, so it serves every LoRA for that pair.

Layers here have m >= n (transpose the others). V is then square, and only on the left can something lie outside
the thin basis; `DriftRouting.residual_gram` and `TallUpdate` take care of that part without ever forming it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operator import column_norms, dot, square_sum, thin_product, wide
from loraport.core.operators import DenseOperator, Operator, Transposed
from loraport.core.thin_svd import gram
from loraport.methods.casa.bands import energy_of

_ROWS = 64  # rows worked on at a time, so that the passes over them stay in the processor's cache


def routed(basis: SpectralBasis, update: LowRank) -> LowRank:
    """C = (U^T B)(A V) of a low-rank update, a x b, in factors."""
    return LowRank(thin_product(basis.U.T, update.B), thin_product(basis.Vh, update.A.T).T)


@dataclass(frozen=True)
class DriftRouting:
    """The drift D in the coordinates of the source basis.

    Args:
        C: routing matrix U^T D V.
        receivers: densities of the k head directions as rows: their norms (Eq. 5).
        senders: the same of the columns (Eq. 6).
        residual_gram: V^T D^T (I - U U^T) D V: the part in the complement of the thin column space, as a Gram matrix;
            0 x 0 if U is square.
        energy: ||D||^2.
        bands: energy between every two bands of the thin basis, for the maps.
    """

    C: Float[Tensor, "a n"]
    receivers: Float[Tensor, " k"]
    senders: Float[Tensor, " k"]
    residual_gram: Float[Tensor, "s s"]
    energy: float
    bands: Float[Tensor, "g g"]

    @classmethod
    def of(cls, basis: SpectralBasis, drift: Operator, k: int, density: Literal["head", "full"]) -> "DriftRouting":
        """Two products with the basis, (U^T D) V, and as much again for the residual Gram matrix if U is not square.

        `density` "head" takes norms over the k x k head block, "full" over whole rows and columns.
        """
        square = _is_square(basis)
        residual_gram = basis.U.new_empty(0, 0)
        if isinstance(drift, LowRank):
            factors = routed(basis, drift)
            C = factors.dense()
            if not square:
                rest = torch.addmm(drift.B, basis.U, factors.B, alpha=-1.0)
                residual_gram = factors.A.T @ (rest.T @ rest) @ factors.A
        else:
            rows = drift.apply_t(basis.U).T
            lower = None if square else _residual(drift, rows)
            C = rows @ basis.Vh.T
            del rows
            if lower is not None:
                residual_gram = _symmetric_in(basis.Vh, lower)
        inside = column_norms(C).square()
        columns = inside if square else inside + residual_gram.diagonal().clamp_min(0)
        if density == "head":
            receivers, senders = C[:k, :k].norm(dim=1), column_norms(C[:k, :k])
        else:
            receivers, senders = C[:k].norm(dim=1), columns[:k].sqrt()
        bands = energy_of(C)
        return cls(C, receivers, senders, residual_gram, float(wide(columns).sum()), bands)

    def residual_energy(self, senders: Bool[Tensor, " n"]) -> float:
        """Energy of the drift in the complement of the thin column space that comes from these senders."""
        if self.residual_gram.numel() == 0:
            return 0.0
        return float(wide(self.residual_gram.diagonal() * senders).clamp_min(0).sum())

    def tensors(self) -> dict[str, Tensor]:
        """As plain tensors, to be kept."""
        parts = {"C": self.C, "receivers": self.receivers, "senders": self.senders, "residual_gram": self.residual_gram}
        return parts | {"energy": torch.tensor([self.energy], dtype=self.C.dtype), "bands": self.bands}

    @classmethod
    def from_tensors(cls, kept: Mapping[str, Tensor]) -> "DriftRouting":
        """Back from `tensors`."""
        C = kept["C"]
        bands = kept["bands"] if "bands" in kept else energy_of(C)  # entries of 0.1 have none
        return cls(C, kept["receivers"], kept["senders"], kept["residual_gram"], float(kept["energy"]), bands)


def _is_square(basis: SpectralBasis) -> bool:
    return basis.U.shape[0] == basis.U.shape[1]


def _residual(drift: Operator, rows: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """D^T D - rows^T rows on and below the diagonal."""
    D = drift.W if isinstance(drift, DenseOperator) else drift.dense()
    return gram(D).sub_(gram(rows)).tril_()


def _symmetric_in(Vh: Float[Tensor, "n n"], lower: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """V^T G V of a symmetric matrix given by its lower triangle, which is written to."""
    left = Vh @ lower.add_(lower.tril(-1).T)
    return left @ Vh.T


@dataclass(frozen=True)
class TallUpdate(Operator):
    """The new update of a layer with m > n, times V: U K + (I - U U^T)(B Q - D V diag(nondominant)), m x n.

    The second term lies in the complement of the thin column space: the LoRA update's part there (routed to P Q), less
    the part of the drift D that is taken away from the nondominant senders. Build with `of`.
    """

    basis: SpectralBasis
    K: Float[Tensor, "n n"]
    rest: LowRank  # (I - U U^T) B, Q; its Gram matrix is asked for at each step of a search
    drift: Operator | None
    routing: DriftRouting
    nondominant: Float[Tensor, "n 1"]
    cross: Float[Tensor, "n r"]  # V^T D^T (I - U U^T) B
    known_norm: float

    @classmethod
    def of(
        cls,
        basis: SpectralBasis,
        K: Float[Tensor, "n n"],
        update: LowRank,
        C_lora: LowRank,
        drift: Operator | None,
        routing: DriftRouting,
        nondominant: Bool[Tensor, " n"],
    ) -> "TallUpdate":
        """`C_lora` is the routed update; drift None leaves the drift where it is."""
        rest = LowRank(torch.addmm(update.B, basis.U, C_lora.B, alpha=-1.0), C_lora.A)
        cross = (
            C_lora.A.T.new_zeros(C_lora.A.T.shape) if drift is None else thin_product(basis.Vh, drift.apply_t(rest.B))
        )
        outside = rest.norm() ** 2
        if drift is not None:
            marked = nondominant.to(K.dtype)[:, None]
            outside += routing.residual_energy(nondominant) - 2 * dot(cross * marked, C_lora.A.T)
        norm = math.sqrt(square_sum(K) + max(outside, 0.0))
        return cls(basis, K, rest, drift, routing, nondominant.to(K.dtype)[:, None], cross, norm)

    @cached_property
    def _rest_gram(self) -> Float[Tensor, "r r"]:
        return self.rest.B.T @ self.rest.B

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.basis.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the products."""
        return self.K.dtype

    @property
    def device(self) -> torch.device:
        """Where the products are computed."""
        return self.K.device

    @property
    def T(self) -> Transposed:
        """The transpose."""
        return Transposed(self)

    def apply(self, Z: Float[Tensor, "n c"]) -> Float[Tensor, "m c"]:
        """Two products with m x n matrices, three with n x n."""
        inside, result = thin_product(self.K, Z), self.rest.apply(Z)
        if self.drift is not None:
            nondominant = self.nondominant * Z
            inside = torch.addmm(inside, self.routing.C, nondominant)  # what D sends into the basis stays
            result = result.sub_(self.drift.apply(thin_product(self.basis.Vh.T, nondominant)))
        return result.addmm_(self.basis.U, inside)

    def apply_t(self, Y: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """The same, transposed."""
        inside = thin_product(self.basis.U.T, Y)
        result = self.rest.apply_t(Y).add_(thin_product(self.K.T, inside))
        if self.drift is not None:
            stays = thin_product(self.routing.C.T, inside)
            result.add_((stays - thin_product(self.basis.Vh, self.drift.apply_t(Y))).mul_(self.nondominant))
        return result

    def gram(self, Z: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """M^T M Z from n x n matrices alone: K^T K Z and the Gram matrix of the part in the complement."""
        coordinates = self.rest.A @ Z
        inner = self._rest_gram @ coordinates
        result = thin_product(self.K.T, thin_product(self.K, Z))
        if self.drift is not None:
            nondominant = self.nondominant * Z
            inner = torch.addmm(inner, self.cross.T, nondominant, alpha=-1.0)
            gone = torch.addmm(self.cross @ coordinates, self.routing.residual_gram, nondominant, beta=-1.0)
            result.add_(gone.mul_(self.nondominant))
        return result.addmm_(self.rest.A.T, inner)

    def gram_matrix(self) -> Float[Tensor, "n n"]:
        """The same as a matrix."""
        Q, result, inner = self.rest.A, gram(self.K), self._rest_gram @ self.rest.A
        if self.drift is not None:
            taken = self.nondominant * self.cross
            result.add_(self.nondominant * self.routing.residual_gram * self.nondominant.T).sub_(taken @ Q)
            inner.sub_(taken.T)
        return result.addmm_(Q.T, inner)

    def norm(self) -> float:
        """Frobenius norm, by algebra on what is at hand."""
        return self.known_norm

    def inner(self, C_lora: LowRank) -> float:
        """<this, update V> with the routed update."""
        inside = dot(C_lora.B.T @ self.K, C_lora.A)
        return inside + self.rest.norm() ** 2 - dot(self.cross * self.nondominant, self.rest.A.T)

    def dense(self) -> Float[Tensor, "m n"]:
        """The matrix itself."""
        return self.apply(torch.eye(self.shape[1], dtype=self.dtype, device=self.device))


def subtract_nondominant(K: Float[Tensor, "a b"], C: Float[Tensor, "a b"], rows: Tensor, cols: Tensor) -> float:
    """K -= C in place wherever neither row nor column is marked; returns the sum of squares of what was subtracted."""
    energy = 0.0
    keep = (~cols).to(K.dtype)
    step = _ROWS if K.device.type == "cpu" else len(K)  # an accelerator has no such cache, and waits for each sum
    for target, block, marked in zip(K.split(step), C.split(step), rows.split(step), strict=True):
        nondominant = (block * keep).mul_((~marked).to(K.dtype)[:, None])
        energy += square_sum(nondominant)
        target.sub_(nondominant)
    return energy
