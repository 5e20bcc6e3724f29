"""Turn the update with the singular vectors: from the source's clusters of directions to the target's."""

from pydantic import Field

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
        from loraport.methods.baselines import (
            cluster_transport_steps,  # loads torch
        )

        return cluster_transport_steps.transfer(inputs, params)

    def cost(self, shape: tuple[int, int], rank: int, params: ClusterTransportParams, warm: bool) -> Cost:
        """Products of both bases with each other and small decompositions, cluster by cluster; the latter dominate."""
        m, n = shape
        p = min(m, n)
        return product(m + n, p, 20 * min(params.largest, p) + 4 * rank) + factors(m, n, rank)

    def most_rank(self, shape: tuple[int, int], rank: int, params: ClusterTransportParams) -> int:
        """Turned factors are as many."""
        return rank
