"""Undo as much of the drift as casa does, but elsewhere: is casa's choice of directions better than chance?"""

import zlib
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator, Operator
from loraport.methods import base
from loraport.methods.casa.method import Casa
from loraport.methods.casa.params import CasaParams
from loraport.methods.columns import DRIFT_UNDONE, Column
from loraport.methods.cost import Cost, elementwise, product, truncation

_HALVINGS = 30


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
    seed: int = 0
    q_dom: float = 0.5
    tau: float = 0.5
    head_energy: float = 0.9


@base.register
class MaskedRestore(base.TransferMethod[MaskedRestoreParams]):
    """D' = D - (I - U_x U_x^T) drift (I - V_x V_x^T), with other directions x than casa's dominant ones.

    As many directions are spared, in a random order or from the weakest drift upwards, as make the energy of the
    undone drift equal to that of casa's restoration. `drift_undone` says how equal.
    """

    name = "masked-restore"
    version = 1
    summary = "undo as much drift as casa, away from random or from the weakest directions (a control)"
    reference = "a control for CASA, arXiv 2605.01929"
    Params = MaskedRestoreParams
    columns = (
        DRIFT_UNDONE,
        Column(
            "drift_undone_by_casa", "undone by casa", "share of the drift's squared norm that casa takes away", "share"
        ),
    )

    def needs(self, params: MaskedRestoreParams) -> base.Needs:
        """What casa needs."""
        return base.Needs(basis=True, drift=True)

    def transfer(self, inputs: base.LayerInputs, params: MaskedRestoreParams) -> base.LayerOutput:
        """Casa's share of the drift undone in other places."""
        basis, drift = inputs.require_basis(), inputs.require_drift()
        settings = _as_casa(params)
        wanted = float(Casa().transfer(inputs, settings).stats["drift_undone"])
        D = drift.dense()
        C = basis.U.T @ D @ basis.Vh.T
        generator = Generator().manual_seed(params.seed + zlib.crc32(inputs.name.encode()))
        orders = [_order(C.norm(dim=1 - side), params.mask, generator) for side in (0, 1)]
        total = float(D.square().sum())
        low, high, undone, rest = 0.0, 1.0, 1.0, D
        for _ in range(_HALVINGS if total > 0 else 0):
            share = (low + high) / 2
            rest = _restored(D, basis, *(_first(order, share) for order in orders))
            undone = float(rest.square().sum()) / total
            low, high = (share, high) if undone > wanted else (low, share)
        new: Operator = DenseOperator(inputs.update.dense() - rest)
        if isinstance(drift, LowRank):
            new = LowRank.sum([inputs.update, LowRank.from_dense(-rest).truncated(drift.rank)])
        return base.LayerOutput(new, {"drift_undone": undone, "drift_undone_by_casa": wanted}, inputs.update)

    def cost(self, shape: tuple[int, int], rank: int, params: MaskedRestoreParams, warm: bool) -> Cost:
        """Casa's own work, the drift's routing, and four projections for each halving of the share."""
        m, n = shape
        p = min(m, n)
        each = product(m, n, p, 2) + elementwise(m, n, 6)
        own = Casa().cost(shape, rank, _as_casa(params), False)
        return own + product(m, n, p, 2) + each.times(_HALVINGS) + truncation(m, n, rank)


base.preset("random-mask", "masked-restore", "undo as much drift as casa, away from random directions")
base.preset(
    "reversed-mask",
    "masked-restore",
    "undo as much drift as casa, away from the weakest directions",
    {"mask": "reversed"},
)


def _as_casa(params: MaskedRestoreParams) -> CasaParams:
    return CasaParams(arbitrate=False, q_dom=params.q_dom, tau=params.tau, head_energy=params.head_energy)


def _order(density: Float[Tensor, " p"], mask: str, generator: Generator) -> Int[Tensor, " p"]:
    if mask == "random":
        return torch.randperm(len(density), generator=generator).to(density.device)
    return density.argsort(stable=True)


def _first(order: Int[Tensor, " p"], share: float) -> Bool[Tensor, " p"]:
    marks = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    marks[order[: round(share * len(order))]] = True
    return marks


def _restored(
    D: Float[Tensor, "m n"], basis: SpectralBasis, rows: Bool[Tensor, " p"], cols: Bool[Tensor, " p"]
) -> Float[Tensor, "m n"]:
    """(I - U_x U_x^T) D (I - V_x V_x^T)."""
    U, Vh = basis.U[:, rows], basis.Vh[cols]
    rest = D - U @ (U.T @ D)
    return rest - (rest @ Vh.T) @ Vh
