"""Reuse the update at a gain per layer that is read off the two weights, and give back what the drift takes from it."""

from typing import ClassVar

import torch
from pydantic import Field

from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator, Operator
from loraport.methods import base


class MatchedGainParams(base.Params):
    """power: the update grows with the weight, by (|W_target| / |W_source|)^power; 0 leaves it as it is.

    give_back: share of what the drift takes from the update's own singular pairs that is added again.
    """

    power: float = Field(2.0, ge=0)
    give_back: float = Field(1.0, ge=0)


class MatchedGain(base.TransferMethod):
    """D' = sum_i (g s_i + give_back max(-c_i, 0)) u_i v_i^T, with D = sum_i s_i u_i v_i^T and c_i = u_i^T drift v_i.

    Not in the paper. Two observations behind it, both from the tables in docs/evidence.md. A step-distilled model has
    larger weights than its source, so the same update is relatively weaker: g = (|W_target| / |W_source|)^power, layer
    by layer. And where the drift points against the update along the update's own singular pairs (c_i < 0), sum of
    the two is less than the update alone: the difference is given back. Rank, singular vectors and file size of the
    input stay as they are; nothing is undone anywhere else, so quality is the target's own.
    """

    name: ClassVar[str] = "matched-gain"
    version: ClassVar[int] = 2
    summary: ClassVar[str] = "reuse the update at a gain read off both weights, and give back what the drift cancels"
    reference: ClassVar[str] = "loraport; see docs/evidence.md"
    Params: ClassVar[type[base.Params]] = MatchedGainParams
    keeps_rank: ClassVar[bool] = True

    def needs(self, params: MatchedGainParams) -> base.Needs:
        """The two weights; no decomposition of either."""
        return base.Needs(weight=True, drift=True)

    def transfer(self, inputs: base.LayerInputs, params: MatchedGainParams) -> base.LayerOutput:
        """Products with the update's own r singular pairs only."""
        weight, drift, update = inputs.weight, inputs.drift, inputs.update
        assert weight is not None
        assert drift is not None
        U, S, Vh = update.svd()
        gain = norm_ratio(weight, drift) ** params.power
        along = (U * drift.apply(Vh.T)).sum(0)
        grown = gain * S + params.give_back * (-along).clamp_min(0)
        new = LowRank.from_svd(U, grown, Vh)
        scale = update.norm()
        length = float(grown.double().norm())
        stats = {
            "gain": gain,
            "given_back": params.give_back * float((-along).clamp_min(0).double().norm()) / scale if scale > 0 else 0.0,
            "norm_ratio": length / scale if scale > 0 else 0.0,
            "cosine": float((grown.double() * S.double()).sum()) / (length * scale) if length * scale > 0 else 0.0,
        }
        return base.LayerOutput(new, stats, new)


def norm_ratio(weight: DenseOperator, drift: Operator) -> float:
    """|W + drift| / |W| in Frobenius norms; 1 for a weight of zeros. W + drift is not formed.

    |W + D|² = |W|² + 2 <W, D> + |D|², with <W, BA> = <B, W Aᵀ> where the drift is factored.
    """
    source = weight.norm()
    if source == 0:
        return 1.0
    if isinstance(drift, DenseOperator):
        cross = float(torch.dot(weight.W.reshape(-1), drift.W.reshape(-1)))
    else:
        assert isinstance(drift, LowRank)
        cross = float((drift.B * weight.apply(drift.A.T)).double().sum())
    square = source**2 + 2 * cross + drift.norm() ** 2
    return max(square, 0.0) ** 0.5 / source
