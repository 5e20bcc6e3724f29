"""The mathematics of subspace-restore."""

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.core.operator import Operator, wide
from loraport.core.operators import cosine
from loraport.methods import base
from loraport.methods.baselines.subspace_restore import SubspaceRestoreParams


def transfer(inputs: base.LayerInputs, params: SubspaceRestoreParams) -> base.LayerOutput:
    """Two thin products with the drift."""
    update, drift = inputs.update, inputs.require_drift()
    size, energy = update.norm(), drift.norm() ** 2
    if size == 0 or energy == 0:
        return base.LayerOutput(update, {"cosine": 1.0, "norm_ratio": 1.0, "drift_undone": 0.0}, update)
    part = _part(drift, *_spans(update), params.side).no_wider()
    new = LowRank.sum([update, part.scaled(-params.share)]).no_wider()
    stats: dict[str, base.Stat] = {
        "drift_undone": min(params.share * (2 - params.share) * part.norm() ** 2 / energy, 1.0),
        "cosine": cosine(update, new),
        "norm_ratio": new.norm() / size,
    }
    return base.LayerOutput(new, stats, update)


def _spans(update: LowRank) -> tuple[Float[Tensor, "m s"], Float[Tensor, "n s"]]:
    """Orthonormal bases of the columns and the rows of an update; directions that are rounding are left out."""
    least = max(update.shape) * torch.finfo(update.dtype).eps
    if not update.thin:
        u, s, vh = update.svd()
        return u[:, s > s[0] * least], vh[s > s[0] * least].T
    left, right = torch.linalg.qr(wide(update.B)), torch.linalg.qr(wide(update.A.T))
    u, s, vh = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    kept = s > s[0] * least
    return (left.Q @ u[:, kept]).to(update.B), (right.Q @ vh[kept].T).to(update.B)


def _part(drift: Operator, U: Float[Tensor, "m s"], V: Float[Tensor, "n s"], side: str) -> LowRank:
    """The part of the drift on these directions."""
    answers = drift.apply(V)
    if side == "inputs":
        return LowRank(answers, V.T)
    if side == "corner":
        return LowRank(U, (U.T @ answers) @ V.T)
    written = drift.apply_t(U).T
    if side == "outputs":
        return LowRank(U, written)
    return LowRank(torch.cat([answers, U], 1), torch.cat([V.T, written - (written @ V) @ V.T], 0))
