"""Reuse the update as it is, at a strength."""

from typing import ClassVar

from loraport.methods import base


class DirectParams(base.Params):
    """strength: factor on the update; 1 is what loading the LoRA on the target does."""

    strength: float = 1.0


class Direct(base.TransferMethod):
    """The baseline: D' = strength * D."""

    name: ClassVar[str] = "direct"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "reuse the update unchanged, at a strength"
    reference: ClassVar[str] = "the usual practice; the 'direct' rows of arXiv 2605.01929"
    Params: ClassVar[type[base.Params]] = DirectParams
    keeps_rank: ClassVar[bool] = True

    def needs(self, params: DirectParams) -> base.Needs:
        """Nothing but the LoRA."""
        return base.Needs()

    def transfer(self, inputs: base.LayerInputs, params: DirectParams) -> base.LayerOutput:
        """The update times strength."""
        update = inputs.update if params.strength == 1.0 else inputs.update.scaled(params.strength)
        return base.LayerOutput(update, {"cosine": 1.0 if params.strength >= 0 else -1.0}, update)
