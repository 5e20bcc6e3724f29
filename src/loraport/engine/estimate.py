"""What a plan will take: time, memory, disk. From headers, the rates of this machine, and what the cache holds.

A layer's time is its work over the machine's rates: what the method says (`TransferMethod.cost`), the bases that are
not in the cache, and the bytes to be read, hashed, kept and fetched. Layers are dealt out to the slots as the executor
does. Programs that run beside this one are not foreseen.
"""

import contextlib
import heapq
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from loraport.containers.references import TensorRef
from loraport.engine.executor import Slot, executor_for, in_flight
from loraport.engine.job import LayerJob
from loraport.engine.keys import ADDED, basis_key, basis_role, prepared_key, references, result_key
from loraport.engine.known_digests import KnownDigests
from loraport.engine.many_plan import LayerBatch, batches_of
from loraport.engine.plan import TransferPlan, layers_to_keep, rank_bound, sample_for_kinship
from loraport.engine.rates import Rates, rates_of
from loraport.engine.recipe import RunOptions
from loraport.errors import FileError
from loraport.methods import cost as costs
from loraport.methods import registry
from loraport.methods.base import Needs, Params, TransferMethod
from loraport.methods.cost import Cost
from loraport.store.digests import DigestMemo
from loraport.store.index import DEFAULT_MAX_BYTES, cache_root, entry_path
from loraport.threads import cores

_OVERHEAD = 0.005  # seconds a layer for all that is neither counted nor large: opening files, JSON, events
_SPREAD = 0.8  # of the cores' joint speed is left when one layer has them all
_OUTPUT_COPIES = 1.25  # the output's tensors, and what is in the making: padded, cast, read back for the check
_TORCH_SECONDS, _TORCH_BYTES = 1.6, 190_000_000  # that loading it takes; measured
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
        in_hand: a LoRA before has just had it all brought together, in the same job.
    """

    digests: bool = False
    result: bool = False
    bases: frozenset[str] = frozenset()
    prepared: bool = False
    stores: bool = False
    keeps: bool = False
    in_hand: bool = False


_NOTHING = _Have()


@dataclass(frozen=True)
class _Asked:
    """A method with its settings, and what it says it needs: the same for all layers that it carries over.

    Args:
        method: of a layer.
        params: its settings.
        needs: of both.
        bases: sides whose basis it needs.
    """

    method: TransferMethod[Any]
    params: Params
    needs: Needs
    bases: frozenset[str]

    @classmethod
    def of(cls, job: LayerJob) -> "_Asked":
        """What a layer's method says."""
        method, params = registry.resolve(job.method, job.params)
        needs = method.needs(params)
        sides = (("source", needs.basis), ("target", needs.target_basis))
        return cls(method, params, needs, frozenset(side for side, wanted in sides if wanted))


@dataclass(frozen=True)
class _Kind:
    """All of a layer that decides how much work it is; a model has thousands of layers of some ten kinds.

    Args:
        method: its name.
        shape: (out, in) of the weight.
        rank_in: of the LoRA's update.
        rank_out: of the output at most.
        item: bytes of a number of the output.
        lora: bytes of the update, and of those that are added to the weights.
        source: bytes of the source's weight; None where the method does not need it.
        weights: bytes of all weights.
    """

    method: str
    shape: tuple[int, int]
    rank_in: int
    rank_out: int
    item: int
    lora: int
    source: int | None
    weights: int

    @classmethod
    def of(cls, job: LayerJob) -> "_Kind":
        """That of a layer."""
        updates = [job.update, *job.target_updates.values(), *job.source_updates.values()]
        return cls(
            job.method,
            job.shape,
            job.update.rank,
            rank_bound(job),
            4 if job.dtype == "float32" else 2,
            sum(ref.nbytes for update in updates for ref in update.refs.values()),
            None if job.source is None else job.source.nbytes,
            _weights(job),
        )


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
    return estimate_together([plan], options, start)


