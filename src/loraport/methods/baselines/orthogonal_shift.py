"""Take out of the update what is parallel to the drift, matrix by matrix."""

from pydantic import Field

from loraport.methods import base
from loraport.methods.baselines.uniform_shrink import subtraction_cost, without_drift
from loraport.methods.columns import COSINE, Column
from loraport.methods.cost import Cost, elementwise

_TINY = 1e-12


class OrthogonalShiftParams(base.Params):
    """Settings of orthogonal-shift.

    Args:
        beta: share of the parallel part that is taken out.
    """

    beta: float = Field(default=1.0, ge=0, le=100)


@base.register
class OrthogonalShift(base.TransferMethod[OrthogonalShiftParams]):
    """D' = D - beta (<D, drift> / <drift, drift>) drift, and D' = D if there is no drift."""

    name = "orthogonal-shift"
    version = 1
    summary = "remove the part of the update that is parallel to the drift"
    reference = "after orthogonal_shift of apanariello4/merge-and-rebase"
    Params = OrthogonalShiftParams
    columns = (COSINE, Column("cosine_to_drift", "along drift", "cosine between the input's update and the drift"))

    def needs(self, params: OrthogonalShiftParams) -> base.Needs:
        """The drift."""
        return base.Needs(drift=True)

    def transfer(self, inputs: base.LayerInputs, params: OrthogonalShiftParams) -> base.LayerOutput:
        """One inner product of matrices."""
        from loraport.core.operators import inner  # loads torch

        drift = inputs.require_drift()
        square = drift.norm() ** 2
        if square <= _TINY:
            return base.LayerOutput(inputs.update, {"cosine": 1.0, "cosine_to_drift": 0.0}, inputs.update)
        along = inner(inputs.update, drift)
        scale = inputs.update.norm()
        towards = along / (scale * square**0.5) if scale > 0 else 0.0
        new = without_drift(inputs.update, drift, params.beta * along / square)
        kept = max(1 - (2 - params.beta) * params.beta * towards**2, 0.0) ** 0.5
        stats: dict[str, base.Stat] = {
            "cosine": (1 - params.beta * towards**2) / kept if kept else 0.0,
            "cosine_to_drift": towards,
        }
        return base.LayerOutput(new, stats, inputs.update)

    def cost(self, shape: tuple[int, int], rank: int, params: OrthogonalShiftParams, warm: bool) -> Cost:
        """One inner product, and the difference formed and cut."""
        return elementwise(*shape, 2) + subtraction_cost(*shape, rank)
