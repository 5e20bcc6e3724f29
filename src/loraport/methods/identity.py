"""Take the update apart and put it together again: a control for everything but the method."""

from typing import ClassVar

from loraport.methods import base


class IdentityParams(base.Params):
    """No settings."""


class Identity(base.TransferMethod):
    """D' = D by way of its singular value decomposition. Must score like `direct`; if not, a file is read wrongly."""

    name: ClassVar[str] = "identity"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "take the update apart and put it together again (a control)"
    reference: ClassVar[str] = "a control; every published comparison of converted LoRAs needs it"
    Params: ClassVar[type[base.Params]] = IdentityParams
    keeps_rank: ClassVar[bool] = True

    def needs(self, params: IdentityParams) -> base.Needs:
        """Nothing but the LoRA."""
        return base.Needs()

    def transfer(self, inputs: base.LayerInputs, params: IdentityParams) -> base.LayerOutput:
        """The update from its singular values and vectors."""
        update = inputs.update.balanced()
        return base.LayerOutput(update, {"cosine": 1.0}, update)