def estimate_together(plans: Sequence[TransferPlan], options: RunOptions, start: float = 0.0) -> Estimate:
    """As `estimate`, for LoRAs of one pair in one job, at least one: a layer is read and decomposed for the first.

    Args:
        plans: of each LoRA.
        options: with what.
        start: as for `estimate`.
    """
    program = int(psutil.Process().memory_info().rss)  # libraries loaded, but before the rates are measured
    if "torch" not in sys.modules:  # which a run loads, and a plan does without
        program, start = program + _TORCH_BYTES, start + _TORCH_SECONDS
    batches = batches_of(dict(enumerate(plans)))
    layers = [tuple(batch.jobs.values()) for batch in batches]
    root, digests = _cache(plans, options)
    executor = executor_for(options)
    slots = executor.slots()
    rates = rates_of(slots[0].device, root)
    room = int(DEFAULT_MAX_BYTES * 0.9)
    kept = frozenset() if root is None else layers_to_keep([batch.first for batch in batches], room)
    asked = {job.method: _Asked.of(job) for job in {job.method: job for layer in layers for job in layer}.values()}
    kinds = {id(job): _Kind.of(job) for layer in layers for job in layer}
    have = [
        _with_hand([_look_up(job, asked[job.method], root, digests, job.name in kept) for job in layer])
        for layer in layers
    ]
    known: dict[tuple[_Kind, _Have], _Work] = {}

    def work_of(job: LayerJob, state: _Have) -> _Work:
        kind = kinds[id(job)]
        if (kind, state) not in known:
            known[kind, state] = _work(kind, asked[job.method], state)
        return known[kind, state]

    disk, sample = _disk_rate(plans[0]), sample_for_kinship(plans[0])
    copies = 2 if len(plans) == 1 else 4  # of the output: written and read, and before that its layers one by one

    def timed(layers: Sequence[Sequence[LayerJob]], have: Sequence[Sequence[_Have]], out: int) -> tuple[float, float]:
        work = [list(map(work_of, layer, states)) for layer, states in zip(layers, have, strict=True)]
        read = sum(part.read for parts in work for part in parts)
        seconds = [sum(_OVERHEAD + _seconds(part, rates) for part in parts) for parts in work]
        reading = {layer[0].name: parts[0].read for layer, parts in zip(layers, work, strict=True)}
        again = [job for job in sample if reading[job.name] < _weights(job)]
        first = sum(_seconds(_Work(costs.elementwise(*job.shape, 6), _weights(job)), rates) for job in again)
        last = copies * out / rates.keep
        narrow = [batch for batch in batches if not batch.wide]
        lanes = in_flight(narrow, slots) if narrow else 1
        if slots[0].device != "cpu":
            lanes = len({slot.device for slot in slots})  # the second layer on a device hides what the first waits for
        together = max(cores() * _SPREAD, 1.0) if slots[0].device == "cpu" else float(lanes)
        wide = sum(spent for batch, spent in zip(batches, seconds, strict=True) if batch.wide)
        dealt = _dealt([spent for batch, spent in zip(batches, seconds, strict=True) if not batch.wide], lanes)
        busy = start + first + last + sum(seconds)
        return max(start + first + last + dealt + wide / together, start + read / disk), busy

    output, largest = sum(plan.output_bytes for plan in plans), max(plan.output_bytes for plan in plans)
    seconds, busy = timed(layers, have, output)
    alone = [layer[:1] for layer in layers]  # another LoRA, which changes the same layers
    not_kept = replace(_NOTHING, digests=True, stores=True)
    further = [
        [_after(job, asked[job.method], states[0]) if job.name in kept else not_kept]
        for (job, *_), states in zip(layers, have, strict=True)
    ]
    every = [
        (job, state)
        for layer, states in zip(layers, have, strict=True)
        for job, state in zip(layer, states, strict=True)
    ]
    unfinished = [batch for batch, states in zip(batches, have, strict=True) if not all(each.result for each in states)]
    return Estimate(
        seconds=seconds,
        busy_seconds=busy,
        peak_bytes=program + _working_bytes(largest, sample, unfinished, slots),
        output_bytes=output,
        cache_bytes=sum(work_of(job, state).keep for job, state in every),
        finished=sum(state.result for _, state in every),
        warm=sum(not state.result and _is_warm(job, asked[job.method], state) for job, state in every),
        known=all(state.digests for _, state in every),
        next_seconds=timed(alone, further, largest)[0],
        next_seconds_without=timed(alone, [[_NOTHING]] * len(alone), largest)[0],
        kept_layers=len(kept),
    )


def _with_hand(states: Sequence[_Have]) -> list[_Have]:
    """What is there for each LoRA on a layer, the ones before it done."""
    found: list[_Have] = []
    for state in states:
        computed = any(not before.result for before in found)
        found.append(replace(state, in_hand=computed and not state.result))
    return found


