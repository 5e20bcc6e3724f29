"""What an update looks like in the coordinates of a layer: the routing matrix C = U^T D V (Eq. 2).

Entry (i, j) is how much of input direction j (the sender) the update D sends to output direction i (the receiver).
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import Operator


@dataclass(frozen=True)
class Density:
    """Row norms (receivers) and column norms (senders) of the drift's routing matrix, for the k head directions."""

    receivers: Float[Tensor, " k"]
    senders: Float[Tensor, " k"]


def density(basis: SpectralBasis, drift: Operator, k: int, kind: Literal["head", "full"]) -> Density:
    """Densities over the k x k head block ("head"), or over whole rows and columns ("full")."""
    rows = drift.apply_t(basis.U[:, :k]).T
    if kind == "full":
        return Density(rows.norm(dim=1), drift.apply(basis.Vh[:k].T).norm(dim=0))
    block = rows @ basis.Vh[:k].T
    return Density(block.norm(dim=1), block.norm(dim=0))


def routed(basis: SpectralBasis, update: LowRank) -> LowRank:
    """C = (U^T B)(A V) of a low-rank update, a x b, in factors."""
    return LowRank(basis.U.T @ update.B, update.A @ basis.Vh.T)
