"""One layer from files to factors, on the device of its slot.

    on the host    digests -> result or basis from the store, else W_source, W_target from their files
    on the device  drift -> basis -> method -> low-rank output -> store

The first half waits for files, and is done for the next layers while a device works on the second (`ahead.py`).

The key of a result names everything that determines it, so running the same job again finds it: that is
how an interrupted run resumes, and why device, workers and paths are not in the key.
"""

import json
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from loraport.core.lowrank import LowRank
from loraport.core.operators import Operator, blended
from loraport.core.truncation import Truncation, truncated_svd
from loraport.engine.accelerators import release_memory
from loraport.engine.ahead import Ahead
from loraport.engine.executor import Slot, threads_for
from loraport.engine.job import LayerJob
from loraport.engine.keys import matrices_key, result_key, seed_of
from loraport.engine.layer import LayerMatrices, load_layer
from loraport.engine.layer_cache import Found, LayerCache
from loraport.engine.on_device import with_the_cpu_behind
from loraport.engine.reading import InputReader
from loraport.engine.results import LayerReport
from loraport.engine.rounding import MOSTLY, rounding_share
from loraport.engine.small_maps import SmallMap, packed_maps
from loraport.errors import NumericalError
from loraport.machine import cores
from loraport.methods import registry
from loraport.methods.base import LayerOutput, Params, TransferMethod
from loraport.store.entry import Entry
from loraport.store.store import Store


@dataclass(frozen=True)
class LayerResult:
    """A finished layer.

    Attributes:
        update: the factors, in the output's dtype.
        report: the layer in numbers.
        digests: of the tensors it was made from, by role.
        warnings: sentences for the user.
    """

    update: LowRank
    report: LayerReport
    digests: dict[str, str]
    warnings: tuple[str, ...]


@dataclass
class InHand:
    """The matrices of the last layer, for another LoRA on the same one: they do not depend on the LoRA."""

    key: str | None = None
    device: torch.device | None = None
    matrices: LayerMatrices | None = None

    def let_go(self) -> None:
        """Free their memory."""
        self.key = self.device = self.matrices = None


@dataclass(frozen=True)
class Brought:
    """What a layer's work begins with, all of it on the host. The reader holds the weights.

    Attributes:
        digests: of the tensors that the job names, by role.
        key: of the result.
        kept: the result, if it is there.
        given: the LoRA's update, if there is work to do.
        found: what of the pair is there; None where its matrices are in hand, or nothing is to be done with them.
        seconds: that it took.
    """

    digests: dict[str, str]
    key: str
    kept: Entry | None
    given: LowRank | None
    found: Found | None
    seconds: float


