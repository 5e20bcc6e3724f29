"""CASA, step by step, for one layer: see the top of `method.py`.

Layers wider than tall are transposed first, so that rows are the long side.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operator import dot
from loraport.core.operators import DenseOperator, Operator, Routed
from loraport.methods import base
from loraport.methods.casa.arbitration import smaller_of
from loraport.methods.casa.maps import Looked
from loraport.methods.casa.params import CasaParams
from loraport.methods.casa.routing import DriftRouting, TallUpdate, routed, subtract_nondominant
from loraport.methods.casa.selection import Selection, select
from loraport.methods.maps import MapValues


def prepare(inputs: base.LayerInputs, params: CasaParams) -> dict[str, Tensor]:
    """The routing of the drift."""
    inputs = _with_basis(_upright(inputs), params)
    basis, drift = inputs.require_basis(), inputs.require_drift()
    return DriftRouting.of(basis, drift, _head(inputs, params), params.density).tensors()


def transfer(inputs: base.LayerInputs, params: CasaParams) -> base.LayerOutput:
    """The new update of one layer; the figures are in `_figures`."""
    if inputs.update.shape[0] < inputs.update.shape[1]:
        output = transfer(_upright(inputs), params)
        return base.LayerOutput(output.update.T, output.stats, inputs.update, _turned(output.maps))
    inputs = _with_basis(inputs, params)
    basis, update, kept = inputs.require_basis(), inputs.update, inputs.prepared
    drift = DriftRouting.from_tensors(prepare(inputs, params) if kept is None else kept)
    if drift.energy == 0.0:
        return base.LayerOutput(update, {"cosine": 1.0, "norm_ratio": 1.0, "drift_undone": 0.0}, update)

    C_lora = routed(basis, update)
    K = C_lora.dense()  # becomes the routing matrix of the new update
    selection = select(K, drift, basis.S, _head(inputs, params), params)
    looked = Looked.at(C_lora, K, drift, selection)
    nondominant = ~selection.cols
    met = K.view(-1).index_select(0, selection.hits)
    taken = smaller_of(met, drift.C.view(-1).index_select(0, selection.hits))
    undone = 0.0
    if params.restore:
        undone = subtract_nondominant(K, drift.C, selection.rows, selection.cols) + drift.residual_energy(nondominant)
    K.view(-1).index_copy_(0, selection.hits, met - taken)  # dominant entries, which nothing has touched since

    core: DenseOperator | TallUpdate
    if basis.U.shape[0] == basis.U.shape[1]:
        core = DenseOperator(K, DenseOperator(K).norm())
        new: Operator = Routed(basis.U, core, basis.Vh, C_lora)
        along = dot(C_lora.B.T @ K, C_lora.A)  # <new, update>
    else:
        core = TallUpdate.of(basis, K, update, C_lora, inputs.drift if params.restore else None, drift, nondominant)
        new = Routed(None, core, basis.Vh, LowRank(update.B, C_lora.A))
        along = core.inner(C_lora)
    if isinstance(inputs.drift, LowRank) and not params.arbitrate:
        new = _restored_in_factors(update, inputs.drift, basis, selection) if params.restore else update
    scale = update.norm()
    stats = _figures(update.shape, scale, core.norm(), along, selection, looked, undone / drift.energy)
    maps = looked.maps(update.shape, math.sqrt(drift.energy), scale, params)
    return base.LayerOutput(new, stats | {"svd_driver": basis.driver}, update, maps)


def _figures(
    shape: tuple[int, int],
    scale: float,
    size: float,
    along: float,
    selection: Selection,
    looked: Looked,
    undone: float,
) -> dict[str, base.Stat]:
    """The values of `Casa.columns`, before the update is cut to a rank; shares are of the m x n routing matrix."""
    m, n = shape
    nondominant = (m - looked.rows) * (n - looked.cols)
    return {
        "head": selection.clusters.labels.numel(),
        "clusters": selection.clusters.count,
        "largest_cluster": looked.largest,
        "dominant_share": 1.0 - nondominant / (m * n),
        "arbitrated_share": selection.hits.numel() / (m * n),
        "unsettled_share": selection.unsettled.share,
        "unsettled_hits": selection.unsettled.hits,
        "drift_undone": min(undone, 1.0),
        "cosine": along / (size * scale) if size > 0 and scale > 0 else 0.0,
        "norm_ratio": size / scale if scale > 0 else 0.0,
    }


def _turned(maps: Mapping[str, MapValues]) -> dict[str, MapValues]:
    """The maps of the transposed layer as those of the layer: who received there sends here."""
    other = {"sends": "receives", "receives": "sends"}
    return {key: maps[other[key]] if key in other else values.T for key, values in maps.items()}


def _head(inputs: base.LayerInputs, params: CasaParams) -> int:
    """Eq. 3, on every layer or on square ones only."""
    m, n = inputs.update.shape
    return inputs.require_basis().head(params.head_energy) if m == n or params.cut_nonsquare else min(m, n)


def _restored_in_factors(update: LowRank, drift: LowRank, basis: SpectralBasis, selection: Selection) -> LowRank:
    """D - (I - U_d U_d^T) B_fft A_fft (I - V_d V_d^T): exact at rank r + r_fft."""
    U, Vh = basis.U[:, selection.rows], basis.Vh[selection.cols]
    B = drift.B - U @ (U.T @ drift.B)
    A = drift.A - (drift.A @ Vh.T) @ Vh
    return LowRank.sum([update, LowRank(-B, A)])


def _with_basis(inputs: base.LayerInputs, params: CasaParams) -> base.LayerInputs:
    return replace(inputs, basis=inputs.require_basis().completed()) if params.complete_basis else inputs


def _upright(inputs: base.LayerInputs) -> base.LayerInputs:
    """The transposed layer, if this one is wider than tall. Receivers and senders change places."""
    if inputs.update.shape[0] >= inputs.update.shape[1]:
        return inputs
    return replace(
        inputs,
        update=inputs.update.T,
        basis=inputs.require_basis().T,
        drift=None if inputs.drift is None else inputs.drift.T,
    )
