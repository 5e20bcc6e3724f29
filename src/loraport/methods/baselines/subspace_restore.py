"""Undo the drift where the LoRA works, and nowhere else: on the directions that it reads and those that it writes."""

from typing import Literal

from pydantic import Field

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
    version = 2
    summary = "undo the drift on the directions that the LoRA reads and writes"
    reference = "ours"
    Params = SubspaceRestoreParams
    columns = (DRIFT_UNDONE, COSINE, NORM_RATIO)

    def needs(self, params: SubspaceRestoreParams) -> base.Needs:
        """The drift."""
        return base.Needs(drift=True)

    def transfer(self, inputs: base.LayerInputs, params: SubspaceRestoreParams) -> base.LayerOutput:
        """Two thin products with the drift."""
        from loraport.methods.baselines import (
            subspace_restore_steps,  # loads torch
        )

        return subspace_restore_steps.transfer(inputs, params)

    def cost(self, shape: tuple[int, int], rank: int, params: SubspaceRestoreParams, warm: bool) -> Cost:
        """The update's singular vectors, the products, and the cut of three times its rank."""
        m, n = shape
        return factors(m, n, rank) + product(m, n, rank, 2) + elementwise(m, n, 2) + factors(m, n, 3 * rank)

    def most_rank(self, shape: tuple[int, int], rank: int, params: SubspaceRestoreParams) -> int:
        """The update, and the drift on each side."""
        return min((3 if params.side == "both" else 2) * rank, *shape)