@dataclass(frozen=True)
class Worker:
    """A function of one job and the slot that it is done in. Picklable.

    Args:
        store: where bases and results are kept.
        reader: of the input files.
        keep: layers whose decompositions go into the store; None for all.
        in_hand: holds a layer's matrices until another layer comes, where several LoRAs are worked on; None lets go of
            them with each job.
        ahead: brings the next layers meanwhile.
    """

    store: Store
    reader: InputReader
    keep: frozenset[str] | None = None
    in_hand: InHand | None = None
    ahead: Ahead[LayerJob, Brought] | None = None

    def __call__(self, job: LayerJob, slot: Slot) -> LayerResult:
        """Do one job. A device that runs out of memory hands this layer to the CPU, and says so."""
        let_go = (lambda: None) if self.in_hand is None else self.in_hand.let_go
        try:
            brought = self.bring(job) if self.ahead is None else self.ahead.take(job, self.bring)
            result, taken_over = with_the_cpu_behind(
                partial(self._run, job, brought), slot.device, let_go, threads=threads_for(job, "cpu", cores())
            )
        finally:
            self.reader.drop(job.refs.values())
            if self.ahead is None:  # one process of several, and the others may be short of what torch keeps for later
                release_memory(slot.device)
        if not taken_over:
            return result
        said = (
            f"{job.name}: {slot.device} ran out of memory, so this layer was computed on the CPU; other programs "
            "may use the rest of it, or --max-memory is too small"
        )
        return replace(result, warnings=(said, *result.warnings))

    def skip(self, job: LayerJob) -> None:
        """Let go of what was brought for a job that is not done after all."""
        if self.ahead is not None:
            self.ahead.leave(job)
            self.reader.drop(job.refs.values())

    def result_keys(self, job: LayerJob) -> list[str | None]:
        """Under which key the job's result is kept; None where a digest is not remembered. Nothing is read."""
        digests = self.reader.known_digests(job.refs)
        return [None if digests is None else result_key(job, digests)]

    def elsewhere(self, store: Store, reader: InputReader) -> "Worker":
        """The same work on a machine that is sent what it reads."""
        keep = self.keep if store.takes("basis") else frozenset()
        return replace(self, store=store, reader=reader, keep=keep, in_hand=None, ahead=None)

    def bring(self, job: LayerJob) -> Brought:
        """All of a layer's work that waits for files.

        Raises:
            FileError: a file cannot be read, or changed.
            NumericalError: the update holds NaN or infinity, or a weight that it is a function of does.
        """
        began = time.perf_counter()
        digests = {role: self.reader.digest(ref, hold=_is_weight(role)) for role, ref in job.refs.items()}
        key = result_key(job, digests)
        kept = self.store.get("result", key, expect=None)
        given = self.reader.load(job.update) if kept is None else None
        found = None
        if given is not None and given.norm() > 0.0:
            method, params = registry.resolve(job.method, job.params)
            held = self.in_hand
            if held is None or held.key is None or held.key != matrices_key(method, params, job, digests):
                found = LayerCache(job, digests, self.store).look_up(method, params)
                for ref in found.weights if self.ahead is not None else ():  # else a difference needs neither whole
                    self.reader.bring(ref)
        return Brought(digests, key, kept, given, found, time.perf_counter() - began)

    def _run(self, job: LayerJob, brought: Brought, device: torch.device) -> LayerResult:
        began = time.perf_counter() - brought.seconds
        kept = brought.kept
        if kept is not None:
            facts = json.loads(kept.meta["report"])
            maps = SmallMap.read_all(json.loads(kept.meta["maps"]))
            update = LowRank(kept["B"], kept["A"])
        else:
            update, facts, maps = self._compute(job, brought, device)
            told = {
                "report": json.dumps(facts),
                "maps": json.dumps({key: each.to_json() for key, each in maps.items()}),
            }
            self.store.put("result", brought.key, {"B": update.B, "A": update.A}, told)
        report = LayerReport(
            name=job.name,
            shape=job.shape,
            method=job.method,
            rank_in=job.update.rank,
            seconds=time.perf_counter() - began,
            cached=kept is not None,
            maps=maps,
            **facts,
        )
        said = tuple(problem.message for problem in self.store.take_problems())
        return LayerResult(update, report, brought.digests, said)

    def _compute(
        self, job: LayerJob, brought: Brought, device: torch.device
    ) -> tuple[LowRank, dict[str, Any], dict[str, SmallMap]]:
        method, params = registry.resolve(job.method, job.params)
        given = brought.given
        assert given is not None, "an update that is needed was not read"
        if given.norm() == 0.0:
            return *_untouched(job, device), {}
        layer = self._matrices(job, method, params, brought, device, given)
        given, stats = layer.inputs.update, _relative_norms(job, layer)
        output = method.transfer(layer.inputs, params)
        _check_output(output, method, job)
        exact: Operator = output.update
        if job.amount < 1.0:
            exact = blended(given, exact, job.amount)
        small = _shrink(exact, job, output.start, seed_of(job, brought.digests))
        update = small.update.to(getattr(torch, job.dtype))
        _check_cast(update, job)
        stats |= output.stats
        stats["exact_norm"] = exact.norm()
        facts = {"rank_out": small.rank, "energy_kept": small.energy_kept, "stats": stats, "device": str(device)}
        return LowRank(update.B.cpu(), update.A.cpu()), facts, packed_maps(output.maps)

    def _matrices(
        self,
        job: LayerJob,
        method: TransferMethod,
        params: Params,
        brought: Brought,
        device: torch.device,
        given: LowRank,
    ) -> LayerMatrices:
        """Those of `load_layer`, or what is in hand of the same pair of weights on the same device."""
        held, key, digests = self.in_hand, None, brought.digests
        if held is not None and job.source is not None:
            key = matrices_key(method, params, job, digests)
            if held.matrices is not None and (held.key, held.device) == (key, device):
                return replace(held.matrices, inputs=replace(held.matrices.inputs, update=given.to(device=device)))
            held.let_go()  # before there are others
        keep = self.keep is None or job.name in self.keep
        store, reader, found = self.store, self.reader, brought.found
        layer = load_layer(job, method, params, digests, store, reader, device, keep, given, found)
        if held is not None and key is not None:
            held.key, held.device, held.matrices = key, device, layer
        return layer


