"""Turn the update with the singular vectors: from the source's clusters of directions to the target's."""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.core.operator import wide
from loraport.core.operators import cosine
from loraport.methods import base
from loraport.methods.columns import COSINE, NORM_RATIO, Column
from loraport.methods.cost import Cost, factors, product


class ClusterTransportParams(base.Params):
    """Settings of cluster-transport.

    Args:
        gap: neighbours in the spectrum whose singular values differ by less than this share belong together.
        largest: clusters are cut at this size. One cluster of everything is direct reuse.
    """

    gap: float = Field(default=0.02, ge=0)
    largest: int = Field(default=64, ge=1)


@base.register
class ClusterTransport(base.TransferMethod[ClusterTransportParams]):
    """D' = P_U D P_V^T, P_U = sum over clusters c of U_t,c polar(U_t,c^T U_s,c) U_s,c^T, and P_V likewise.

    What a rectangular layer has outside the thin basis is projected off the target's basis. Norm and rank are
    (nearly) kept. This is the coordinate transport of DART without its bridge, or Theseus with the signs and the
    clusters that it leaves open.
    """

    name = "cluster-transport"
    version = 1
    summary = "turn the update from the source's clusters of directions to the target's"
    reference = "after DART, arXiv 2609.20051, and Theseus, arXiv 2602.12952"
    Params = ClusterTransportParams
    columns = (
        Column("clusters", "clusters", "runs of neighbouring singular directions that are turned together", "count"),
        COSINE,
        NORM_RATIO,
    )

    def needs(self, params: ClusterTransportParams) -> base.Needs:
        """The bases of both weights."""
        return base.Needs(basis=True, target_basis=True)

    def transfer(self, inputs: base.LayerInputs, params: ClusterTransportParams) -> base.LayerOutput:
        """A small polar decomposition a cluster; the factors' rank does not change."""
        source, target = inputs.require_basis(), inputs.require_target_basis()
        update = inputs.update
        labels = spectral_clusters(source.S, params.gap, params.largest)
        B = _turned(update.B, source.U, target.U, labels)
        A = _turned(update.A.T, source.Vh.T, target.Vh.T, labels).T
        new = LowRank(B, A.contiguous())
        scale = update.norm()
        stats: dict[str, base.Stat] = {
            "clusters": int(labels.max()) + 1,
            "cosine": cosine(update, new),
            "norm_ratio": new.norm() / scale if scale > 0 else 0.0,
        }
        return base.LayerOutput(new, stats, new)

    def cost(self, shape: tuple[int, int], rank: int, params: ClusterTransportParams, warm: bool) -> Cost:
        """Products of both bases with each other and small decompositions, cluster by cluster; the latter dominate."""
        m, n = shape
        p = min(m, n)
        return product(m + n, p, 20 * min(params.largest, p) + 4 * rank) + factors(m, n, rank)


def spectral_clusters(S: Float[Tensor, " p"], gap: float, largest: int) -> Tensor:
    """Cluster number of each direction: runs of neighbours with close singular values, at most `largest` long."""
    labels, number, size = torch.zeros(len(S), dtype=torch.int64), 0, 1
    values = wide(S.cpu()).tolist()
    for i in range(1, len(values)):
        close = values[i - 1] - values[i] <= gap * values[i - 1]
        number, size = (number, size + 1) if close and size < largest else (number + 1, 1)
        labels[i] = number
    return labels


def _turned(
    X: Float[Tensor, "m r"], U_s: Float[Tensor, "m p"], U_t: Float[Tensor, "m p"], labels: Tensor
) -> Float[Tensor, "m r"]:
    rest = X - U_s @ (U_s.T @ X)
    moved = rest - U_t @ (U_t.T @ rest)
    for number in range(int(labels.max()) + 1):
        chosen = (labels == number).to(X.device)
        a, b = U_s[:, chosen], U_t[:, chosen]
        left, _, right = torch.linalg.svd(b.T @ a)
        moved = moved + b @ (left @ (right @ (a.T @ X)))
    return moved
