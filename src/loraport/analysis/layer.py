"""One layer: from its tensors to everything that is kept of it. Pure; nothing is read or written here.

Everything is computed with the long side downwards; figures that name a side are turned back at the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator

from loraport.analysis import nulls, subspaces
from loraport.analysis.coordinates import Coordinates, turned
from loraport.analysis.depth import kind_and_block
from loraport.analysis.kept import sampled, short
from loraport.analysis.projected import Angles, Layer, Projected, ProjectedLora, Proof
from loraport.analysis.results import LayerAnalysis, LoraAnalysis
from loraport.analysis.routing_figures import meeting_of, routing_of
from loraport.analysis.update_figures import POINTS, drift_figures, lora_figures
from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operator import dot, norm
from loraport.core.operators import Operator, inner
from loraport.methods.casa.params import CasaParams
from loraport.methods.casa.routing import DriftRouting
from loraport.methods.casa.selection import clusters_of

_MEANT = 1e-5  # of the weight: rounding below it is that of float32, and says nothing


@dataclass(frozen=True)
class Stored:
    """How the two weights of a layer are stored.

    Args:
        dtype: number format of both, as safetensors spells it; None where they are quantised or kept in two.
        relative: norm of the difference that rounding alone makes, over that of the source weight.
    """

    dtype: str | None
    relative: float


@dataclass(frozen=True)
class LayerTensors:
    """What is known of a layer.

    Args:
        name: canonical layer name.
        shape: (out, in).
        basis: of the source weight, thin.
        routing: the drift in it, of `methods.casa`: of the transposed layer, where that is wider than tall.
        drift: target minus source; only needed where the weight is not square.
        updates: of the LoRAs that change it, by label.
        stored: None where the target is made of the source, so that no rounding is in the drift.
    """

    name: str
    shape: tuple[int, int]
    basis: SpectralBasis
    routing: DriftRouting
    drift: Operator | None
    updates: Mapping[str, LowRank]
    stored: Stored | None


def project(layer: LayerTensors, params: CasaParams, seed: int) -> Projected:
    """The first half: after it nothing of the layer's own size is needed.

    Args:
        layer: its tensors.
        params: CASA's thresholds; densities are those of the head.
        seed: of the null models.
    """
    wide = layer.shape[0] < layer.shape[1]
    basis = layer.basis.T if wide else layer.basis
    generator, head = Generator().manual_seed(seed), basis.head(params.head_energy)
    drift = Coordinates.of_routing(layer.routing)
    loras = {}
    for label, update in layer.updates.items():
        given = update.T if wide else update
        along = _product(layer, update, drift, basis, given)
        loras[label] = ProjectedLora(Coordinates.of_factors(basis, given), update.svd()[1].square(), update.rank, along)
    return Projected(
        about=Layer(basis.S, basis.shape, wide, head, params),
        name=layer.name,
        drift=drift,
        routing=layer.routing,
        random=nulls.gaussian(basis.shape, drift.norm, basis.S, generator),
        noise=_rounding(basis, layer.stored, drift, head, generator),
        floor=None if layer.stored is None else layer.stored.relative,
        loras=loras,
        generator=generator,
    )


def analyse(layer: Projected) -> LayerAnalysis:
    """The second half: everything that is told of the layer. Time and origin are the caller's.

    Raises:
        NumericalError: a decomposition failed.
    """
    about, drift = layer.about, layer.drift
    S, k, weight = about.S, about.k, about.weight
    after = turned(S, drift, name=layer.name)
    energies = torch.linalg.eigvalsh(drift.gram()).flip(0).clamp_min(0)
    proof = Proof(Angles.measured(after), Angles.predicted(S, drift), drift.norm, float(energies[0]) ** 0.5)
    figures = drift_figures(layer, after, energies, proof)
    del after
    own = clusters_of(drift.C[:k, :k], S[:k], about.params.tau)
    found = []
    for label, lora in layer.loras.items():
        clusters = clusters_of(lora.update.C[:k, :k], S[:k], about.params.tau)
        found.append(
            LoraAnalysis(
                label,
                lora_figures(layer, lora),
                routing_of(about, label, clusters, drift, lora.update, layer.noise, proof),
                meeting_of(layer, lora, clusters),
            )
        )
    at = subspaces.groups(len(S), POINTS)
    kind, block = kind_and_block(layer.name)
    return LayerAnalysis(
        name=layer.name,
        kind=kind,
        block=block,
        shape=about.given_shape,
        weight_norm=short(weight),
        at=at,
        singular_values=sampled(S, at),
        head=about.k,
        drift=figures,
        routing=routing_of(about, "drift", own, drift, None, layer.noise, proof),
        loras=tuple(found),
        seconds=0.0,
        cached=False,
    )


def _rounding(
    basis: SpectralBasis, stored: Stored | None, drift: Coordinates, k: int, generator: Generator
) -> nulls.Rounding | None:
    if stored is None or stored.dtype is None or stored.relative < _MEANT or drift.norm == 0.0:
        return None
    return nulls.rounding(basis, stored.dtype, stored.relative * norm(basis.S), k, generator)


def _product(layer: LayerTensors, update: LowRank, drift: Coordinates, basis: SpectralBasis, given: LowRank) -> float:
    """<update, drift>. What both have outside of the thin basis is in the drift itself alone; a square layer has
    nothing there, and whether its drift is at hand hangs on the cache, which must not show in the last digit."""
    if layer.drift is not None and basis.U.shape[0] != basis.U.shape[1]:
        return inner(update, layer.drift)
    return dot((basis.U.T @ given.B).T @ drift.C, given.A @ basis.Vh.T)
