"""Scale the drift down by one factor in the layers that the LoRA touches, with no look at its structure."""

from typing import TYPE_CHECKING

from pydantic import Field

from loraport.methods import base
from loraport.methods.columns import COSINE
from loraport.methods.cost import Cost, elementwise, product, truncation

if TYPE_CHECKING:
    from loraport.core.lowrank import LowRank
    from loraport.core.operators import Operator


class UniformShrinkParams(base.Params):
    """Settings of uniform-shrink.

    Args:
        share: how much of the drift is undone; 1 leaves the source's weights in these layers.
        strength: factor on the update.
    """

    share: float = Field(default=0.5, ge=0, le=1)
    strength: float = 1.0


@base.register
class UniformShrink(base.TransferMethod[UniformShrinkParams]):
    """D' = strength D - share drift. The simplest rival of any method that undoes drift selectively."""

    name = "uniform-shrink"
    version = 1
    summary = "undo the same share of the drift everywhere in the LoRA's layers"
    reference = "a control: task arithmetic (arXiv 2212.04089) applied to the drift"
    Params = UniformShrinkParams
    columns = (COSINE,)

    def needs(self, params: UniformShrinkParams) -> base.Needs:
        """The drift."""
        return base.Needs(drift=True)

    def transfer(self, inputs: base.LayerInputs, params: UniformShrinkParams) -> base.LayerOutput:
        """The update less a share of the drift."""
        from loraport.core.operators import cosine  # loads torch

        new = without_drift(inputs.update.scaled(params.strength), inputs.require_drift(), params.share)
        return base.LayerOutput(new, {"cosine": cosine(inputs.update, new)}, inputs.update)

    def cost(self, shape: tuple[int, int], rank: int, params: UniformShrinkParams, warm: bool) -> Cost:
        """The difference formed, and cut."""
        return subtraction_cost(*shape, rank)


def subtraction_cost(m: int, n: int, rank: int) -> Cost:
    """A low-rank update less a full matrix, formed, measured and cut to a rank."""
    return product(m, n, rank, 2) + elementwise(m, n, 5) + truncation(m, n, rank)


def without_drift(update: "LowRank", drift: "Operator", share: float) -> "Operator":
    """update - share drift; in factors if the drift has them."""
    from loraport.core.lowrank import LowRank
    from loraport.core.operators import DenseOperator

    if share == 0:
        return update
    if isinstance(drift, LowRank):
        return LowRank.sum([update, drift.scaled(-share)])
    return DenseOperator(update.dense().sub_(drift.dense(), alpha=share))


base.preset("full-restore", "uniform-shrink", "undo all of the drift in the LoRA's layers", {"share": 1.0})
