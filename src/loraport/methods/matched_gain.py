"""Reuse the update at a gain per layer that is read off the two weights, and give back what the drift takes from it."""

from pydantic import Field

from loraport.methods import base
from loraport.methods.columns import COSINE, NORM_RATIO, Column
from loraport.methods.cost import Cost, elementwise, factors, thin_product, total
from loraport.methods.maps import LayerMap


class MatchedGainParams(base.Params):
    """Settings of matched-gain.

    Args:
        power: the update grows with the weight, by (|W_target| / |W_source|)^power; 0 leaves it as it is.
        give_back: share of what the drift takes from the update's own singular pairs that is added again.
    """

    power: float = Field(default=2.0, ge=0, le=100)
    give_back: float = Field(default=1.0, ge=0, le=100)


@base.register
class MatchedGain(base.TransferMethod[MatchedGainParams]):
    """D' = sum_i (g s_i + give_back max(-c_i, 0)) u_i v_i^T, with D = sum_i s_i u_i v_i^T and c_i = u_i^T drift v_i.

    Not in the paper. Two observations behind it, both from the tables in docs/evidence.md. A step-distilled model has
    larger weights than its source, so the same update is relatively weaker: g = (|W_target| / |W_source|)^power, layer
    by layer. And where the drift points against the update along the update's own singular pairs (c_i < 0), sum of
    the two is less than the update alone: the difference is given back. Rank, singular vectors and file size of the
    input stay as they are; nothing is undone anywhere else, so quality is the target's own.
    """

    name = "matched-gain"
    version = 3
    summary = "reuse the update at a gain read off both weights, and give back what the drift cancels"
    reference = "loraport; see docs/evidence.md"
    Params = MatchedGainParams
    columns = (
        Column("gain", "gain", "factor on the update: the ratio of the two weights' norms to the given power"),
        Column(
            "given_back",
            "given back",
            "norm of what the drift cancels and the method adds again, over that of the update",
        ),
        COSINE,
        NORM_RATIO,
    )
    maps = (
        LayerMap(
            "pairs",
            "Gain by singular pair",
            "Peaks are pairs along which the drift points against the LoRA; the method restores that. 1 is no change.",
            "output over input",
            "singular pair of the update",
            lines=("gain",),
            level=1.0,
        ),
    )
    keeps_rank = True

    def needs(self, params: MatchedGainParams) -> base.Needs:
        """The two weights and their difference; no decomposition of either."""
        return base.Needs(source=True, target=True, drift=True)

    def transfer(self, inputs: base.LayerInputs, params: MatchedGainParams) -> base.LayerOutput:
        """Products with the update's own r singular pairs only."""
        from loraport.methods import matched_gain_steps  # loads torch

        return matched_gain_steps.transfer(inputs, params)

    def cost(self, shape: tuple[int, int], rank: int, params: MatchedGainParams, warm: bool) -> Cost:
        """Two norms, one thin product, and two decompositions of factors."""
        return total(self.steps(shape, rank, params, warm).values())

    def steps(self, shape: tuple[int, int], rank: int, params: MatchedGainParams, warm: bool) -> dict[str, Cost]:
        """The second decomposition is that which balances the output."""
        m, n = shape
        return {
            "norms of the weights": elementwise(m, n, 5),
            "drift along the update": thin_product(m, n, rank),
            "decomposition of the update": factors(m, n, rank).times(2),
        }

    def most_rank(self, shape: tuple[int, int], rank: int, params: MatchedGainParams) -> int:
        """The update's singular vectors."""
        return min(rank, *shape)
