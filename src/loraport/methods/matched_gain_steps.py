"""The mathematics of matched-gain."""

import torch

from loraport.core.lowrank import LowRank
from loraport.core.operator import wide
from loraport.core.operators import Operator
from loraport.methods import base
from loraport.methods.maps import MapValues
from loraport.methods.matched_gain import MatchedGainParams

_DRAWN = 64  # singular pairs of an update


def transfer(inputs: base.LayerInputs, params: MatchedGainParams) -> base.LayerOutput:
    """Products with the update's own r singular pairs only."""
    drift, update = inputs.require_drift(), inputs.update
    U, S, Vh = update.svd()
    gain = norm_ratio(inputs.require_source(), inputs.require_target()) ** params.power
    along = (U * drift.apply(Vh.T)).sum(0)
    lost = torch.where(_rounding(S) < S, (-along).clamp_min(0), 0.0)  # a pair of s = 0 is no direction of D
    grown = gain * S + params.give_back * lost
    new = LowRank.from_svd(U, grown, Vh)
    before, after, given = wide(torch.stack([S, grown, lost]).cpu())  # in one copy: an accelerator waits once
    scale, length = update.norm(), float(after.norm())
    stats: dict[str, base.Stat] = {
        "gain": gain,
        "given_back": params.give_back * float(given.norm()) / scale if scale > 0 else 0.0,
        "norm_ratio": length / scale if scale > 0 else 0.0,
        "cosine": float((after * before).sum()) / (length * scale) if length * scale > 0 else 0.0,
    }
    drawn = torch.where(before > _rounding(before), after / before, gain)[:_DRAWN].tolist()
    return base.LayerOutput(new, stats, new, {"pairs": MapValues.of_rows([drawn], (1, len(drawn)))})


def norm_ratio(source: Operator, target: Operator) -> float:
    """|W_target| / |W_source| in Frobenius norms; 1 for a source of zeros."""
    size = source.norm()
    return target.norm() / size if size > 0 else 1.0


def _rounding(S: torch.Tensor) -> float:
    """Singular values of float32 factors below this are rounding errors of the largest."""
    largest = float(S[0]) if S.numel() else 0.0
    return largest * float(torch.finfo(torch.float32).eps) * S.numel()
