"""One layer, looked at: sums of squares and products from which every figure is a ratio (`figures.py`).

Sums, since they add up over layers: the figure of several layers is the same ratio of the sums.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.analysis import nulls, routing_maps, spectrum
from loraport.analysis.plan import PARAMS
from loraport.analysis.run import stored_as
from loraport.checking import spectra
from loraport.checking.figures import LayerSums
from loraport.checking.sample import Chosen
from loraport.containers.references import TensorRef
from loraport.core.basis import SpectralBasis, directions_holding
from loraport.core.lowrank import LowRank
from loraport.core.operator import dot, norm, square_sum, wide
from loraport.core.operators import DenseOperator, Operator
from loraport.core.thin_svd import thin_svd
from loraport.engine.executor import Slot, threads_for
from loraport.engine.job import Job, LayerJob
from loraport.engine.layer import check_norms, read_weight
from loraport.engine.on_device import with_the_cpu_behind
from loraport.engine.reading import InputReader
from loraport.engine.rounding import rounding_share
from loraport.machine import cores
from loraport.methods import registry
from loraport.methods.base import LayerInputs
from loraport.store.store import Store

ALL_BUT = 0.99
"""Of a drift's energy besides rounding, that the directions counted in `rank` hold."""
_TINY = 1e-6
"""Below this share of a weight's norm a float32 difference of it is noise of the arithmetic."""


@dataclass(frozen=True)
class Look(Job):
    """What is to be looked at in one layer.

    Attributes:
        chosen: the layer, with the weights of the pair.
        updates: of each LoRA that changes it, by the number of the LoRA.
        shape: (out, in).
        peak_bytes: memory expected meanwhile.
    """

    chosen: Chosen
    updates: Mapping[int, LayerJob]
    shape: tuple[int, int]
    peak_bytes: int

    @property
    def title(self) -> str:
        """The name of the layer."""
        return self.chosen.job.name

    @property
    def refs(self) -> dict[str, TensorRef]:
        """Those of the pair, and of each LoRA."""
        jobs = [self.chosen.job, *self.updates.values()]
        return {f"{at}.{role}": ref for at, job in enumerate(jobs) for role, ref in job.refs.items()}


@dataclass(frozen=True)
class SeenLayer:
    """What was seen.

    Attributes:
        chosen: the layer.
        pair: sums of the two weights.
        loras: sums of each LoRA, by its number; of a LoRA whose update is zero here, none.
    """

    chosen: Chosen
    pair: LayerSums
    loras: Mapping[int, LayerSums] = field(default_factory=dict)


def look_job(chosen: Chosen, updates: Mapping[int, LayerJob]) -> Look:
    """The order to look at a layer."""
    m, n = chosen.job.shape
    peak = max(job.peak_bytes for job in updates.values()) + 4 * m * n * (5 if chosen.decompose else 1)
    return Look(chosen, updates, (m, n), peak)


