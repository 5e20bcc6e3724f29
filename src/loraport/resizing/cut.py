"""Many weights cut to ranks by one rule, and written as a LoRA."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from loraport.adapters.consumers import content_of
from loraport.adapters.header import canonical_json
from loraport.adapters.loaders import loader_notes, ways_to_load
from loraport.adapters.render import render_adapter, write_adapter
from loraport.containers.safetensors import HASHES
from loraport.core.allotment import allot, rank_for_energy
from loraport.core.lowrank import LowRank
from loraport.engine.events import LayerDone, Listener, Warnings
from loraport.engine.executor import executor_for
from loraport.engine.options import RunOptions
from loraport.engine.results import LayerReport
from loraport.engine.run_cache import open_cache
from loraport.engine.surroundings import usual_torch
from loraport.errors import MismatchError, UsageError
from loraport.resizing.job import WeightJob
from loraport.resizing.report import Resized
from loraport.resizing.rule import Amount
from loraport.resizing.task import Task, passes
from loraport.resizing.weight import Cutter, WeightResult, layers_of


@usual_torch()
def carry_out(task: Task, amount: Amount, output: Path, options: RunOptions, on_event: Listener) -> Resized:
    """Cut all weights and write the file.

    Raises:
        UsageError: `max_size` is too small for anything.
        MismatchError: there is nothing to write.
        NumericalError: a weight that holds NaN or infinity.
        FileError: the file exists, cannot be written, or an input changed meanwhile.
    """
    began = time.perf_counter()
    task.check_output(output, overwrite=options.overwrite)
    warn = Warnings(on_event)
    for message in task.warnings:
        warn(message)
    store, reader = open_cache(task.identities, options, warn)
    executor, cutter = executor_for(options, on_event), Cutter(store, reader)
    tell = _teller(task.what, task.jobs, amount, on_event)

    def work(jobs: Sequence[WeightJob]) -> dict[str, WeightResult]:
        found: dict[str, WeightResult] = {}
        for result in executor.run(jobs, cutter):
            found[result.job.weight.name] = result
            tell(result)
        for problem in store.take_problems():
            warn(problem.message)
        return {job.weight.name: found[job.weight.name] for job in jobs}

    try:
        norms, ranks = _ranks(task, amount, work)
        chosen = [replace(job, rank=ranks[job.weight.name]) for job in task.jobs if ranks[job.weight.name]]
        results = work(chosen)
        norms |= {name: result.norm for name, result in results.items()}
        results = {name: result for name, result in results.items() if result.norm > 0}
        if not results and not task.passthrough:
            raise _nothing(task)
        layers = _layers(results, amount)
        if amount.rank is None:
            shapes = {job.weight.name: job for job in task.jobs}
            for name in task.blanks({name: int(name in results) for name in shapes}):
                layers |= layers_of(shapes[name].weight, LowRank.zeros(*shapes[name].shape, rank=1))
        kept = _energy(results, norms)
        tensors = _rendered(task, layers)
        widest = max((update.rank for update in layers.values()), default=0)
        reader.check_unchanged()
        write_adapter(output, tensors, _metadata(task, amount, kept, widest), overwrite=options.overwrite)
    except BaseException:
        store.sweep()
        raise
    finally:
        reader.memo.flush()
    content = content_of(
        task.to, {name: u.rank for name, u in layers.items()}, task.passthrough, task.architecture, task.dialect
    )
    for message in loader_notes(content):
        warn(message)
    return Resized(
        output=output,
        rule=str(amount),
        layers=tuple(_report(task.what, result) for result in results.values()),
        left_out=tuple(job.weight.name for job in task.jobs if job.weight.name not in results),
        passthrough=tuple(key for item in task.passthrough for key in item.keys),
        energy_kept=kept,
        size=output.stat().st_size,
        dtype=task.dtype,
        to=task.to,
        load=tuple(ways_to_load(output, content)),
        warnings=tuple(warn.told),
        seconds=time.perf_counter() - began,
    )


def _rendered(task: Task, layers: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The tensors of the output."""
    dtype = getattr(torch, task.dtype)
    return render_adapter(layers, task.passthrough, task.to, task.architecture, task.dialect, dtype)


def _nothing(task: Task) -> MismatchError:
    if task.what == "extract":
        return MismatchError(
            "source and target hold the same numbers: there is nothing to extract",
            where=" and ".join(dict.fromkeys(str(file) for role, file in task.inputs if role in ("source", "target"))),
            fix="did you name the same model twice?",
        )
    return MismatchError(
        "every update of the LoRA is zero: there is nothing to write",
        where=str(task.inputs[0][1]),
        fix="was it trained, and saved completely?",
    )


