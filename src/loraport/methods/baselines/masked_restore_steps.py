"""The mathematics of masked-restore."""

import zlib

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator, Operator
from loraport.methods import base
from loraport.methods.baselines.masked_restore import HALVINGS, MaskedRestoreParams, as_casa
from loraport.methods.casa.method import Casa


def transfer(inputs: base.LayerInputs, params: MaskedRestoreParams) -> base.LayerOutput:
    """Casa's share of the drift undone in other places."""
    basis, drift = inputs.require_basis(), inputs.require_drift()
    settings = as_casa(params)
    wanted = float(Casa().transfer(inputs, settings).stats["drift_undone"])
    D = drift.dense()
    C = basis.U.T @ D @ basis.Vh.T
    generator = Generator().manual_seed(params.seed + zlib.crc32(inputs.name.encode()))
    orders = [_order(C.norm(dim=1 - side), params.mask, generator) for side in (0, 1)]
    total = float(D.square().sum())
    low, high, undone, rest = 0.0, 1.0, 1.0, D
    for _ in range(HALVINGS if total > 0 else 0):
        share = (low + high) / 2
        rest = _restored(D, basis, *(_first(order, share) for order in orders))
        undone = float(rest.square().sum()) / total
        low, high = (share, high) if undone > wanted else (low, share)
    new: Operator = DenseOperator(inputs.update.dense() - rest)
    if isinstance(drift, LowRank):
        new = LowRank.sum([inputs.update, LowRank.from_dense(-rest).truncated(drift.rank)])
    return base.LayerOutput(new, {"drift_undone": undone, "drift_undone_by_casa": wanted}, inputs.update)


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
