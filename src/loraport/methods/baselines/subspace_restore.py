"""Undo the drift where the LoRA works, and nowhere else: on the directions that it reads and those that it writes."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.core.operator import Operator, wide
from loraport.core.operators import cosine
from loraport.methods import base
from loraport.methods.columns import COSINE, DRIFT_UNDONE, NORM_RATIO
from loraport.methods.cost import Cost, elementwise, factors, product


class SubspaceRestoreParams(base.Params):
    """Settings of subspace-restore.

    Args:
        share: how much of that part of the drift is undone.
        side: the drift's answer to what the LoRA reads ("inputs"), its effect on what the LoRA writes ("outputs"),
            either ("both"), or only what is common to the two ("corner").
    """

    share: float = Field(default=1.0, ge=0, le=1)
    side: Literal["inputs", "outputs", "both", "corner"] = "both"


@base.register
class SubspaceRestore(base.TransferMethod[SubspaceRestoreParams]):
    """D' = D - share (drift V V^T + U U^T drift - U U^T drift V V^T), U and V spanning the update's columns and rows.

    The rank is at most three times the update's, so that nothing is lost where undoing a full-rank drift at the rank
    of a LoRA loses nearly all of it.
    """

    name = "subspace-restore"
    version = 1
    summary = "undo the drift on the directions that the LoRA reads and writes"
    reference = "ours"
    Params = SubspaceRestoreParams
    columns = (DRIFT_UNDONE, COSINE, NORM_RATIO)

    def needs(self, params: SubspaceRestoreParams) -> base.Needs:
        """The drift."""
        return base.Needs(drift=True)

    def transfer(self, inputs: base.LayerInputs, params: SubspaceRestoreParams) -> base.LayerOutput:
        """Two thin products with the drift."""
        update, drift = inputs.update, inputs.require_drift()
        size, energy = update.norm(), drift.norm() ** 2
        if size == 0 or energy == 0:
            return base.LayerOutput(update, {"cosine": 1.0, "norm_ratio": 1.0, "drift_undone": 0.0}, update)
        part = _part(drift, *_spans(update), params.side)
        new = LowRank.sum([update, part.scaled(-params.share)])
        stats: dict[str, base.Stat] = {
            "drift_undone": min(params.share * (2 - params.share) * part.norm() ** 2 / energy, 1.0),
            "cosine": cosine(update, new),
            "norm_ratio": new.norm() / size,
        }
        return base.LayerOutput(new, stats, update)

    def cost(self, shape: tuple[int, int], rank: int, params: SubspaceRestoreParams, warm: bool) -> Cost:
        """The update's singular vectors, the products, and the cut of three times its rank."""
        m, n = shape
        return factors(m, n, rank) + product(m, n, rank, 2) + elementwise(m, n, 2) + factors(m, n, 3 * rank)


def _spans(update: LowRank) -> tuple[Float[Tensor, "m s"], Float[Tensor, "n s"]]:
    """Orthonormal bases of the columns and the rows of an update; directions that are rounding are left out."""
    left, right = torch.linalg.qr(wide(update.B)), torch.linalg.qr(wide(update.A.T))
    u, s, vh = torch.linalg.svd(left.R @ right.R.T)
    kept = s > s[0] * max(update.shape) * torch.finfo(update.dtype).eps
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
