"""Scale the drift down by one factor in the layers that the LoRA touches, with no look at its structure."""

from typing import ClassVar

from pydantic import Field

from loraport.core.lowrank import LowRank
from loraport.core.measures import cosine
from loraport.core.operators import DenseOperator, Operator
from loraport.methods import base


class UniformShrinkParams(base.Params):
    """share: how much of the drift is undone; 1 leaves the source's weights in these layers.

    strength: factor on the update.
    """

    share: float = Field(0.5, ge=0, le=1)
    strength: float = 1.0


class UniformShrink(base.TransferMethod):
    """D' = strength D - share drift. The simplest rival of any method that undoes drift selectively."""

    name: ClassVar[str] = "uniform-shrink"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "undo the same share of the drift everywhere in the LoRA's layers"
    reference: ClassVar[str] = "a control: task arithmetic (arXiv 2212.04089) applied to the drift"
    Params: ClassVar[type[base.Params]] = UniformShrinkParams

    def needs(self, params: UniformShrinkParams) -> base.Needs:
        """The drift."""
        return base.Needs(drift=True)

    def transfer(self, inputs: base.LayerInputs, params: UniformShrinkParams) -> base.LayerOutput:
        """The update less a share of the drift."""
        assert inputs.drift is not None
        new = without_drift(inputs.update.scaled(params.strength), inputs.drift, params.share)
        return base.LayerOutput(new, {"cosine": cosine(inputs.update, new)}, inputs.update)


def without_drift(update: LowRank, drift: Operator, share: float) -> Operator:
    """update - share drift; in factors if the drift has them."""
    if share == 0:
        return update
    if isinstance(drift, LowRank):
        return LowRank.sum([update, drift.scaled(-share)])
    return DenseOperator(update.dense().sub_(drift.dense(), alpha=share))
