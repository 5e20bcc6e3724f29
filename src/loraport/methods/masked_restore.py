"""Undo as much of the drift as casa does, but elsewhere: is casa's choice of directions better than chance?"""

import zlib
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator, Operator
from loraport.methods import base
from loraport.methods.casa.method import Casa, CasaParams

_HALVINGS = 30


class MaskedRestoreParams(base.Params):
    """mask: which directions are spared, "random" ones or those where the drift is weakest ("reversed").

    seed: of the random order. q_dom, tau, head_energy: as in casa, whose amount of undone drift is matched.
    """

    mask: Literal["random", "reversed"] = "random"
    seed: int = 0
    q_dom: float = 0.5
    tau: float = 0.5
    head_energy: float = 0.9


class MaskedRestore(base.TransferMethod):
    """D' = D - (I - U_x U_x^T) drift (I - V_x V_x^T), with other directions x than casa's dominant ones.

    As many directions are spared, in a random order or from the weakest drift upwards, as make the energy of the
    undone drift equal to that of casa's restoration. `drift_undone` says how equal.
    """

    name: ClassVar[str] = "masked-restore"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "undo as much drift as casa, away from random or from the weakest directions (a control)"
    reference: ClassVar[str] = "a control for CASA, arXiv 2605.01929"
    Params: ClassVar[type[base.Params]] = MaskedRestoreParams

    def needs(self, params: MaskedRestoreParams) -> base.Needs:
        """What casa needs."""
        return base.Needs(basis=True, drift=True)

    def transfer(self, inputs: base.LayerInputs, params: MaskedRestoreParams) -> base.LayerOutput:
        """Casa's share of the drift undone in other places."""
        basis, drift = inputs.basis, inputs.drift
        assert basis is not None
        assert drift is not None
        settings = CasaParams(arbitrate=False, q_dom=params.q_dom, tau=params.tau, head_energy=params.head_energy)
        wanted = float(Casa().transfer(inputs, settings).stats["drift_undone"])
        D = drift.dense()
        C = basis.U.T @ D @ basis.Vh.T
        generator = Generator().manual_seed(params.seed + zlib.crc32(inputs.name.encode()))
        orders = [_order(C.norm(dim=1 - side), params.mask, generator) for side in (0, 1)]
        total = float(D.square().sum())
        low, high, undone, rest = 0.0, 1.0, 1.0, D
        for _ in range(_HALVINGS if total > 0 else 0):
            share = (low + high) / 2
            rest = _quiet(D, basis, *(_first(order, share) for order in orders))
            undone = float(rest.square().sum()) / total
            low, high = (share, high) if undone > wanted else (low, share)
        new: Operator = DenseOperator(inputs.update.dense() - rest)
        if isinstance(drift, LowRank):
            new = LowRank.sum([inputs.update, LowRank.from_dense(-rest).truncated(drift.rank)])
        return base.LayerOutput(new, {"drift_undone": undone, "drift_undone_by_casa": wanted}, inputs.update)


def _order(density: Float[Tensor, " p"], mask: str, generator: Generator) -> Int[Tensor, " p"]:
    if mask == "random":
        return torch.randperm(len(density), generator=generator).to(density.device)
    return density.argsort()


def _first(order: Int[Tensor, " p"], share: float) -> Bool[Tensor, " p"]:
    marks = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    marks[order[: round(share * len(order))]] = True
    return marks


def _quiet(
    D: Float[Tensor, "m n"], basis: SpectralBasis, rows: Bool[Tensor, " p"], cols: Bool[Tensor, " p"]
) -> Float[Tensor, "m n"]:
    """(I - U_x U_x^T) D (I - V_x V_x^T)."""
    U, Vh = basis.U[:, rows], basis.Vh[cols]
    rest = D - U @ (U.T @ D)
    return rest - (rest @ Vh.T) @ Vh
