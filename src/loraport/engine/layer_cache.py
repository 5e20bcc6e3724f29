"""What of one layer is kept in the store for the next LoRA of the same pair, under which keys, and what is there.

The basis of a weight is known by the weight and what LoRAs add to it; what a method prepares, by both weights, the
method and its settings. What is there decides what of the weights has to be read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loraport.containers.references import TensorRef
from loraport.core.basis import SpectralBasis
from loraport.core.operator import moved
from loraport.engine.accelerators import to_host
from loraport.engine.job import LayerJob
from loraport.engine.keys import basis_key, basis_role, prepared_key
from loraport.engine.known_digests import KnownDigests
from loraport.methods import registry
from loraport.methods.base import Params, TransferMethod
from loraport.store.store import Store


@dataclass(frozen=True)
class Prepared:
    """What a method made of a pair of weights, opaque to everybody else, and the norm of their difference."""

    tensors: Mapping[str, Tensor]
    drift_norm: float

    def to(self, device: torch.device) -> "Prepared":
        """The same on another device."""
        return Prepared({name: moved(tensor, device) for name, tensor in self.tensors.items()}, self.drift_norm)


@dataclass(frozen=True)
class Found:
    """What is there of a layer before its matrices are, on the host, and what is to be read for the rest.

    Without a target checkpoint the target is the source plus what LoRAs add to it, and is not read.

    Attributes:
        basis: of the source's weight, if it is needed and kept.
        target_basis: of the target's, likewise.
        key: of what the method prepares; None where that is not worth keeping.
        prepared: what the method prepared, if it is kept.
        wants_drift: the drift itself has to be formed.
        wants_target: the target's weight has to be there by itself.
        source: the weight of the source to be read.
        target: that of the target.
    """

    basis: SpectralBasis | None = None
    target_basis: SpectralBasis | None = None
    key: str | None = None
    prepared: Prepared | None = None
    wants_drift: bool = False
    wants_target: bool = False
    source: TensorRef | None = None
    target: TensorRef | None = None

    @property
    def weights(self) -> list[TensorRef]:
        """The weights to be read."""
        return [ref for ref in (self.source, self.target) if ref is not None]


@dataclass(frozen=True)
class LayerCache:
    """The store, as one layer sees it.

    Args:
        job: the layer.
        digests: of the tensors that the job names, by role.
        store: looked up first.
        keep: whether anything is put there.
    """

    job: LayerJob
    digests: dict[str, str]
    store: Store
    keep: bool = False

    def look_up(self, method: TransferMethod, params: Params) -> Found:
        """What is there for a method, and what it has to read besides."""
        job, needs = self.job, method.needs(params)
        if job.source is None:
            return Found()
        basis = self._basis("source") if needs.basis else None
        target_basis = self._basis("target") if needs.target_basis else None
        key, kept = self._prepared(method, params) if needs.drift else (None, None)
        wants_target = needs.target or (needs.target_basis and target_basis is None)
        wants_drift = needs.drift and (kept is None or method.reads_drift(job.shape, params))
        reads_pair = job.target is not None and (wants_drift or kept is None)  # if only for the norm of the difference
        wants_weight = needs.source or basis is None or reads_pair or (wants_target and job.target is None)
        return Found(
            basis,
            target_basis,
            key,
            kept,
            wants_drift,
            wants_target,
            source=job.source if wants_weight else None,
            target=job.target if wants_target or reads_pair else None,
        )

    def keep_basis(self, role: str, basis: SpectralBasis) -> SpectralBasis:
        """Keep it if it is worth its room, and hand it back."""
        if self.keep and basis_role(self.job, role):
            tensors = to_host({"U": basis.U, "S": basis.S, "Vh": basis.Vh})
            self.store.put("basis", basis_key(self.job, role, self.digests), tensors, {"driver": basis.driver})
        return basis

    def keep_prepared(self, key: str, prepared: Prepared, weight_norm: float) -> None:
        """Keep it under the key of `Found` if it is worth its room, with the norm of the source's weight."""
        if self.keep:
            norms = {"drift_norm": repr(prepared.drift_norm), "weight_norm": repr(weight_norm)}
            self.store.put("prepared", key, to_host(prepared.tensors), norms)

    def _basis(self, role: str) -> SpectralBasis | None:
        if not basis_role(self.job, role):
            return None
        m, n = self.job.shape
        p = min(m, n)
        key = basis_key(self.job, role, self.digests)
        kept = self.store.get("basis", key, expect={"U": (m, p), "S": (p,), "Vh": (p, n)})
        return None if kept is None else SpectralBasis(kept["U"], kept["S"], kept["Vh"], driver=kept.meta["driver"])

    def _prepared(self, method: TransferMethod, params: Params) -> tuple[str | None, Prepared | None]:
        key = prepared_key(method, params, self.job, self.digests)
        if key is None:
            return None, None
        kept = self.store.get("prepared", key)
        return key, None if kept is None else Prepared(dict(kept), float(kept.meta["drift_norm"]))


def norms_kept(job: LayerJob, known: KnownDigests, store: Store) -> tuple[float, float] | None:
    """Norms of a layer's drift and of its source's weight as an earlier run left them; None where they are not known.

    Nothing is read but the beginning of an entry, which nobody checks: good for a look before the work, whose own norms
    come from what is checked.

    Args:
        job: the layer.
        known: digests of earlier runs.
        store: of the entries.
    """
    if job.source is None or job.target is None or job.source_updates or job.target_updates:
        return None
    source, target = known.known_digest(job.source), known.known_digest(job.target)
    if source is None or target is None:
        return None
    method, params = registry.resolve(job.method, job.params)
    key = prepared_key(method, params, job, {"source": source, "target": target})
    texts = None if key is None else store.peek("prepared", key)
    return None if texts is None else (float(texts["drift_norm"]), float(texts["weight_norm"]))
