"""An update in the singular directions of the weight that it changes, and the changed weight decomposed there.

In the basis W = U diag(S) Vh an m x n update D with m >= n is its routing matrix C = U^T D V (p x p, p = n), and what
of it lies outside the column space of U. Of the latter only the Gram matrix counts, so it is kept in at most p rows,
and the changed weight is the matrix [diag(S) + C; rest], whose decomposition costs little more than a square layer's.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operator import norm
from loraport.core.thin_svd import gram, thin_svd
from loraport.methods.casa.routing import DriftRouting, routed


@dataclass(frozen=True)
class Coordinates:
    """An update of a weight with m >= n, in the weight's own directions.

    Args:
        C: routing matrix U^T D V.
        rest: rows R with R^T R = V^T D^T (I - U U^T) D V; none where the weight is square.
    """

    C: Float[Tensor, "p p"]
    rest: Float[Tensor, "q p"]

    @property
    def norm(self) -> float:
        """Frobenius norm of the update."""
        return (norm(self.C) ** 2 + norm(self.rest) ** 2) ** 0.5

    @property
    def rest_energy(self) -> Float[Tensor, " p"]:
        """Of each sender, the energy that goes outside of U."""
        return self.rest.square().sum(0)  # five times as quick as norms along this side

    def onto(self, S: Float[Tensor, " p"]) -> Float[Tensor, "r p"]:
        """The changed weight in these directions, for the weight's singular values S."""
        changed = torch.cat([self.C, self.rest])
        changed.diagonal().add_(S)
        return changed

    def gram(self) -> Float[Tensor, "p p"]:
        """V^T D^T D V; its eigenvalues are the squared singular values of D. The lower triangle alone is defined."""
        found = gram(self.C)
        return found + gram(self.rest) if len(self.rest) else found

    def between(self, low: int, high: int) -> "Coordinates":
        """What it does between the directions from `low` on and below `high`."""
        return Coordinates(self.C[low:high, low:high], self.rest[:, low:high])

    @classmethod
    def of_factors(cls, basis: SpectralBasis, update: LowRank) -> "Coordinates":
        """Of a low-rank update.

        Args:
            basis: of a weight with m >= n.
            update: in the coordinates of the layer.
        """
        inside = routed(basis, update)
        if basis.U.shape[0] == basis.U.shape[1]:
            return cls(inside.dense(), inside.A.new_empty(0, inside.A.shape[1]))
        outside = torch.addmm(update.B, basis.U, inside.B, alpha=-1.0)
        R = torch.linalg.qr(outside, mode="r").R
        return cls(inside.dense(), R @ inside.A)

    @classmethod
    def of_routing(cls, routing: DriftRouting) -> "Coordinates":
        """Of a drift that CASA has routed."""
        p = routing.C.shape[1]
        if not routing.residual_gram.numel():
            return cls(routing.C, routing.C.new_empty(0, p))
        return cls(routing.C, _root(routing.residual_gram))


def _root(G: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """R with R^T R = G, a Gram matrix up to rounding."""
    floor = torch.finfo(G.dtype).eps * float(G.diagonal().max())
    L, failed = torch.linalg.cholesky_ex(G)
    if int(failed) == 0 and float(L.diagonal().min()) ** 2 > floor:
        return L.T
    values, vectors = torch.linalg.eigh(G)
    return (vectors * values.clamp_min(0).sqrt()).T


@dataclass(frozen=True)
class Turned:
    """Singular values after an update, and the new directions in terms of the old ones.

    Args:
        S: singular values, the largest first.
        left: <u_i, u'_j>, of the longer side.
        right: <v_i, v'_j>, of the other.
        left_rest: squared length of u'_j outside of all old directions.
        right_rest: the same of v'_j; zero, since these span the whole space.
    """

    S: Float[Tensor, " p"]
    left: Float[Tensor, "p p"]
    right: Float[Tensor, "p p"]
    left_rest: Float[Tensor, " p"]
    right_rest: Float[Tensor, " p"]


def turned(S: Float[Tensor, " p"], update: Coordinates, *, name: str = "matrix") -> Turned:
    """Decompose the changed weight.

    Args:
        S: singular values of the weight, descending.
        update: what is added to it.
        name: of the layer, for messages.

    Raises:
        NumericalError: no driver could do it.
    """
    p = len(S)
    basis = thin_svd(update.onto(S), name=name)
    rest = basis.U[p:].square().sum(0)
    return Turned(basis.S, basis.U[:p], basis.Vh.T, rest, torch.zeros_like(rest))
