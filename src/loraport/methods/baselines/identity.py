"""Take the update apart and put it together again: a control for everything but the method."""

from loraport.methods import base
from loraport.methods.columns import COSINE
from loraport.methods.cost import Cost, factors


class IdentityParams(base.Params):
    """No settings."""


@base.register
class Identity(base.TransferMethod[IdentityParams]):
    """D' = D by way of its singular value decomposition. Must score like `direct`; if not, a file is read wrongly."""

    name = "identity"
    version = 1
    summary = "take the update apart and put it back together (a control)"
    reference = "a control; every published comparison of converted LoRAs needs it"
    Params = IdentityParams
    columns = (COSINE,)
    keeps_rank = True

    def needs(self, params: IdentityParams) -> base.Needs:
        """Nothing but the LoRA."""
        return base.Needs()

    def transfer(self, inputs: base.LayerInputs, params: IdentityParams) -> base.LayerOutput:
        """The update from its singular values and vectors."""
        update = inputs.update.balanced()
        return base.LayerOutput(update, {"cosine": 1.0}, update)

    def cost(self, shape: tuple[int, int], rank: int, params: IdentityParams, warm: bool) -> Cost:
        """Taken apart here, and once more for the output."""
        return factors(*shape, rank) + factors(*shape, rank)
