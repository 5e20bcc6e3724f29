"""What a plan will take: time, memory, disk. From headers, the rates of this machine, and what the cache holds.

A layer's time is its work over the machine's rates: what the method says (`TransferMethod.cost`), the bases that are
not in the cache, and the bytes to be read, hashed, kept and fetched. Layers are dealt out to the slots as the executor
does. Programs that run beside this one are not foreseen.
"""

import contextlib
import heapq
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from loraport.containers.references import TensorRef
from loraport.engine.executor import Slot, executor_for, in_flight
from loraport.engine.job import LayerJob
from loraport.engine.layer_cache import basis_key, basis_role, prepared_key
from loraport.engine.plan import TransferPlan, cost_of, rank_bound, sample_for_kinship
from loraport.engine.rates import Rates, rates_of
from loraport.engine.reading import InputReader
from loraport.engine.recipe import RunOptions
from loraport.engine.worker import ADDED, references, result_key
from loraport.errors import FileError
from loraport.methods import cost as costs
from loraport.methods import registry
from loraport.methods.cost import Cost
from loraport.store.digests import DigestMemo
from loraport.store.index import cache_root
from loraport.store.store import NullStore, Store
from loraport.threads import cores

_OVERHEAD = 0.005  # seconds a layer for all that is neither counted nor large: opening files, JSON, events
_SPREAD = 0.8  # of the cores' joint speed is left when one layer has them all
_OUTPUT_COPIES = 1.25  # the output's tensors, and what is in the making: padded, cast, read back for the check
_PAYS = 0.7  # a cache pays when the next LoRA takes less than this share of the time it takes without


@dataclass(frozen=True)
class Estimate:
    """What is expected of a run.

    Args:
        seconds: of the whole run, if nothing else runs.
        busy_seconds: what all workers together are at work; on one core, the same as `seconds`.
        peak_bytes: memory of the process at most.
        output_bytes: size of the file's layers.
        cache_bytes: what the run adds to the cache.
        finished: layers whose result is in the cache.
        warm: further layers for which it holds all that does not depend on the LoRA.
        known: whether the weights' digests are remembered; if not, nothing can be looked up.
        next_seconds: time of the next LoRA for the same pair, with what this run leaves in the cache.
        next_seconds_without: the same with `--cache off`.
        kept_layers: layers whose decompositions the cache has room for.
    """

    seconds: float
    busy_seconds: float
    peak_bytes: int
    output_bytes: int
    cache_bytes: int
    finished: int
    warm: int
    known: bool
    next_seconds: float
    next_seconds_without: float
    kept_layers: int

    @property
    def cache_pays(self) -> bool:
        """Whether what is kept of this pair makes the next LoRA clearly quicker."""
        return self.next_seconds < _PAYS * self.next_seconds_without


@dataclass(frozen=True)
class _Have:
    """What is there already of a layer.

    Args:
        digests: of the two weights, so that they are not read to be hashed.
        result: the finished layer.
        bases: roles ("source", "target") whose basis is kept.
        prepared: what the method makes of the pair.
        stores: there is a cache, into which the finished layer goes,
        keeps: and the new bases and what the method makes of the pair, too.
    """

    digests: bool = False
    result: bool = False
    bases: frozenset[str] = frozenset()
    prepared: bool = False
    stores: bool = False
    keeps: bool = False


_NOTHING = _Have()


@dataclass(frozen=True)
class _Work:
    """Of one layer: computing, and bytes of the input files and of the cache."""

    cost: Cost = Cost()  # noqa: RUF009 - frozen
    read: int = 0
    keep: int = 0
    fetch: int = 0