@dataclass(frozen=True)
class Looker:
    """A function of one order and the slot that it is done in. Picklable.

    Args:
        reader: of the input files.
        method: whose change of the update is measured where a layer is decomposed; None for none.
        params: its settings, plain values.
    """

    reader: InputReader
    method: str | None
    params: Mapping[str, Any]

    def __call__(self, look: Look, slot: Slot) -> SeenLayer:
        """Look at a layer; the CPU takes over where a device has too little memory.

        Raises:
            FileError: an input cannot be read or changed.
            NumericalError, MismatchError: as `check_norms`.
        """
        return with_the_cpu_behind(partial(self._look, look), slot.device, threads=threads_for(look, "cpu", cores()))[0]

    def _look(self, look: Look, device: torch.device) -> SeenLayer:
        job = look.chosen.job
        if device.type == "mps":  # as for an analysis: it has no decompositions, and no float64
            device = torch.device("cpu")
        try:
            updates = {n: self.reader.load(each.update).to(device=device) for n, each in look.updates.items()}
            W, T, drift = self._weights(job, device)
        finally:
            self.reader.drop(look.refs.values())
        source, moved = norm(W), drift.norm()
        check_norms(job.name, source, moved)
        pair = _of_pair(job, W, T, moved)
        seen = {n: update for n, update in updates.items() if update.norm() > 0.0}
        loras = {n: of_lora(update, drift, source, moved) for n, update in seen.items()}
        if look.chosen.decompose and source > 0.0:
            basis = thin_svd(W, name=job.name)
            generator = torch.Generator().manual_seed(zlib.crc32(job.name.encode()))
            stored = stored_as(job, source)
            dtype = None if stored is None else stored.dtype
            pair |= _spectrum_of_drift(W, T, drift, basis, pair, dtype, generator)
            for number, update in seen.items():
                loras[number] |= _spectrum_of_lora(job.name, W, update, basis)
                loras[number] |= self._change(job.name, update, basis, drift, W, T)
        return SeenLayer(look.chosen, pair, loras)

    def result_keys(self, look: Look) -> list[str | None]:
        """None: nothing of it is kept."""
        return []

    def elsewhere(self, store: Store, reader: InputReader) -> "Looker":
        """The same work on a machine that is sent what it reads."""
        return replace(self, reader=reader)

    def _weights(
        self, job: LayerJob, device: torch.device
    ) -> tuple[Float[Tensor, "m n"], Float[Tensor, "m n"], Operator]:
        """Both weights and their difference; the latter of low rank where LoRAs alone make it."""
        assert job.source is not None
        W = read_weight(self.reader, job.source, job.round_to, device)
        own = self._added(job, "source", device)
        added = self._added(job, "target", device)
        if job.target is None:
            drift = LowRank.sum([added, own.scaled(-1.0)])
            if own.rank:
                W = W.addmm(own.B, own.A)
            return W, W + drift.dense(), drift
        T = read_weight(self.reader, job.target, job.round_to, device)
        W = W.addmm(own.B, own.A) if own.rank else W
        T = T.addmm(added.B, added.A) if added.rank else T
        return W, T, DenseOperator(T - W)

    def _added(self, job: LayerJob, side: str, device: torch.device) -> LowRank:
        """What LoRAs add to the weight of a side."""
        parts = [self.reader.load(update) for update in job.added(side).values()]
        return LowRank.sum([LowRank.zeros(*job.shape), *parts]).to(device=device)

    def _change(
        self,
        name: str,
        update: LowRank,
        basis: SpectralBasis,
        drift: Operator,
        W: Float[Tensor, "m n"],
        T: Float[Tensor, "m n"],
    ) -> LayerSums:
        """How far the method's update is from the LoRA's own, before it is cut to a rank."""
        if self.method is None:
            return {}
        method, params = registry.resolve(self.method, self.params)
        needs = method.needs(params)
        inputs = LayerInputs(
            name,
            update,
            basis=basis if needs.basis else None,
            target_basis=thin_svd(T, name=name) if needs.target_basis else None,
            drift=drift if needs.drift else None,
            source=DenseOperator(W) if needs.source else None,
            target=DenseOperator(T) if needs.target else None,
        )
        new = method.transfer(inputs, params).update
        size = update.norm() ** 2
        # <new, update> by the factors: the sum of (B^T new) * A.
        product = float((wide(new.apply_t(update.B).T) * wide(update.A)).sum())
        length = new.norm() ** 2
        return {
            "change2": max(length + size - 2.0 * product, 0.0), "method_of2": size, "method_along": product,
            "method2": length,
        }  # fmt: skip


def _of_pair(job: LayerJob, W: Float[Tensor, "m n"], T: Float[Tensor, "m n"], drift: float) -> LayerSums:
    weight = norm(W)
    if weight > 0.0 and drift < _TINY * weight:
        drift = 0.0
    share = rounding_share(job, drift / weight, weight) if weight > 0.0 else 0.0
    return {
        "weight2": weight**2, "target2": square_sum(T), "drift2": drift**2, "noise2": share * drift**2, "layers": 1.0,
        "moved": float(drift > 0.0),
    }  # fmt: skip


