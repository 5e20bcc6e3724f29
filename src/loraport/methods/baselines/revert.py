"""What restoration alone does: CASA's undoing of the drift without the LoRA."""

from typing import TYPE_CHECKING

from loraport.methods import base
from loraport.methods.casa.method import Casa
from loraport.methods.casa.params import CasaParams
from loraport.methods.columns import COSINE, NORM_RATIO
from loraport.methods.cost import Cost, elementwise, matrix_bytes, product, truncation

if TYPE_CHECKING:
    from loraport.core.operators import Operator


class RevertParams(CasaParams):
    """Those of casa; arbitration needs a LoRA to arbitrate with and is left out."""

    arbitrate: bool = False


@base.register
class Revert(base.TransferMethod[RevertParams]):
    """D' = -(I - U_d U_d^T) drift (I - V_d V_d^T), the dominant directions being those that casa finds with the LoRA.

    If this control moves a style score by itself, that much of a method's gain is a return to the source.
    """

    name = "revert"
    version = 1
    summary = "undo the drift where casa would, and leave the LoRA out (a control)"
    reference = "a control; cf. appendix B.2.1 of CASA, arXiv 2605.01929"
    Params = RevertParams
    columns = tuple(column for column in Casa.columns if column not in (COSINE, NORM_RATIO))
    maps = tuple(each for each in Casa.maps if each.key != "arbitrated")

    def needs(self, params: RevertParams) -> base.Needs:
        """What casa needs."""
        return base.Needs(basis=True, drift=True)

    def transfer(self, inputs: base.LayerInputs, params: RevertParams) -> base.LayerOutput:
        """Casa's update less the LoRA's."""
        from loraport.core.lowrank import LowRank  # loads torch
        from loraport.core.operators import DenseOperator

        output = Casa().transfer(inputs, _as_casa(params))
        new: Operator
        if isinstance(output.update, LowRank):
            new = LowRank.sum([output.update, inputs.update.scaled(-1.0)])
        else:
            new = DenseOperator(output.update.dense() - inputs.update.dense())
        stats = {key: value for key, value in output.stats.items() if key not in ("cosine", "norm_ratio")}
        return base.LayerOutput(new, stats, inputs.update, output.maps)

    def cost(self, shape: tuple[int, int], rank: int, params: RevertParams, warm: bool) -> Cost:
        """Casa's, and its update formed."""
        m, n = shape
        formed = product(m, min(m, n), n, 2) + elementwise(m, n, 3)
        return Casa().cost(shape, rank, _as_casa(params), False) + formed + truncation(m, n, rank)

    def memory(self, shape: tuple[int, int], rank: int, params: RevertParams) -> int:
        """Casa's, and its update formed."""
        return Casa().memory(shape, rank, _as_casa(params)) + matrix_bytes(*shape, 3)


def _as_casa(params: RevertParams) -> CasaParams:
    return CasaParams(**params.model_dump() | {"arbitrate": False})
