"""What a plan will take: time, memory, disk. From headers, the rates of this machine, and what the cache holds.

A layer's time is its work over the machine's rates: what the method says (`TransferMethod.cost`), the bases that are
not in the cache, and the bytes to be read, hashed, kept and fetched. Layers are dealt out to the slots as the executor
does. Programs that run beside this one are not foreseen.
"""

import contextlib
import heapq
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import psutil

from loraport.containers.references import TensorRef
from loraport.engine.ahead import room_beside, threads_beside
from loraport.engine.executor import Slot, executor_for, in_flight
from loraport.engine.job import LayerJob
from loraport.engine.job_cost import ChosenMethod
from loraport.engine.keeping import layers_to_keep, worth_keeping
from loraport.engine.known_digests import remembered
from loraport.engine.layer_work import (
    NOTHING,
    Have,
    LayerKind,
    Work,
    after,
    is_warm,
    look_up,
    seconds_of,
    weights_bytes,
    work_of,
)
from loraport.engine.many.plan import LayerBatch, batches_of
from loraport.engine.options import RunOptions
from loraport.engine.plan import TransferPlan, sample_for_kinship
from loraport.engine.rates import rates_of
from loraport.engine.room import TORCH_BYTES
from loraport.machine import cores
from loraport.methods import cost as costs
from loraport.store.index import DEFAULT_MAX_BYTES, RESERVE_BYTES, room

_OVERHEAD = 0.005  # seconds a layer for all that is neither counted nor large: opening files, JSON, events
_SPREAD = 0.8  # of the cores' joint speed is left when one layer has them all
_OUTPUT_COPIES = 1.25  # the output's tensors, and what is in the making: padded, cast, read back for the check
_TORCH_SECONDS = 1.2  # that loading it takes; measured
_LOOK = 4_000_000  # bytes that are read to see how fast they come
_PAYS = 0.7  # a cache pays when the next LoRA takes less than this share of the time it takes without


@dataclass(frozen=True)
class RunEstimate:
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
        kept_layers: layers whose decompositions are kept: it pays, and the cache has room for them.
        card_bytes: memory of each CUDA device at most, without what CUDA takes for itself; 0 where none computes.
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
    card_bytes: int = 0

    @property
    def cache_pays(self) -> bool:
        """Whether what is kept of this pair makes the next LoRA clearly quicker."""
        return self.next_seconds < _PAYS * self.next_seconds_without


def estimate(plans: Sequence[TransferPlan], options: RunOptions, start: float = 0.0) -> RunEstimate:
    """Look at plans, machine and cache; nothing of the inputs is read but a few megabytes, to see how fast they come.

    Args:
        plans: of each LoRA of one job, at least one; a layer is read and decomposed for the first that changes it.
        options: with what.
        start: seconds that this process took until the plan stood, which a run will take as well.
    """
    program = int(psutil.Process().memory_info().rss)  # libraries loaded, but before the rates are measured
    if "torch" not in sys.modules:  # which a run loads, and a plan does without
        program, start = program + TORCH_BYTES, start + _TORCH_SECONDS
    batches = batches_of(dict(enumerate(plans)))
    layers = [tuple(batch.jobs.values()) for batch in batches]
    identities = {file: state for plan in plans for file, state in plan.identities.items()}
    root, digests = remembered(options, identities)
    executor = executor_for(options)
    slots = executor.slots()
    rates = rates_of(slots[0].device, root)
    lasting, device, several = [batch.lasting for batch in batches], slots[0].device, len(plans) > 1
    worth = worth_keeping(lasting, options, digests, lambda: rates, device=device, several=several)
    kept = frozenset() if root is None else layers_to_keep(worth, room(root, DEFAULT_MAX_BYTES, RESERVE_BYTES))
    asked = {way: ChosenMethod.of(job) for way, job in {_way(job): job for layer in layers for job in layer}.items()}
    kinds = {id(job): LayerKind.of(job) for layer in layers for job in layer}
    have = [
        _with_hand(batch, [look_up(job, asked[_way(job)], root, digests, job.name in kept) for job in layer], asked)
        for batch, layer in zip(batches, layers, strict=True)
    ]

    @cache
    def work_alike(way: _Way, kind: LayerKind, state: Have) -> Work:
        return work_of(kind, asked[way], state)

    def work_at(job: LayerJob, state: Have) -> Work:
        return work_alike(_way(job), kinds[id(job)], state)

    places = len({slot.device for slot in slots})
    beside = 0.0 if device == "cpu" else threads_beside() / places
    disk, sample = _disk_rate(plans[0]), sample_for_kinship(plans[0])
    copies = 2 if len(plans) == 1 else 4  # of the output: written and read, and before that its layers one by one

    def timed(layers: Sequence[Sequence[LayerJob]], have: Sequence[Sequence[Have]], out: int) -> tuple[float, float]:
        work = [list(map(work_at, layer, states)) for layer, states in zip(layers, have, strict=True)]
        read = sum(part.read for parts in work for part in parts)
        seconds = [sum(_OVERHEAD + seconds_of(part, rates, beside) for part in parts) for parts in work]
        reading = {layer[0].name: parts[0].read for layer, parts in zip(layers, work, strict=True)}
        again = [job for job in sample if reading[job.name] < weights_bytes(job)]
        first = sum(seconds_of(Work(costs.elementwise(*job.shape, 6), weights_bytes(job)), rates) for job in again)
        last = copies * out / rates.keep
        if beside:
            dealt = _dealt(seconds, places)  # a second layer on a device hides what the first waits for
        else:
            narrow = [batch for batch in batches if not batch.wide]
            lanes = in_flight(narrow, slots) if narrow else 1
            dealt = _dealt([spent for batch, spent in zip(batches, seconds, strict=True) if not batch.wide], lanes)
            wide = sum(spent for batch, spent in zip(batches, seconds, strict=True) if batch.wide)
            dealt += wide / max(cores() * _SPREAD, 1.0)
        busy = start + first + last + sum(seconds)
        return max(start + first + last + dealt, start + read / disk), busy

    output, largest = sum(plan.output_bytes for plan in plans), max(plan.output_bytes for plan in plans)
    seconds, busy = timed(layers, have, output)
    alone = [layer[:1] for layer in layers]  # another LoRA, which changes the same layers
    not_kept = replace(NOTHING, digests=True, stores=True)
    further = [
        [after(job, asked[_way(job)], states[0]) if job.name in kept else not_kept]
        for (job, *_), states in zip(layers, have, strict=True)
    ]
    every = [
        (job, state)
        for layer, states in zip(layers, have, strict=True)
        for job, state in zip(layer, states, strict=True)
    ]
    lying = 0  # what was brought for the next layers, and what waits to be written
    if beside:
        work = [work_at(*each) for each in every]
        brought, waiting = sum(part.read + part.fetch for part in work), sum(part.keep for part in work)
        lying = min(room_beside(), brought) + min(room_beside(), waiting)
    unfinished = [batch for batch, states in zip(batches, have, strict=True) if not all(each.result for each in states)]
    return RunEstimate(
        seconds=seconds,
        busy_seconds=busy,
        peak_bytes=program + lying + _working_bytes(largest, sample, unfinished, slots),
        output_bytes=output,
        cache_bytes=sum(work_at(job, state).keep for job, state in every),
        finished=sum(state.result for _, state in every),
        warm=sum(not state.result and is_warm(job, asked[_way(job)], state) for job, state in every),
        known=all(state.digests for _, state in every),
        next_seconds=timed(alone, further, largest)[0],
        next_seconds_without=timed(alone, [[NOTHING]] * len(alone), largest)[0],
        kept_layers=len(kept),
        card_bytes=_card_bytes(unfinished, slots),
    )