def estimate(plan: TransferPlan, options: RunOptions, start: float = 0.0) -> Estimate:
    """Look at plan, machine and cache; nothing of the inputs is read but a few megabytes, to see how fast they come.

    Args:
        plan: what is to be done.
        options: with what.
        start: seconds that this process took until the plan stood, which a run will take as well.
    """
    program = int(psutil.Process().memory_info().rss)  # libraries loaded, but before the rates are measured
    store, reader = _cache(plan, options)
    executor = executor_for(options)
    slots = executor.slots()
    rates = rates_of(slots[0].device, None if isinstance(store, NullStore) else store.root)
    kept = plan.layers_to_keep(int(store.max_bytes * 0.9)) if not isinstance(store, NullStore) else frozenset()
    have = {job.name: _look_up(job, store, reader, job.name in kept) for job in plan.jobs}
    disk = _disk_rate(plan)

    def timed(have: Mapping[str, _Have]) -> tuple[float, float]:
        work = {job.name: _work(job, have[job.name]) for job in plan.jobs}
        read = sum(part.read for part in work.values())
        seconds = {name: _OVERHEAD + _seconds(part, rates) for name, part in work.items()}
        again = [job for job in sample_for_kinship(plan) if work[job.name].read < _weights(job)]
        first = sum(_seconds(_Work(costs.elementwise(*job.shape, 6), _weights(job)), rates) for job in again)
        last = 2 * plan.output_bytes / rates.keep
        narrow = [job for job in plan.jobs if not job.wide]
        lanes = in_flight(narrow, slots) if narrow else 1
        if slots[0].device != "cpu":
            lanes = len({slot.device for slot in slots})  # the second layer on a device hides what the first waits for
        together = max(cores() * _SPREAD, 1.0) if slots[0].device == "cpu" else float(lanes)
        wide = sum(seconds[job.name] for job in plan.jobs if job.wide)
        busy = start + first + last + sum(seconds.values())
        spent = start + first + last + _dealt([seconds[job.name] for job in narrow], lanes) + wide / together
        return max(spent, start + read / disk), busy

    seconds, busy = timed(have)
    further = {
        job.name: _after(job, have[job.name]) if job.name in kept else replace(_NOTHING, digests=True, stores=True)
        for job in plan.jobs
    }
    return Estimate(
        seconds=seconds,
        busy_seconds=busy,
        peak_bytes=program + _working_bytes(plan, [job for job in plan.jobs if not have[job.name].result], slots),
        output_bytes=plan.output_bytes,
        cache_bytes=sum(_work(job, have[job.name]).keep for job in plan.jobs),
        finished=sum(state.result for state in have.values()),
        warm=sum(not have[job.name].result and _is_warm(job, have[job.name]) for job in plan.jobs),
        known=all(state.digests for state in have.values()),
        next_seconds=timed(further)[0],
        next_seconds_without=timed(dict.fromkeys(have, _NOTHING))[0],
        kept_layers=len(kept),
    )


def _cache(plan: TransferPlan, options: RunOptions) -> tuple[Store, InputReader]:
    if options.cache != "off":
        with contextlib.suppress(FileError):  # the run will say why the folder cannot be used
            root = cache_root(options.cache)
            return Store(root), InputReader(DigestMemo(root, trust=not options.verify_inputs), plan.identities)
    return NullStore(), InputReader(DigestMemo(None), plan.identities)


def _look_up(job: LayerJob, store: Store, reader: InputReader, keeps: bool) -> _Have:
    method, params = registry.resolve(job.method, job.params)
    known = {role: reader.known_digest(ref) for role, ref in references(job).items()}
    digests = {role: text for role, text in known.items() if text is not None}
    weights = {role for role in ("source", "target") if role in known}
    if not weights <= digests.keys():
        return replace(_NOTHING, stores=not isinstance(store, NullStore), keeps=keeps)
    told = all(role in digests for role in known if role.startswith(ADDED))
    prepared = prepared_key(method, params, job, digests) if told else None
    return _Have(
        digests=True,
        result=len(digests) == len(known) and store.has("result", result_key(job, digests)),
        bases=frozenset(
            side
            for side in weights
            if basis_role(job, side)
            and (told or not job.added(side))
            and store.has("basis", basis_key(job, side, digests))
        ),
        prepared=prepared is not None and store.has("prepared", prepared),
        stores=not isinstance(store, NullStore),
        keeps=keeps,
    )


def _needed_bases(job: LayerJob) -> set[str]:
    if job.source is None:
        return set()
    method, params = registry.resolve(job.method, job.params)
    needs = method.needs(params)
    return {role for role, wanted in (("source", needs.basis), ("target", needs.target_basis)) if wanted}


def _after(job: LayerJob, have: _Have) -> _Have:
    """What another LoRA finds once this layer is done and kept."""
    method, params = registry.resolve(job.method, job.params)
    has_pair = job.source is not None and job.target is not None
    bases = {role for role in _needed_bases(job) if basis_role(job, role)}
    return _Have(
        digests=True,
        bases=have.bases | frozenset(bases),
        prepared=has_pair and method.prepared_key(params) is not None,
        stores=True,
    )