def of_lora(update: LowRank, drift: Operator, weight: float, moved: float) -> LayerSums:
    """Norm of the update, its product with the drift, and the drift's energy on its directions where it has few.

    Args:
        update: of the LoRA, not zero.
        drift: target minus source.
        weight: norm of the source's weight.
        moved: norm of the drift.
    """
    size, shape = update.norm(), update.shape
    found = {
        "of_weight2": weight**2, "of_drift2": moved**2, "update2": size**2,
        "chance2": spectra.chance_of_overlap(size, moved, shape) ** 2,
    }  # fmt: skip
    if not update.thin:  # it has all directions, and to find them would take longer than everything else
        return found | {"product": dot(update.dense(), drift.dense())}
    U, S, Vh = update.svd()
    rank = int((1e-6 * S[0] < S).sum())
    common = U[:, :rank].T @ drift.apply(Vh[:rank].T)
    return found | {
        "product": float((wide(common.diagonal()) * wide(S[:rank])).sum()),
        "common2": square_sum(common), "common_even2": moved**2 * rank**2 / math.prod(shape),
    }  # fmt: skip


def _spectrum_of_drift(
    W: Float[Tensor, "m n"],
    T: Float[Tensor, "m n"],
    drift: Operator,
    basis: SpectralBasis,
    pair: LayerSums,
    dtype: str | None,
    generator: torch.Generator,
) -> LayerSums:
    """How the drift moves singular values, where its energy lies, how many directions it has; and null models."""
    m, n = basis.shape
    h, moved2, floor2 = _leading(basis), pair["drift2"], pair["noise2"]
    area = routing_maps.area((m, n), h)
    found = {"spectra": 1.0, "S2": square_sum(basis.S[None]), "directions": 0.0, "directions_of": float(min(m, n))}
    if moved2 == 0.0:
        return found | {"stretch2": 0.0, "stretch_gauss2": 0.0, "head2": 0.0, "head_even2": 0.0}
    random = nulls.gaussian((max(m, n), min(m, n)), math.sqrt(moved2), basis.S, generator)
    values = spectra.singular_values(drift.dense())
    held = ALL_BUT * (1.0 - min(floor2 / moved2, 1.0))
    found |= {
        "stretch2": _stretched(T, basis.S), "stretch_gauss2": _stretched(random.onto(basis.S), basis.S),
        "head2": spectra.energy_in_first(drift, basis, h), "head_even2": area * moved2,
        "directions": float(directions_holding(values, held)),
    }  # fmt: skip
    if floor2 > 0.0:
        noise = DenseOperator(nulls.rounding_noise(W, dtype, math.sqrt(floor2), generator))
        found |= {
            # to first order, which is all there is to so small a change
            "stretch_round2": floor2 / max(m, n), "head_round2": spectra.energy_in_first(noise, basis, h),
            "head_round_even2": area * floor2,
        }  # fmt: skip
    return found


def _spectrum_of_lora(name: str, W: Float[Tensor, "m n"], update: LowRank, basis: SpectralBasis) -> LayerSums:
    m, n = basis.shape
    size, h = update.norm(), _leading(basis)
    generator = torch.Generator().manual_seed(zlib.crc32(f"LoRA on {name}".encode()))  # whatever other LoRAs there are
    random = nulls.gaussian((max(m, n), min(m, n)), size, basis.S, generator, rank=update.rank)
    return {
        "lora_S2": square_sum(basis.S[None]), "lora_stretch2": _stretched(W + update.dense(), basis.S),
        "lora_stretch_gauss2": _stretched(random.onto(basis.S), basis.S),
        "lora_head2": spectra.energy_in_first(update, basis, h),
        "lora_head_even2": routing_maps.area((m, n), h) * size**2,
    }  # fmt: skip


def _leading(basis: SpectralBasis) -> int:
    return routing_maps.leading(basis.head(PARAMS.head_energy))


def _stretched(W: Float[Tensor, "m n"], S: Float[Tensor, " p"]) -> float:
    """By how much an update moved the singular values, squared: W is the changed weight, S are those of the old one."""
    return (spectrum.rigidity(S, spectra.singular_values(W)) * norm(S)) ** 2
