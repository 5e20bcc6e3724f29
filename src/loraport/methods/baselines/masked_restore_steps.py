"""The mathematics of masked-restore."""

import zlib
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operator import column_norms, square_sum, wide
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
    energies = _Energies.of(basis, D)
    generator = Generator().manual_seed(params.seed + zlib.crc32(inputs.name.encode()))
    orders = [_order(energies.entries.sum(dim=1 - side), params.mask, generator) for side in (0, 1)]
    total, undone, rest = square_sum(D), 0.0, D
    if total > 0:
        low, high, share = 0.0, 1.0, 1.0
        for _ in range(HALVINGS):
            share = (low + high) / 2
            left = total - energies.spared(*(_first(order, share) for order in orders))
            low, high = (share, high) if left > wanted * total else (low, share)
        rest = _restored(D, basis, *(_first(order, share) for order in orders))
        undone = square_sum(rest) / total
    new: Operator = DenseOperator(inputs.update.dense() - rest)
    if isinstance(drift, LowRank):
        new = LowRank.sum([inputs.update, LowRank.from_dense(-rest).truncated(drift.rank)])
    return base.LayerOutput(new, {"drift_undone": undone, "drift_undone_by_casa": wanted}, inputs.update)


@dataclass(frozen=True)
class _Energies:
    """Squares of the drift in the coordinates of the source's weight, from which the energy of any part of it is known.

    Args:
        entries: of its routing matrix.
        rows: ||u_i^T D||^2 of every receiver, which on a wide layer is more than its entries hold.
        cols: ||D v_j||^2 of every sender, likewise on a tall one.
    """

    entries: Float[Tensor, "p p"]
    rows: Float[Tensor, " p"]
    cols: Float[Tensor, " p"]

    @classmethod
    def of(cls, basis: SpectralBasis, D: Float[Tensor, "m n"]) -> "_Energies":
        """Three products of the drift's size."""
        entries = (basis.U.T @ D @ basis.Vh.T).square()
        m, n = D.shape
        rows, cols = entries.sum(dim=1), entries.sum(dim=0)
        if m > n:
            cols = column_norms(D @ basis.Vh.T).square()
        elif m < n:
            rows = column_norms(D.T @ basis.U).square()
        return cls(entries, rows, cols)

    def spared(self, rows: Bool[Tensor, " p"], cols: Bool[Tensor, " p"]) -> float:
        """||D||^2 - ||(I - U_x U_x^T) D (I - V_x V_x^T)||^2."""
        twice = self.entries[rows] @ cols.to(self.entries.dtype)
        return float(wide(torch.cat([self.rows[rows], self.cols[cols], -twice])).sum())


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