def _ranks(
    task: Task, amount: Amount, work: Callable[[Sequence[WeightJob]], dict[str, WeightResult]]
) -> tuple[dict[str, float], dict[str, int]]:
    """Norms as far as they are known by then, and the rank of every weight."""
    if amount.rank is not None:
        return {}, {job.weight.name: min(amount.rank, job.matrix.rank, *job.shape) for job in task.jobs}
    results = work(task.jobs)
    norms = {name: result.norm for name, result in results.items()}
    energies = {
        name: (torch.empty(0) if result.values is None else result.values).double().square()
        for name, result in results.items()
    }
    if amount.energy is not None:
        return norms, {name: rank_for_energy(found, amount.energy) for name, found in energies.items()}
    assert amount.max_size is not None
    return norms, _ranks_for_size(task, energies, amount.max_size)


def _ranks_for_size(task: Task, energies: Mapping[str, Float64[Tensor, " q"]], most: int) -> dict[str, int]:
    """The ranks that hold most in a file of so many bytes. Which weights are in it decides how large its header is."""
    costs = {job.weight.name: task.cost(job) for job in task.jobs}

    def size(ranks: Mapping[str, int]) -> int:
        return _fixed_bytes(task, ranks, most) + sum(costs[name] * rank for name, rank in ranks.items())

    low, high = 0, most + 1  # budgets for factors: of what fits, and of what does not; more never makes it smaller
    step = math.gcd(*costs.values()) or high  # between two multiples of it nothing changes
    ranks = allot(energies, costs, low)
    while (middle := (low + high) // 2 // step * step) > low:
        more = allot(energies, costs, middle)
        if size(more) <= most:
            low, ranks = middle, more
        else:
            high = middle
    changed = any(float(found.sum()) > 0 for found in energies.values())
    if size(ranks) > most or (changed and not any(ranks.values())):
        largest = {max(costs, key=lambda name: costs[name]), max(costs, key=len)}
        enough = max(_fixed_bytes(task, {name: 1}, 10**15) for name in largest) + max(costs.values())
        raise UsageError(
            "the file would be too small to hold anything",
            values=f"{most:,} bytes",
            fix=f"--max-size {enough}",
        )
    return ranks


def _fixed_bytes(task: Task, ranks: Mapping[str, int], most: int) -> int:
    """What a file with these weights takes besides their factors, at most: its header, and what is written as it is."""
    inside = {name for name, rank in ranks.items() if rank}
    blanks = {*task.blanks(ranks)}
    jobs = [job for job in task.jobs if job.weight.name in inside | blanks]
    ones = [layers_of(job.weight, LowRank.zeros(*job.shape, rank=1)) for job in jobs]
    tensors = _rendered(task, {name: update for one in ones for name, update in one.items()})
    data = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    entries = {
        key: {"dtype": "BF16", "shape": [*tensor.shape, 100], "data_offsets": [most, most]}
        for key, tensor in tensors.items()
    }
    texts = (
        _metadata(task, Amount(max_size=most), 0.123456789012345678, 10**6) | HASHES | {"loraport.content": "0" * 64}
    )
    header = json.dumps({"__metadata__": texts} | entries, separators=(",", ":"))  # longer than the real one
    return data - sum(task.cost(job) for job in jobs if job.weight.name in inside) + len(header) + 16


def _layers(results: Mapping[str, WeightResult], amount: Amount) -> dict[str, LowRank]:
    """The updates of all layers. A rank that was named is that of every layer, so that no loader scales one wrongly."""
    found: dict[str, LowRank] = {}
    widest = max((result.update.rank for result in results.values() if result.update is not None), default=0)
    for result in results.values():
        assert result.update is not None
        update = result.update.padded(widest) if amount.rank is not None else result.update
        found |= layers_of(result.job.weight, update)
    return found


def _energy(results: Mapping[str, WeightResult], norms: Mapping[str, float]) -> float:
    whole = math.fsum(norm**2 for norm in norms.values())  # the same in every version of Python, for the header
    return math.fsum(result.energy_kept * result.norm**2 for result in results.values()) / whole if whole else 1.0


def _metadata(task: Task, amount: Amount, kept: float, rank: int) -> dict[str, str]:
    told = {"rule": str(amount), "energy_kept": kept, "dtype": task.dtype}
    dims = {"ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    return {**task.metadata, **dims, f"loraport.{task.what}": canonical_json(told)}


def _report(what: str, result: WeightResult) -> LayerReport:
    rank = 0 if result.update is None else result.update.rank
    return LayerReport(
        name=result.job.weight.name,
        shape=result.job.shape,
        method=what,
        rank_in=result.job.matrix.rank,
        rank_out=rank,
        energy_kept=result.energy_kept,
        stats={"norm": result.norm},
        seconds=result.seconds,
        cached=result.cached,
        device=result.device,
    )


def _teller(what: str, jobs: Sequence[WeightJob], amount: Amount, on_event: Listener) -> Callable[[WeightResult], None]:
    """Tells of progress: singular values, where they are needed, are the larger part of the work."""
    times = passes(amount)
    total = sum(job.cost for job in jobs) * times
    done, finished = 0.0, 0

    def tell(result: WeightResult) -> None:
        nonlocal done, finished
        finished += 1
        done = min(done + replace(result.job, rank=None).cost, total)
        on_event(LayerDone(_report(what, result), finished, times * len(jobs), done, total))

    return tell