def _is_weight(role: str) -> bool:
    """Whether a tensor is worth holding from hashing to computing; the others are small."""
    return role in ("source", "target") or role.startswith("weight.")


def _untouched(job: LayerJob, device: torch.device) -> tuple[LowRank, dict[str, Any]]:
    """A zero update is one that the LoRA does not have: file formats pad with zeros, and a file with such a layer
    must give what the file without it gives. So every method leaves the layer alone, and the others set the rank."""
    zero = LowRank.zeros(*job.shape, rank=1, dtype=getattr(torch, job.dtype))
    return zero, {"rank_out": 1, "energy_kept": 1.0, "stats": {"exact_norm": 0.0}, "device": str(device)}


def _shrink(exact: Operator, job: LayerJob, start: LowRank, seed: int) -> Truncation:
    if isinstance(exact, LowRank) and job.rank.kind == "fixed" and exact.rank <= job.rank.value:
        return Truncation(update=exact.balanced(), energy_kept=1.0, rank=exact.rank)  # nothing to cut
    if job.rank.kind == "energy":
        return truncated_svd(exact, energy=float(job.rank.value), start=start, seed=seed, name=job.name)
    return truncated_svd(exact, rank=job.rank.most(min(job.shape)), start=start, seed=seed, name=job.name)


def _relative_norms(job: LayerJob, layer: LayerMatrices) -> dict[str, Any]:
    """Update and drift relative to the source weight, as far as the method had them read."""
    scale = layer.weight_norm
    if scale is None:
        return {}
    stats: dict[str, Any] = {"update_rel": layer.inputs.update.norm() / scale if scale > 0 else 0.0}
    if layer.drift_norm is not None and job.source is not None:
        stats["drift_rel"] = layer.drift_norm / scale if scale > 0 else 0.0
        share = rounding_share(job, stats["drift_rel"], scale)
        stats["drift_is_rounding"] = share >= MOSTLY
        if share >= 0.01:
            stats["drift_rounding"] = share
    return stats


def _check_output(output: LayerOutput, method: TransferMethod, job: LayerJob) -> None:
    """Say what is wrong with a method here, or it writes a broken file or fails where nobody looks for the cause."""
    if not isinstance(output, LayerOutput) or not isinstance(output.update, Operator):
        raise TypeError(f"{method.name} must return a LayerOutput with an Operator as its update, for {job.name} too")
    if tuple(output.update.shape) != job.shape:
        raise ValueError(f"{method.name} made {tuple(output.update.shape)} of {job.name}, which is {job.shape}")
    declared = {column.key for column in method.columns}
    for key, value in output.stats.items():
        if key not in declared:
            raise ValueError(f"{method.name} reports {key!r} for {job.name}, which its columns do not declare")
        if not isinstance(value, int | float | str):
            raise ValueError(f"{method.name} reports {key!r} as {value!r} for {job.name}: give a number or text")
        if not isinstance(value, str) and not math.isfinite(value):  # where numbers are too large, so are their squares
            raise NumericalError(
                f"{method.name} reports {key!r} as {value!r}",
                where=job.name,
                fix="check the numbers and the scale of the LoRA, --scale and --strength: float32 ends at 3e38",
            )


def _check_cast(update: LowRank, job: LayerJob) -> None:
    for factor in (update.B, update.A):
        if not bool(torch.isfinite(factor).all()):
            raise NumericalError(
                "the transferred update is not finite",
                where=job.name,
                values=f"after the conversion to {job.dtype}",
                fix="use --dtype float32"
                if job.dtype != "float32"
                else "check the scale of the LoRA, --scale and --strength: float32 ends at 3e38",
            )
