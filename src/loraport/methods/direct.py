"""Reuse the update as it is, at a strength."""

from loraport.methods import base
from loraport.methods.columns import COSINE
from loraport.methods.cost import Cost, factors


class DirectParams(base.Params):
    """Settings of direct reuse.

    Args:
        strength: factor on the update; 1 is what loading the LoRA on the target does.
    """

    strength: float = 1.0


@base.register
class Direct(base.TransferMethod[DirectParams]):
    """The baseline: D' = strength * D."""

    name = "direct"
    version = 1
    summary = "reuse the update unchanged, at a strength"
    reference = "the usual practice; the 'direct' rows of arXiv 2605.01929"
    Params = DirectParams
    columns = (COSINE,)
    keeps_rank = True

    def needs(self, params: DirectParams) -> base.Needs:
        """Nothing but the LoRA."""
        return base.Needs()

    def transfer(self, inputs: base.LayerInputs, params: DirectParams) -> base.LayerOutput:
        """The update times strength."""
        update = inputs.update if params.strength == 1.0 else inputs.update.scaled(params.strength)
        return base.LayerOutput(update, {"cosine": 1.0 if params.strength >= 0 else -1.0}, update)

    def cost(self, shape: tuple[int, int], rank: int, params: DirectParams, warm: bool) -> Cost:
        """The factors are balanced for the output."""
        return factors(*shape, rank)
