"""The matrices of one layer: read or computed once, kept for the next run, released as soon as they can be.

What a further LoRA for the same pair needs is in the store: the basis of the source weight and what the method
prepared from the drift. Then the two weights are not even read, unless the method wants the drift itself.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loraport.containers.references import TensorRef
from loraport.core.lowrank import LowRank
from loraport.core.operator import norm as norm_of
from loraport.core.operators import DenseOperator, Operator
from loraport.core.thin_svd import thin_svd
from loraport.engine.job import LayerJob
from loraport.engine.keys import ordered_updates
from loraport.engine.layer_cache import Found, LayerCache, Prepared
from loraport.engine.reading import InputReader
from loraport.errors import MismatchError, NumericalError
from loraport.methods.base import LayerInputs, Params, TransferMethod
from loraport.store.store import Store

_STRIP = 1_000_000  # entries of a difference that are held at once where only its norm is wanted


@dataclass(frozen=True)
class LayerMatrices:
    """Inputs for the method, and two norms for the report.

    Attributes:
        inputs: what the method asked for.
        weight_norm: Frobenius norm of the source weight, None if there is none.
        drift_norm: that of target minus source, None where there are not two weights and the method needs no drift.
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
    reader: InputReader,
    device: torch.device,
    keep: bool,
    update: LowRank,
    found: Found | None = None,
) -> LayerMatrices:
    """Bring together what `method` needs of a layer.

    Args:
        job: the layer.
        method: what will be done with it.
        params: the method's settings.
        digests: of the tensors that the job names, by role.
        store: looked up first; new entries go there if `keep`.
        reader: of the input files.
        device: where the matrices go.
        keep: whether bases and what the method prepares are worth their room.
        update: the LoRA's, as read.
        found: what `LayerCache.look_up` gave, where that has been asked.

    Raises:
        FileError: an input changed since it was hashed.
        NumericalError: a tensor holds NaN or infinity, a norm is beyond float32, or no decomposition succeeded.
        MismatchError: the source's weight is all zeros and the target's is not.
    """
    needs = method.needs(params)
    inputs = LayerInputs(job.name, update.to(device=device))
    if job.source is None:
        return LayerMatrices(inputs, None, None)
    cache = LayerCache(job, digests, store, keep)
    if found is None:
        found = cache.look_up(method, params)
    basis = None if found.basis is None else found.basis.to(device)
    target_basis = None if found.target_basis is None else found.target_basis.to(device)
    kept = None if found.prepared is None else found.prepared.to(device)

    own = None  # what LoRAs add to the source alone
    if job.source_updates and (found.source is not None or job.target is None):
        own = _added(job, "source", digests, reader, device)

    weight = None
    drift_alone = device.type == "cpu" and _only_drift(job, method, params, found)
    if found.source is not None and not drift_alone:
        weight = read_weight(reader, found.source, job.round_to, device)
        if own is not None:
            weight.addmm_(own.B, own.A)
    if needs.basis and basis is None:
        basis = cache.keep_basis("source", thin_svd(_there(weight), name=job.name))
    norm = norm_of(basis.S if basis is not None else _there(weight))

    target: Tensor | None = None
    drift: Operator | None = None
    drift_norm: float | None = None
    in_its_place = found.wants_drift and not (found.wants_target or needs.source or job.target_updates)
    if job.target is None:
        added = _added(job, "target", digests, reader, device)
        if own is not None:
            added = LowRank.sum([added, own.scaled(-1.0)])
        whole = added.rank * sum(job.shape) > job.shape[0] * job.shape[1]  # as where matrices were stored
        if needs.drift:
            drift, drift_norm = DenseOperator(added.dense()) if whole else added, added.norm()
        if found.wants_target:
            target = _there(weight) + added.dense()
    elif drift_alone:
        assert job.source is not None
        assert kept is not None
        drift, drift_norm = DenseOperator(reader.difference(job.target, job.source)), kept.drift_norm
    else:
        if found.target is not None and in_its_place:
            drift = DenseOperator(_taken_from(_there(weight), found.target, job.round_to, reader, device))
            weight = None
        elif found.target is not None:
            target = read_weight(reader, found.target, job.round_to, device)
            if job.target_updates:
                added = _added(job, "target", digests, reader, device)
                target.addmm_(added.B, added.A)
        if found.wants_drift and drift is None:
            drift = DenseOperator(_difference(_there(target), _there(weight), in_place=not found.wants_target))
        if kept is not None:
            drift_norm = kept.drift_norm
        else:
            drift_norm = drift.norm() if drift is not None else _distance(_there(target), _there(weight))
    if not needs.source:
        weight = None  # before the target is decomposed
    if needs.target_basis and target_basis is None:
        target_basis = cache.keep_basis("target", thin_svd(_there(target), name=job.name))

    check_norms(job.name, norm, drift_norm)

    inputs = replace(
        inputs,
        basis=basis,
        target_basis=target_basis,
        drift=drift,
        source=DenseOperator(_there(weight)) if needs.source else None,
        target=DenseOperator(_there(target)) if needs.target else None,
    )
    del weight, target
    if found.key is not None and kept is None:
        assert drift_norm is not None
        kept = Prepared(method.prepare(inputs, params), drift_norm)
        cache.keep_prepared(found.key, kept, norm)
    return LayerMatrices(replace(inputs, prepared=None if kept is None else kept.tensors), norm, drift_norm)


