"""Take out of the update what is parallel to the drift, matrix by matrix."""

from typing import ClassVar

from pydantic import Field

from loraport.core.operators import inner
from loraport.methods import base
from loraport.methods.uniform_shrink import without_drift

_TINY = 1e-12


class OrthogonalShiftParams(base.Params):
    """beta: share of the parallel part that is taken out."""

    beta: float = Field(1.0, ge=0)


class OrthogonalShift(base.TransferMethod):
    """D' = D - beta (<D, drift> / <drift, drift>) drift, and D' = D if there is no drift."""

    name: ClassVar[str] = "orthogonal-shift"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "take out of the update what is parallel to the drift"
    reference: ClassVar[str] = "after orthogonal_shift of apanariello4/merge-and-rebase"
    Params: ClassVar[type[base.Params]] = OrthogonalShiftParams

    def needs(self, params: OrthogonalShiftParams) -> base.Needs:
        """The drift."""
        return base.Needs(drift=True)

    def transfer(self, inputs: base.LayerInputs, params: OrthogonalShiftParams) -> base.LayerOutput:
        """One inner product of matrices."""
        assert inputs.drift is not None
        square = inputs.drift.norm() ** 2
        if square <= _TINY:
            return base.LayerOutput(inputs.update, {"cosine": 1.0, "cosine_to_drift": 0.0}, inputs.update)
        along = inner(inputs.update, inputs.drift)
        scale = inputs.update.norm()
        towards = along / (scale * square**0.5) if scale > 0 else 0.0
        new = without_drift(inputs.update, inputs.drift, params.beta * along / square)
        kept = max(1 - (2 - params.beta) * params.beta * towards**2, 0.0) ** 0.5
        stats = {"cosine": (1 - params.beta * towards**2) / kept if kept else 0.0, "cosine_to_drift": towards}
        return base.LayerOutput(new, stats, inputs.update)
