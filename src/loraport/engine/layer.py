"""The matrices of one layer: read or computed once, kept for the next run, released as soon as they can be.

What a further LoRA for the same pair needs is in the store: the basis of the source weight and what the method
prepared from the drift. Then the two weights are not even read, unless the method wants the drift itself.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loraport.containers.tensors import TensorRef, read_float
from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator, Operator
from loraport.core.svd import ALGORITHM
from loraport.engine.job import LayerJob
from loraport.methods.base import LayerInputs, Params, TransferMethod
from loraport.store.store import Store, entry_key


@dataclass(frozen=True)
class LayerMatrices:
    """Inputs for the method, and two norms for the report.

    Args:
        inputs: what the method asked for. weight_norm: Frobenius norm of the source weight, None if not read.
        drift_norm: that of target minus source, None if the method needs no drift.
    """

    inputs: LayerInputs
    weight_norm: float | None
    drift_norm: float | None


def load_layer(
    job: LayerJob,
    method: TransferMethod,
    params: Params,
    digests: dict[str, str],
    store: Store,
    device: torch.device,
    keep: bool,
) -> LayerMatrices:
    """Bring together what `method` needs of a layer.

    Args:
        digests: of the tensors that the job names. store: looked up first; new entries go there if `keep`.

    Raises:
        NumericalError: a tensor holds NaN or infinity, or no decomposition succeeded.
    """
    needs = method.needs(params)
    inputs = LayerInputs(job.name, job.update.load().to(device=device))
    if job.source is None:
        return LayerMatrices(inputs, None, None)
    shelf = _Shelf(job, digests, store, device, keep)
    basis = shelf.basis("source") if needs.basis else None
    key, kept = shelf.prepared(method, params) if needs.drift else (None, None)
    reads_drift = needs.drift and (kept is None or method.reads_drift(job.shape, params))

    weight = None
    through_source = needs.target if job.target is None else reads_drift  # the target, or the drift
    if needs.source or basis is None or through_source:
        weight = read_weight(job.source, job.round_to, device)
    if needs.basis and basis is None:
        assert weight is not None
        basis = shelf.keep_basis("source", SpectralBasis.from_weight(weight, name=job.name))
    norm = _norm(basis.S if basis is not None else weight)
    target = _target(job, weight, device) if needs.target else None
    drift = _drift(job, weight, target, device) if reads_drift else None
    inputs = replace(
        inputs,
        basis=basis,
        drift=drift,
        source=DenseOperator(weight) if needs.source and weight is not None else None,
        target=DenseOperator(target) if target is not None else None,
    )
    del weight, target

    if needs.target_basis:
        inputs = replace(inputs, target_basis=_target_basis(job, shelf, device))
    if not needs.drift:
        return LayerMatrices(inputs, norm, None)
    drift_norm = _norm_of_drift(drift, kept)
    if key is not None and kept is None:
        kept = method.prepare(inputs, params)
        if kept:
            shelf.keep_prepared(key, kept, drift_norm)
    return LayerMatrices(replace(inputs, prepared=kept), norm, drift_norm)


def read_weight(ref: TensorRef, round_to: str | None, device: torch.device) -> Tensor:
    """One weight in float32, rounded first to `round_to` if the other checkpoint is coarser."""
    weight = read_float(ref)
    if round_to is not None:
        weight = weight.to(getattr(torch, round_to)).float()
    return weight.to(device)


@dataclass(frozen=True)
class _Shelf:
    """The store, as one layer sees it."""

    job: LayerJob
    digests: dict[str, str]
    store: Store
    device: torch.device
    keep: bool

    def basis(self, role: str) -> SpectralBasis | None:
        m, n = self.job.shape
        p = min(m, n)
        kept = self.store.get("basis", self._basis_key(role), expect={"U": (m, p), "S": (p,), "Vh": (p, n)})
        if kept is None:
            return None
        return SpectralBasis(kept["U"], kept["S"], kept["Vh"], driver=kept.meta["driver"]).to(self.device)

    def keep_basis(self, role: str, basis: SpectralBasis) -> SpectralBasis:
        if self.keep:
            tensors = {"U": basis.U, "S": basis.S, "Vh": basis.Vh}
            self.store.put("basis", self._basis_key(role), tensors, {"driver": basis.driver})
        return basis

    def prepared(self, method: TransferMethod, params: Params) -> tuple[str | None, dict[str, Tensor] | None]:
        detail = method.prepared_key(params)
        if detail is None or self.job.distill is not None or "target" not in self.digests:
            return None, None
        identity = {
            "prepared": [method.name, method.version, detail],
            "algorithm": ALGORITHM,
            "source": self.digests["source"],
            "target": self.digests["target"],
            "round_to": self.job.round_to,
        }
        key = entry_key(identity)
        kept = self.store.get("basis", key)
        if kept is None or "drift_norm" not in kept.meta:
            return key, None
        tensors = {name: tensor.to(self.device) for name, tensor in kept.items()}
        return key, tensors | {_DRIFT_NORM: torch.tensor(float(kept.meta["drift_norm"]), dtype=torch.float64)}

    def keep_prepared(self, key: str, tensors: dict[str, Tensor], drift_norm: float) -> None:
        if self.keep:
            self.store.put("basis", key, tensors, {"drift_norm": repr(drift_norm)})

    def _basis_key(self, role: str) -> str:
        return entry_key({"weight": self.digests[role], "round_to": self.job.round_to, "algorithm": ALGORITHM})


def _target_basis(job: LayerJob, shelf: _Shelf, device: torch.device) -> SpectralBasis:
    """Basis of the target weight; of source plus distillation where that is what the target is."""
    if job.target is not None:
        known = shelf.basis("target")
        if known is not None:
            return known
        weight = read_weight(job.target, job.round_to, device)
        return shelf.keep_basis("target", SpectralBasis.from_weight(weight, name=job.name))
    assert job.source is not None
    weight = read_weight(job.source, job.round_to, device)
    return SpectralBasis.from_weight(_target(job, weight, device), name=job.name)


_DRIFT_NORM = "engine.drift_norm"  # travels with what the method prepared; methods do not look at it


def _norm_of_drift(drift: Operator | None, kept: dict[str, Tensor] | None) -> float:
    if kept is not None and _DRIFT_NORM in kept:
        return float(kept[_DRIFT_NORM])
    assert drift is not None
    return drift.norm()


def _norm(values: Tensor) -> float:
    """Frobenius norm; of a weight or of its singular values."""
    return float(torch.linalg.vector_norm(values))


def _target(job: LayerJob, weight: Tensor | None, device: torch.device) -> Tensor:
    """The target weight; the source weight plus the distillation where that is what the target is."""
    if job.target is not None:
        return read_weight(job.target, job.round_to, device)
    assert weight is not None
    return weight + _drift(job, weight, None, device).dense()


def _drift(job: LayerJob, weight: Tensor | None, target: Tensor | None, device: torch.device) -> Operator:
    """Target minus source; `target` is the target weight if it was read already, and is left as it is."""
    m, n = job.shape
    if not job.has_drift:
        return LowRank.zeros(m, n, device=device)
    if job.distill is not None:
        update, strength = job.distill
        return update.load().scaled(strength).to(device=device)
    assert job.target is not None
    assert weight is not None
    if target is not None:
        return DenseOperator(target - weight)
    return DenseOperator(read_weight(job.target, job.round_to, device).sub_(weight))