def _only_drift(job: LayerJob, method: TransferMethod, params: Params, found: Found) -> bool:
    """Whether nothing asks for the weights themselves but for their difference, as they are stored."""
    needs = method.needs(params)
    weights = needs.source or found.wants_target or (needs.basis and found.basis is None) or found.prepared is None
    return found.wants_drift and not (weights or job.source_updates or job.target_updates or job.round_to)


LARGEST = 1e15
"""Norms beyond this are refused: methods square entries and add them up in float32, which ends at 3e38."""


def check_norms(name: str, weight: float, drift: float | None) -> None:
    """Refuse what no trained weight looks like and float32 cannot work with.

    Raises:
        NumericalError: a norm is too large.
        MismatchError: a source of zeros, and a drift.
    """
    for what, size in (("source's weight", weight), ("difference between target and source", drift or 0.0)):
        if not size <= LARGEST:
            raise NumericalError(
                f"the norm of the {what} is too large to compute with",
                where=name,
                values=f"{size:.3g}, at most {LARGEST:g}",
                fix="no trained model looks like this; check the checkpoints",
            )
    if weight == 0.0 and drift is not None and drift > 0.0:
        raise MismatchError(
            "the source's weight is all zeros, but the target's is not",
            where=name,
            fix="the source is damaged, or not the model the LoRA was trained on; otherwise leave the layer out "
            "with --drop",
        )


def read_weight(
    reader: InputReader, ref: TensorRef, round_to: str | None, device: torch.device, *, hold: bool = False
) -> Tensor:
    """One weight in float32, rounded first to `round_to` if the other checkpoint is coarser.

    Args:
        reader: of the input files.
        ref: which one.
        round_to: torch name of a dtype, or None.
        device: where it goes.
        hold: it will be read again; then it must not be written to.
    """
    return _rounded(reader.read(ref, hold=hold, device=device), round_to)


def _rounded(weight: Tensor, round_to: str | None) -> Tensor:
    return weight if round_to is None else weight.to(getattr(torch, round_to)).float()


def drift_share(job: LayerJob, reader: InputReader) -> tuple[float, float]:
    """Frobenius norm of a layer's drift over that of its source weight, and the latter; the reader then holds both.

    Distillation LoRAs are left out: whether two checkpoints are related shows without them. Raises as `check_norms`.
    """
    assert job.source is not None
    assert job.target is not None
    cpu = torch.device("cpu")
    source = read_weight(reader, job.source, job.round_to, cpu, hold=True)
    target = read_weight(reader, job.target, job.round_to, cpu, hold=True)
    drift, weight = _distance(target, source), norm_of(source)
    check_norms(job.name, weight, drift)
    return share_of(drift, weight)


def share_of(drift: float, weight: float) -> tuple[float, float]:
    """What `drift_share` gives, from both norms."""
    return drift / weight if weight > 0.0 else 0.0, weight


def _added(job: LayerJob, side: str, digests: Mapping[str, str], reader: InputReader, device: torch.device) -> LowRank:
    """What all LoRAs of a side together add to this layer, to the same bits in whatever order they were given."""
    found = LowRank.zeros(*job.shape)
    for _, update in ordered_updates(job, side, digests):
        found = LowRank.sum([found, reader.load(update)]).no_wider()
    return found.to(device=device)


def _there(weight: Tensor | None) -> Tensor:
    assert weight is not None, "a weight that is needed was not read"
    return weight


def _taken_from(
    weight: Tensor, ref: TensorRef, round_to: str | None, reader: InputReader, device: torch.device
) -> Tensor:
    """Target minus source in the place of the source's weight: the target's never stands there as a whole."""
    for rows, part in reader.strips(ref, device=device):
        torch.sub(_rounded(part, round_to), weight[rows], out=weight[rows])
    return weight


def _difference(target: Tensor, source: Tensor, *, in_place: bool) -> Tensor:
    return target.sub_(source) if in_place else target - source


def _distance(target: Tensor, source: Tensor) -> float:
    """Frobenius norm of the difference, which is formed in strips only."""
    rows = max(_STRIP // max(target.shape[1], 1), 1)
    strips = zip(target.split(rows), source.split(rows), strict=True)
    return math.sqrt(sum(norm_of(t - s) ** 2 for t, s in strips))