_Way = tuple[str, str]


def _way(job: LayerJob) -> _Way:
    """Method and settings of a layer, as a key."""
    return job.method, json.dumps(job.params, sort_keys=True)


def _with_hand(batch: LayerBatch, states: Sequence[Have], asked: Mapping[_Way, ChosenMethod]) -> list[Have]:
    """What is there for each job of a layer, the ones before it done: matrices that it shares, or a basis."""
    found: list[Have] = []
    computed: set[int] = set()  # groups of which one had its matrices brought together
    bases: frozenset[str] = frozenset()
    for (number, job), state in zip(batch.jobs.items(), states, strict=True):
        group = batch.groups[number]
        if group in computed:
            found.append(replace(state, in_hand=not state.result))
        else:
            found.append(replace(state, bases=state.bases | bases))
        if not state.result:
            computed.add(group)
            bases |= asked[_way(job)].bases & {"source"}
    return found


def _dealt(seconds: Sequence[float], lanes: int) -> float:
    """When the last of these is done if each goes, in order, to the worker that is free first."""
    free = [0.0] * max(lanes, 1)
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def _working_bytes(
    output: int, sample: Sequence[LayerJob], unfinished: Sequence[LayerBatch], slots: Sequence[Slot]
) -> int:
    """Memory beside the program: one output, and the layers in work or those looked at before. A card has its layers
    in its own, but for one that finds no room there."""
    narrow = [batch for batch in unfinished if not batch.wide]
    at_once = 1 if slots[0].device.startswith("cuda") else in_flight(narrow, slots) if narrow else 0
    largest = sorted((batch.peak_bytes for batch in narrow), reverse=True)[:at_once]
    widest = max((batch.peak_bytes for batch in unfinished if batch.wide), default=0)
    looked_at = sum(map(weights_bytes, sample)) + max((costs.matrix_bytes(*job.shape, 2) for job in sample), default=0)
    return int(_OUTPUT_COPIES * output) + max(sum(largest), widest, looked_at)


def _card_bytes(unfinished: Sequence[LayerBatch], slots: Sequence[Slot]) -> int:
    """Of the layers that are in work on one card."""
    device = slots[0].device
    if not device.startswith("cuda"):
        return 0
    here = [slot for slot in slots if slot.device == device]
    largest = sorted((batch.bytes_on(device) for batch in unfinished), reverse=True)
    return sum(largest[: in_flight(unfinished, here)])


def _disk_rate(plan: TransferPlan) -> float:
    """Bytes a second at which the weights' files come: those of a slow disk if the system does not hold them."""
    refs = [ref for job in plan.jobs for ref in (job.source, job.target) if ref is not None]
    picked = refs[:: max(len(refs) // 4, 1)][:4]
    rates = [rate for ref in picked if (rate := _timed_read(ref)) is not None]
    return max(rates, default=float("inf"))


def _timed_read(ref: TensorRef) -> float | None:
    with contextlib.suppress(OSError), Path(ref.file).open("rb", buffering=0) as file:
        size = file.seek(0, 2)
        file.seek(int(size * 0.4))
        began = time.perf_counter()
        got = len(file.read(_LOOK))
        return got / max(time.perf_counter() - began, 1e-6) if got == _LOOK else None
    return None