def _cache(plans: Sequence[TransferPlan], options: RunOptions) -> tuple[Path | None, KnownDigests]:
    """The cache folder, and the digests that are remembered in it."""
    identities = {file: state for plan in plans for file, state in plan.identities.items()}
    if options.cache != "off":
        with contextlib.suppress(FileError):  # the run will say why the folder cannot be used
            root = cache_root(options.cache)
            return root, KnownDigests(DigestMemo(root, trust=not options.verify_inputs), identities)
    return None, KnownDigests(DigestMemo(None), identities)


def _has(root: Path | None, kind: str, key: str) -> bool:
    return root is not None and entry_path(root, kind, key).is_file()


def _look_up(job: LayerJob, asked: _Asked, root: Path | None, remembered: KnownDigests, keeps: bool) -> _Have:
    known = {role: remembered.known_digest(ref) for role, ref in references(job).items()}
    digests = {role: text for role, text in known.items() if text is not None}
    weights = {role for role in ("source", "target") if role in known}
    if not weights <= digests.keys():
        return replace(_NOTHING, stores=root is not None, keeps=keeps)
    told = all(role in digests for role in known if role.startswith(ADDED))
    prepared = prepared_key(asked.method, asked.params, job, digests) if told else None
    return _Have(
        digests=True,
        result=len(digests) == len(known) and _has(root, "result", result_key(job, digests)),
        bases=frozenset(
            side
            for side in weights
            if basis_role(job, side)
            and (told or not job.added(side))
            and _has(root, "basis", basis_key(job, side, digests))
        ),
        prepared=prepared is not None and _has(root, "prepared", prepared),
        stores=root is not None,
        keeps=keeps,
    )


def _after(job: LayerJob, asked: _Asked, have: _Have) -> _Have:
    """What another LoRA finds once this layer is done and kept."""
    has_pair = job.source is not None and job.target is not None
    bases = {role for role in asked.bases if job.source is not None and basis_role(job, role)}
    return _Have(
        digests=True,
        bases=have.bases | bases,
        prepared=has_pair and asked.method.prepared_key(asked.params) is not None,
        stores=True,
    )


def _is_warm(job: LayerJob, asked: _Asked, have: _Have) -> bool:
    """Whether all is there that a method keeps; never for one that keeps nothing."""
    after = _after(job, asked, have)
    return bool(after.bases or after.prepared) and have.bases >= after.bases and have.prepared >= after.prepared


def _work(kind: _Kind, asked: _Asked, have: _Have) -> _Work:
    """As `worker` and `layer` go about it."""
    m, n = kind.shape
    result = kind.rank_out * (m + n) * kind.item
    if have.result:
        return _Work(read=kind.lora + (0 if have.digests else kind.weights), fetch=result)
    if kind.source is None:
        return _Work(costs.factors(m, n, kind.rank_out), read=kind.lora, keep=result if have.stores else 0)

    method, params, needs = asked.method, asked.params, asked.needs
    cost = method.cost(kind.shape, max(kind.rank_in, kind.rank_out), params, have.prepared or have.in_hand)
    if have.in_hand:
        return _Work(cost, kind.lora, result if have.stores else 0)
    missing = asked.bases - have.bases
    for _ in missing:
        cost += costs.thin_basis(m, n)
    wants_pair = not have.prepared or (needs.drift and method.reads_drift(kind.shape, params))
    if wants_pair:
        cost += costs.elementwise(m, n, 6)  # the difference and two norms
    reads = kind.weights if wants_pair or needs.target or not have.digests else 0
    if not reads and ("source" in missing or needs.source or not needs.basis):
        reads = kind.source
    basis = costs.basis_bytes(m, n)
    prepared = max(method.kept_bytes(kind.shape, params) - len(asked.bases) * basis, 0)
    lasting = len(missing) * basis + (0 if have.prepared else prepared)
    keep = (result if have.stores else 0) + (lasting if have.keeps else 0)
    fetch = len(asked.bases & have.bases) * basis + (prepared if have.prepared else 0)
    return _Work(cost, kind.lora + reads, keep, fetch)


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


def _working_bytes(
    output: int, sample: Sequence[LayerJob], unfinished: Sequence[LayerBatch], slots: Sequence[Slot]
) -> int:
    """Memory beside the program: one output, and the layers in work or those looked at before."""
    narrow = [batch for batch in unfinished if not batch.wide]
    largest = sorted((batch.peak_bytes for batch in narrow), reverse=True)[: in_flight(narrow, slots) if narrow else 0]
    widest = max((batch.peak_bytes for batch in unfinished if batch.wide), default=0)
    looked_at = sum(costs.matrix_bytes(*job.shape, 2) for job in sample)
    return int(_OUTPUT_COPIES * output) + max(sum(largest), widest, looked_at)


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
