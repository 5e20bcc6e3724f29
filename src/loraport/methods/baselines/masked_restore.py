"""Undo as much of the drift as casa does, but elsewhere: is casa's choice of directions better than chance?"""

from typing import Literal

from pydantic import Field

from loraport.methods import base
from loraport.methods.casa.method import Casa
from loraport.methods.casa.params import CasaParams
from loraport.methods.columns import DRIFT_UNDONE, Column
from loraport.methods.cost import Cost, basis_bytes, elementwise, matrix_bytes, product, truncation

HALVINGS = 30
"""Of the share of directions, until as much drift is undone."""


class MaskedRestoreParams(base.Params):
    """Settings of masked-restore. The last three are those of casa, whose amount of undone drift is matched.

    Args:
        mask: which directions are spared, "random" ones or those where the drift is weakest ("reversed").
        seed: of the random order.
        q_dom: as in casa.
        tau: as in casa.
        head_energy: as in casa.
    """

    mask: Literal["random", "reversed"] = "random"
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    q_dom: float = Field(default=0.5, ge=0, le=1)
    tau: float = Field(default=0.5, ge=0)
    head_energy: float = Field(default=0.9, gt=0, le=1)


@base.register
class MaskedRestore(base.TransferMethod[MaskedRestoreParams]):
    """D' = D - (I - U_x U_x^T) drift (I - V_x V_x^T), with other directions x than casa's dominant ones.

    As many directions are spared, in a random order or from the weakest drift upwards, as make the energy of the
    undone drift equal to that of casa's restoration. `drift_undone` says how equal.
    """

    name = "masked-restore"
    version = 2
    summary = "undo as much drift as casa, away from random or from the weakest directions (a control)"
    reference = "a control for CASA, arXiv 2605.01929"
    Params = MaskedRestoreParams
    columns = (
        DRIFT_UNDONE,
        Column(
            "drift_undone_by_casa", "undone by casa", "share of the drift's squared norm that casa removes", "share"
        ),
    )

    def needs(self, params: MaskedRestoreParams) -> base.Needs:
        """What casa needs."""
        return base.Needs(basis=True, drift=True)

    def transfer(self, inputs: base.LayerInputs, params: MaskedRestoreParams) -> base.LayerOutput:
        """Casa's share of the drift undone in other places."""
        from loraport.methods.baselines import (
            masked_restore_steps,  # loads torch
        )

        return masked_restore_steps.transfer(inputs, params)

    def cost(self, shape: tuple[int, int], rank: int, params: MaskedRestoreParams, warm: bool) -> Cost:
        """Casa's own work, the drift's routing, a pass over it for each halving of the share, and four projections."""
        m, n = shape
        p = min(m, n)
        own = Casa().cost(shape, rank, as_casa(params), False)
        energies = product(m, n, p, 1 if m == n else 2) + product(p, p, p) + elementwise(p, p, 2).times(HALVINGS)
        return own + energies + product(m, n, p, 2) + elementwise(m, n, 6) + truncation(m, n, rank)

    def memory(self, shape: tuple[int, int], rank: int, params: MaskedRestoreParams) -> int:
        """Basis and drift; what is left of the drift, a projection of it, and the directions that they go by."""
        m, n = shape
        square, thin = matrix_bytes(min(m, n), min(m, n), 3), matrix_bytes(m + n, rank, 6)
        return basis_bytes(m, n) + matrix_bytes(m, n, 5.5) + square + thin


base.preset("random-mask", "masked-restore", "undo as much drift as casa, away from random directions")
base.preset(
    "reversed-mask",
    "masked-restore",
    "undo as much drift as casa, away from the weakest directions",
    {"mask": "reversed"},
)


def as_casa(params: MaskedRestoreParams) -> CasaParams:
    """The settings of casa whose undone drift is matched."""
    return CasaParams(arbitrate=False, q_dom=params.q_dom, tau=params.tau, head_energy=params.head_energy)