def _is_warm(job: LayerJob, have: _Have) -> bool:
    """Whether all is there that a method keeps; never for one that keeps nothing."""
    after = _after(job, have)
    return bool(after.bases or after.prepared) and have.bases >= after.bases and have.prepared >= after.prepared


def _work(job: LayerJob, have: _Have) -> _Work:
    """As `worker` and `layer` go about it."""
    m, n = job.shape
    lora = sum(ref.nbytes for ref in job.update.refs.values())
    added = [*job.target_updates.values(), *job.source_updates.values()]
    lora += sum(ref.nbytes for update in added for ref in update.refs.values())
    result = rank_bound(job) * (m + n) * (4 if job.dtype == "float32" else 2)
    weights = _weights(job)
    if have.result:
        return _Work(read=lora + (0 if have.digests else weights), fetch=result)
    if job.source is None:
        return _Work(costs.factors(m, n, rank_bound(job)), read=lora, keep=result if have.stores else 0)

    method, params = registry.resolve(job.method, job.params)
    needs = method.needs(params)
    rank = max(job.update.rank, rank_bound(job))
    cost = cost_of(method, job.shape, rank, params, have.prepared)
    missing = _needed_bases(job) - have.bases
    for _ in missing:
        cost += costs.thin_basis(m, n)
    wants_pair = not have.prepared or (needs.drift and method.reads_drift(job.shape, params))
    if wants_pair:
        cost += costs.elementwise(m, n, 6)  # the difference and two norms
    reads = weights if wants_pair or needs.target or not have.digests else 0
    if not reads and ("source" in missing or needs.source or not needs.basis):
        reads = job.source.nbytes
    basis = costs.basis_bytes(m, n)
    prepared = max(method.kept_bytes(job.shape, params) - len(_needed_bases(job)) * basis, 0)
    lasting = len(missing) * basis + (0 if have.prepared else prepared)
    keep = (result if have.stores else 0) + (lasting if have.keeps else 0)
    fetch = len(_needed_bases(job) & have.bases) * basis + (prepared if have.prepared else 0)
    return _Work(cost, lora + reads, keep, fetch)


def _weights(job: LayerJob) -> int:
    return sum(ref.nbytes for ref in (job.source, job.target) if ref is not None)


def _seconds(work: _Work, rates: Rates) -> float:
    cost = work.cost
    computing = cost.products / rates.products + cost.decompositions / rates.decompositions + cost.passes / rates.passes
    return computing + work.read / rates.read + work.keep / rates.keep + work.fetch / rates.fetch


def _dealt(seconds: Sequence[float], lanes: int) -> float:
    """When the last of these is done if each goes, in order, to the worker that is free first."""
    free = [0.0] * max(lanes, 1)
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def _working_bytes(plan: TransferPlan, unfinished: Sequence[LayerJob], slots: Sequence[Slot]) -> int:
    """Memory beside the program: the output, and the layers in work or those looked at before."""
    narrow = [job for job in unfinished if not job.wide]
    largest = sorted((job.peak_bytes for job in narrow), reverse=True)[: in_flight(narrow, slots) if narrow else 0]
    widest = max((job.peak_bytes for job in unfinished if job.wide), default=0)
    looked_at = sum(costs.matrix_bytes(*job.shape, 2) for job in sample_for_kinship(plan))
    return int(_OUTPUT_COPIES * plan.output_bytes) + max(sum(largest), widest, looked_at)


def _disk_rate(plan: TransferPlan) -> float:
    """Bytes a second at which the weights' files come: those of a slow disk if the system does not hold them."""
    refs = [ref for job in plan.jobs for ref in (job.source, job.target) if ref is not None]
    picked = refs[:: max(len(refs) // 4, 1)][:4]
    rates = [rate for ref in picked if (rate := _timed_read(ref)) is not None]
    return max(rates, default=float("inf"))


def _timed_read(ref: TensorRef, count: int = 4_000_000) -> float | None:
    with contextlib.suppress(OSError), Path(ref.file).open("rb", buffering=0) as file:
        size = file.seek(0, 2)
        file.seek(int(size * 0.4))
        began = time.perf_counter()
        got = len(file.read(count))
        return got / max(time.perf_counter() - began, 1e-6) if got == count else None
    return None
