"""One layer from files to factors, on the device of its slot.

    read W_source, W_target -> drift -> basis (from the store, or an SVD) -> method -> low-rank output -> store

The key of a result names everything that determines it, so running the same job again finds it: that is
how an interrupted run resumes, and why device, workers and paths are not in the key.
"""

import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from loraport.containers.tensors import TensorRef, digest, identity, rounding_floor
from loraport.core.lowrank import LowRank
from loraport.core.operators import Blend, Operator
from loraport.core.svd import ALGORITHM, Compressed, compress
from loraport.engine.executor import Slot
from loraport.engine.job import LayerJob
from loraport.engine.layer import LayerMatrices, load_layer, read_weight
from loraport.engine.results import LayerReport
from loraport.errors import MismatchError, NumericalError
from loraport.methods import registry
from loraport.store.digests import DigestMemo
from loraport.store.store import Store, StoreProblem, entry_key

RESULT_VERSION = 1
"""Raised whenever the same job would give other bytes than before."""


@dataclass(frozen=True)
class LayerResult:
    """A finished layer: the factors in the output's dtype, the report, and what was hashed on the way."""

    update: LowRank
    report: LayerReport
    digests: dict[str, str]
    problems: tuple[StoreProblem, ...]


@dataclass(frozen=True)
class Worker:
    """A function of one job and the slot that it is done in. Picklable.

    Args:
        store: where bases and results are kept.
        memo: remembered digests of unchanged files.
        keep: layers whose decompositions go into the store; None for all.
    """

    store: Store
    memo: DigestMemo
    keep: frozenset[str] | None = None

    def __call__(self, job: LayerJob, slot: Slot) -> LayerResult:
        """Do one job. A device that runs out of memory hands this layer to the CPU."""
        try:
            return self._run(job, torch.device(slot.device))
        except torch.OutOfMemoryError:
            if slot.device == "cpu":
                raise
            torch.cuda.empty_cache()
            return self._run(job, torch.device("cpu"))

    def _run(self, job: LayerJob, device: torch.device) -> LayerResult:
        began = time.perf_counter()
        digests = self._digests(job)
        key = entry_key(_identity(job, digests))
        kept = self.store.get("result", key, expect=None)
        if kept is not None:
            facts = json.loads(kept.meta["report"])
            update = LowRank(kept["B"], kept["A"])
            cached = True
        else:
            update, facts = self._compute(job, digests, seed=int(key[:15], 16), device=device)
            self.store.put("result", key, {"B": update.B, "A": update.A}, {"report": json.dumps(facts)})
            cached = False
        report = LayerReport(
            name=job.name,
            shape=job.shape,
            method=job.method,
            rank_in=job.update.rank,
            seconds=time.perf_counter() - began,
            cached=cached,
            **facts,
        )
        return LayerResult(update, report, digests, tuple(self.store.take_problems()))

    def _compute(
        self, job: LayerJob, digests: dict[str, str], seed: int, device: torch.device
    ) -> tuple[LowRank, dict[str, Any]]:
        method, params = registry.resolve(job.method, job.params)
        keep = self.keep is None or job.name in self.keep
        layer = load_layer(job, method, params, digests, self.store, device, keep)
        given, stats = layer.inputs.update, _relative_norms(job, layer)
        output = method.transfer(layer.inputs, params)
        exact: Operator = output.update
        if job.amount < 1.0:
            exact = Blend(given, exact, job.amount)
        small = _shrink(exact, job, output.start, seed)
        update = small.update.to(getattr(torch, job.dtype))
        _check_cast(update, job)
        stats |= output.stats
        stats["exact_norm"] = exact.norm()
        facts = {"rank_out": small.rank, "energy_kept": small.energy_kept, "stats": stats}
        return LowRank(update.B.cpu(), update.A.cpu()), facts

    def remember(self, job: LayerJob, digests: dict[str, str]) -> None:
        """Take over digests that a worker process computed into this process's memory."""
        for role, ref in _references(job).items():
            page, name = identity(ref)
            if self.memo.get(page, name) is None:
                self.memo.put(page, name, digests[role])

    def _digests(self, job: LayerJob) -> dict[str, str]:
        found = {}
        for role, ref in _references(job).items():
            found[role] = self.memo.digest(*identity(ref), partial(digest, ref))
        return found


def _references(job: LayerJob) -> dict[str, TensorRef]:
    """Every tensor that the job reads, by its role."""
    refs = {"source": job.source, "target": job.target, **job.update.parts}
    if job.distill is not None:
        refs |= {f"distill.{role}": ref for role, ref in job.distill[0].parts.items()}
    return {role: ref for role, ref in refs.items() if ref is not None}


def drift_ratio(job: LayerJob) -> float:
    """Frobenius norm of the drift relative to the source weight, read straight from the two files.

    Raises:
        MismatchError: a weight of the source is zero while the target's is not.
    """
    assert job.source is not None
    assert job.target is not None
    source = read_weight(job.source, job.round_to, torch.device("cpu"))
    target = read_weight(job.target, job.round_to, torch.device("cpu"))
    scale = float(torch.linalg.vector_norm(source))
    distance = float(torch.linalg.vector_norm(target.sub_(source)))
    if scale == 0.0 and distance > 0.0:
        raise MismatchError("the source's weight is all zeros, the target's is not", where=job.name)
    return distance / scale if scale > 0.0 else 0.0


def _shrink(exact: Operator, job: LayerJob, start: LowRank, seed: int) -> Compressed:
    if isinstance(exact, LowRank) and job.rank.kind == "fixed" and exact.rank <= job.rank.value:
        return Compressed(update=exact.balanced(), energy_kept=1.0, rank=exact.rank)  # nothing to cut
    if job.rank.kind == "energy":
        return compress(exact, energy=float(job.rank.value), start=start, seed=seed, name=job.name)
    full = min(job.shape)
    rank = full if job.rank.kind == "full" else min(int(job.rank.value), full)
    return compress(exact, rank=rank, start=start, seed=seed, name=job.name)


def _relative_norms(job: LayerJob, layer: LayerMatrices) -> dict[str, Any]:
    """Update and drift relative to the source weight, as far as the method had them read."""
    scale = layer.weight_norm
    if scale is None:
        return {}
    stats: dict[str, Any] = {"update_rel": layer.inputs.update.norm() / scale if scale > 0 else 0.0}
    if layer.drift_norm is not None and job.source is not None:
        stats["drift_rel"] = layer.drift_norm / scale if scale > 0 else 0.0
        weights = [job.source] if job.target is None else [job.source, job.target]
        stats["drift_is_rounding"] = stats["drift_rel"] <= max(map(rounding_floor, weights))
    return stats


def _check_cast(update: LowRank, job: LayerJob) -> None:
    for factor in (update.B, update.A):
        if not bool(torch.isfinite(factor).all()):
            raise NumericalError(
                "the transferred update is not finite",
                where=job.name,
                values=f"after the conversion to {job.dtype}",
                fix="write float32 (--dtype float32)",
            )


def _identity(job: LayerJob, digests: dict[str, str]) -> dict[str, Any]:
    method, params = registry.resolve(job.method, job.params)
    return {
        "version": RESULT_VERSION,
        "algorithm": ALGORITHM,
        "method": [method.name, method.version, params.model_dump(mode="json")],
        "digests": digests,
        "scale": job.update.scale,
        "distill": None if job.distill is None else [job.distill[0].scale, job.distill[1]],
        "has_drift": job.has_drift,
        "round_to": job.round_to,
        "rank": asdict(job.rank),
        "amount": job.amount,
        "dtype": job.dtype,
    }
