"""One layer from files to factors. The only place that picks a device.

    read W_source, W_target -> drift -> basis (from the store, or an SVD) -> method -> low-rank output -> store

The key of a result names everything that determines it, so running the same job again finds it: that is
how an interrupted run resumes, and why device, workers and paths are not in the key.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loraport.core import measures
from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import Blend, DenseOperator, Operator
from loraport.core.svd import ALGORITHM, Compressed, compress
from loraport.engine.job import LayerJob
from loraport.engine.results import LayerReport
from loraport.errors import MismatchError, NumericalError, UsageError
from loraport.formats.tensors import TensorRef, digest, file_identity, read_float
from loraport.methods import registry
from loraport.methods.base import LayerInputs, Params, TransferMethod
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
    """A function of one job, with the store and the device it works with. Picklable.

    Args:
        store: where bases and results are kept. memo: remembered digests of unchanged files.
        device: `cpu`, `cuda:0` or `mps`, settled by `pick_device`.
    """

    store: Store
    memo: DigestMemo
    device: str

    def __call__(self, job: LayerJob) -> LayerResult:
        """Do one job. A device that runs out of memory hands this layer to the CPU."""
        try:
            return self._run(job, torch.device(self.device))
        except torch.OutOfMemoryError:
            if self.device == "cpu":
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
        needs = method.needs(params)
        given = job.update.load().to(device=device)
        stats: dict[str, Any] = {}
        basis, drift = None, None
        if job.source is not None:
            weight = _read(job.source, job.round_to, device)
            scale = float(torch.linalg.vector_norm(weight.double() if weight.device.type == "cpu" else weight))
            stats["update_rel"] = given.norm() / scale if scale > 0 else 0.0
            if needs.drift:
                drift = self._drift(job, weight, device)
                stats["drift_rel"] = drift.norm() / scale if scale > 0 else 0.0
                stats["drift_is_rounding"] = stats["drift_rel"] <= measures.rounding_floor(job.source.dtype)
            if needs.basis:
                basis = self._basis(job, weight, digests["source"])
            del weight
        inputs = LayerInputs(job.name, given, basis, None, drift)
        if needs.drift and "target" in digests:
            inputs = replace(inputs, prepared=self._prepared(job, inputs, method, params, digests))
        output = method.transfer(inputs, params)
        exact: Operator = output.update
        if job.amount < 1.0:
            exact = Blend(given, exact, job.amount)
        small = _shrink(exact, job, output.start, seed)
        update = small.update.balanced().to(getattr(torch, job.dtype))
        _check_cast(update, job)
        stats |= output.stats
        stats["exact_norm"] = exact.norm()
        facts = {"rank_out": small.rank, "energy_kept": small.energy_kept, "stats": stats}
        return LowRank(update.B.cpu(), update.A.cpu()), facts

    def _drift(self, job: LayerJob, weight: Tensor, device: torch.device) -> Operator:
        m, n = job.shape
        if not job.has_drift:
            return LowRank.zeros(m, n, 0, dtype=weight.dtype, device=device)
        if job.distill is not None:
            update, strength = job.distill
            return update.load().scaled(strength).to(device=device)
        assert job.target is not None
        return DenseOperator(_read(job.target, job.round_to, device).sub_(weight))

    def _basis(self, job: LayerJob, weight: Tensor, digest_of_source: str) -> SpectralBasis:
        m, n = job.shape
        p = min(m, n)
        key = entry_key({"weight": digest_of_source, "round_to": job.round_to, "algorithm": ALGORITHM})
        kept = self.store.get("basis", key, expect={"U": (m, p), "S": (p,), "Vh": (p, n)})
        if kept is not None:
            basis = SpectralBasis(kept["U"], kept["S"], kept["Vh"], driver=kept.meta["driver"])
            return basis.to(weight.device)
        basis = SpectralBasis.from_weight(weight, name=job.name)
        self.store.put("basis", key, {"U": basis.U, "S": basis.S, "Vh": basis.Vh}, {"driver": basis.driver})
        return basis

    def _prepared(
        self, job: LayerJob, inputs: LayerInputs, method: TransferMethod, params: Params, digests: dict[str, str]
    ) -> dict[str, Tensor]:
        """What the method computes from source and target alone: small, and the same for every LoRA."""
        detail = method.prepared_key(params)
        if detail is None:
            return {}
        key = entry_key(
            {
                "prepared": [method.name, method.version, detail],
                "algorithm": ALGORITHM,
                "source": digests["source"],
                "target": digests["target"],
                "round_to": job.round_to,
            }
        )
        kept = self.store.get("basis", key)
        if kept is not None:
            return {name: tensor.to(inputs.update.device) for name, tensor in kept.items()}
        made = method.prepare(inputs, params)
        self.store.put("basis", key, made)
        return made

    def _digests(self, job: LayerJob) -> dict[str, str]:
        refs = {"source": job.source, "target": job.target}
        refs |= {"A": job.update.A, "B": job.update.B, "diff": job.update.diff}
        if job.distill is not None:
            distill = job.distill[0]
            refs |= {"distill.A": distill.A, "distill.B": distill.B, "distill.diff": distill.diff}
        return {name: self._digest(ref) for name, ref in refs.items() if ref is not None}

    def _digest(self, ref: TensorRef) -> str:
        name = "/".join((*ref.nest, ref.key)) + (f"[{ref.rows[0]}:{ref.rows[1]}]" if ref.rows else "")
        return self.memo.digest(file_identity(ref.file), name, lambda: digest(ref))


def pick_device(wanted: str) -> str:
    """Settle `auto`, and refuse a device that is not there. Raises UsageError."""
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    kind = wanted.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there:
        raise UsageError("unknown device", values=wanted, fix="use auto, cpu, cuda, cuda:1 or mps")
    if not there[kind]:
        raise UsageError(f"this machine has no {kind} device that PyTorch can use", values=wanted, fix="--device cpu")
    return wanted


def drift_ratio(job: LayerJob) -> float:
    """Frobenius norm of the drift relative to the source weight, read straight from the two files.

    Raises:
        MismatchError: a weight of the source is zero while the target's is not.
    """
    assert job.source is not None
    assert job.target is not None
    source = _read(job.source, job.round_to, torch.device("cpu"))
    target = _read(job.target, job.round_to, torch.device("cpu"))
    scale = float(torch.linalg.vector_norm(source))
    distance = float(torch.linalg.vector_norm(target.sub_(source)))
    if scale == 0.0 and distance > 0.0:
        raise MismatchError("the source's weight is all zeros, the target's is not", where=job.name)
    return distance / scale if scale > 0.0 else 0.0


def _shrink(exact: Operator, job: LayerJob, start: LowRank, seed: int) -> Compressed:
    if isinstance(exact, LowRank) and job.rank.kind == "fixed" and exact.rank <= job.rank.value:
        return Compressed(update=exact, energy_kept=1.0, rank=exact.rank)  # nothing to cut, nothing to round
    if job.rank.kind == "energy":
        return compress(exact, energy=float(job.rank.value), start=start, seed=seed, name=job.name)
    full = min(job.shape)
    rank = full if job.rank.kind == "full" else min(int(job.rank.value), full)
    return compress(exact, rank=rank, start=start, seed=seed, name=job.name)


def _read(ref: TensorRef, round_to: str | None, device: torch.device) -> Tensor:
    weight = read_float(ref)
    if round_to is not None:
        weight = weight.to(getattr(torch, round_to)).float()
    return weight.to(device)


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
