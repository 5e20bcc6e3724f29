"""Cluster-Aware Spectral Arbitration (arXiv 2605.01929)."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from loraport.core.clusters import block_sum, connected_components, perturbation_edges, quantile
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator, square_sum
from loraport.core.routing import density, routed
from loraport.methods import base


class CasaParams(base.Params):
    """Switches and thresholds; the defaults are the paper's."""

    restore: bool = True
    arbitrate: bool = True
    tau: float = Field(0.5, ge=0)
    q_dom: float = Field(0.5, ge=0, le=1)
    q_act: float = Field(0.85, ge=0, le=1)
    head_energy: float = Field(0.9, gt=0, le=1)
    density: Literal["head", "full"] = "head"
    cut_nonsquare: bool = True
    complete_basis: bool = False


class Casa(base.TransferMethod):
    """Undo the drift where it does not dominate, and arbitrate where it does."""

    name: ClassVar[str] = "casa"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "undo the drift away from its dominant directions, arbitrate on them"
    reference: ClassVar[str] = "CASA, arXiv 2605.01929 (ICML 2026)"
    Params: ClassVar[type[base.Params]] = CasaParams

    def needs(self, params: CasaParams) -> base.Needs:
        """The source basis and the drift."""
        return base.Needs(basis=True, drift=True)

    def prepared_key(self, params: CasaParams) -> str | None:
        """The densities depend on the head and the kind of density only."""
        return f"density={params.density},head_energy={params.head_energy!r},cut_nonsquare={params.cut_nonsquare}"

    def prepare(self, inputs: base.LayerInputs, params: CasaParams) -> dict[str, Tensor]:
        """Densities of the drift."""
        dens = density(inputs.basis, inputs.drift, self._head(inputs, params), params.density)
        return {"receivers": dens.receivers, "senders": dens.senders}

    def _head(self, inputs: base.LayerInputs, params: CasaParams) -> int:
        m, n = inputs.update.shape
        return inputs.basis.head(params.head_energy) if m == n or params.cut_nonsquare else min(m, n)

    def transfer(self, inputs: base.LayerInputs, params: CasaParams) -> base.LayerOutput:
        """The new update, dense for now."""
        update, basis, drift = inputs.update, inputs.basis, inputs.drift
        k = self._head(inputs, params)
        prepared = inputs.prepared or self.prepare(inputs, params)
        if params.complete_basis:
            basis = basis.completed()
        C = routed(basis, update)
        head = LowRank(C.B[:k], C.A[:, :k])
        clusters = connected_components(perturbation_edges(head.dense(), basis.S[:k], params.tau))
        rows = torch.zeros(basis.U.shape[1], dtype=torch.bool)
        cols = torch.zeros(basis.Vh.shape[0], dtype=torch.bool)
        rows[:k] = clusters.dominant(prepared["receivers"], params.q_dom)
        cols[:k] = clusters.dominant(prepared["senders"], params.q_dom)
        U_d, V_d = basis.U[:, rows], basis.Vh[cols].T
        D = drift.dense()
        new = update.dense()
        undone = torch.zeros_like(D)
        if params.restore:
            undone = D - U_d @ (U_d.T @ D)
            undone = undone - (undone @ V_d) @ V_d.T
            new = new - undone
        mask = rows[:, None] | cols[None, :]
        share = 0.0
        if params.arbitrate:
            lora, fft = C.dense(), basis.U.T @ D @ basis.Vh.T
            product = lora * fft
            block = [
                block_sum(x[:k, :k], clusters.labels, clusters.labels, clusters.count)
                for x in (product, lora**2, fft**2)
            ]
            cosine = block[0] / (block[1].sqrt() * block[2].sqrt() + 1e-8)
            score = product.clone()
            score[:k, :k] *= cosine[clusters.labels][:, clusters.labels]
            candidates = (product > 0) & mask
            if bool(candidates.any()):
                hit = candidates & (score > quantile(score[candidates], params.q_act))
                smaller = torch.minimum(lora.abs(), fft.abs()) * lora.sign() * hit
                new = new - basis.U @ smaller @ basis.Vh
                share = float(hit.sum()) / hit.numel()
        m, n = update.shape
        total = drift.norm() ** 2
        op = DenseOperator(new)
        norm = op.norm() * update.norm()
        stats: dict[str, base.Stat] = {
            "head": k,
            "clusters": clusters.count,
            "largest_cluster": int(clusters.sizes.max()),
            "dominant_share": 1 - (m - int(rows.sum())) * (n - int(cols.sum())) / (m * n),
            "arbitrated_share": share,
            "drift_undone": square_sum(undone) / total if total > 0 else 0.0,
            "cosine": float((new.double() * update.dense().double()).sum()) / norm if norm > 0 else 0.0,
            "svd_driver": inputs.basis.driver,
            "norm_ratio": op.norm() / update.norm() if update.norm() > 0 else math.inf,
        }
        return base.LayerOutput(op, stats, update)
