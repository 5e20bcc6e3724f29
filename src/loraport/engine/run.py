"""A plan carried out: jobs through an executor, results into one file, one report.

The output appears under its name only when everything has succeeded; the run log beside it grows line by
line, so that there is something to read after a failure too.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from loraport.adapters.loaders import ways_to_load
from loraport.adapters.render import write_adapter
from loraport.core.lowrank import LowRank
from loraport.engine.events import Finished, LayerDone, Listener, PlanReady, Warned, ignore
from loraport.engine.executor import Executor, executor_for
from loraport.engine.job import LayerJob
from loraport.engine.kinship import drift_share, refuse_other_expert
from loraport.engine.output import check_outputs, log_path, render_output
from loraport.engine.plan import TransferPlan, sample_for_kinship
from loraport.engine.reading import InputReader
from loraport.engine.recipe import RunOptions
from loraport.engine.results import (
    SCHEMA,
    Column,
    LayerReport,
    Summary,
    TransferReport,
    energy_kept_in_total,
    layer_columns,
)
from loraport.engine.rounding import MOSTLY, quantised, refuse_rounding, rounding_share
from loraport.engine.target import twins, used_together, used_with
from loraport.engine.worker import LayerResult, Worker, references
from loraport.errors import FileError, MismatchError
from loraport.files import RunLog
from loraport.partial import remove_abandoned
from loraport.store.digests import DigestMemo
from loraport.store.index import cache_root
from loraport.store.store import NullStore, Store
from loraport.version import __version__

DEFAULTS = RunOptions()
UNRELATED = 0.8
"""A drift of this share of the source's norm is no distillation. Two unrelated models differ by 1.4; the
most strongly distilled tiny model by 0.36."""


@torch.inference_mode(False)  # whatever the caller lives in, since the threads of the executor do not live in it
def run(
    plan: TransferPlan,
    output: Path | str | None,
    options: RunOptions = DEFAULTS,
    on_event: Listener = ignore,
    *,
    measured: bool = False,
) -> TransferReport:
    """Carry out a plan.

    Args:
        output: the file to write; None computes and reports only.
        on_event: told about every step, from this thread.
        measured: the result has been tried out, so a drift that is mostly rounding is no reason to refuse it.

    Raises:
        UsageError: the device is unknown or not there.
        MismatchError: source and target are not versions of one model (unless forced).
        NumericalError: a tensor holds NaN or infinity, or the drift is mostly rounding (unless forced).
        FileError: the output exists, or cannot be written. No output file is left behind.
    """
    with carried_out(plan, output, options, on_event, measured=measured) as report:
        pass
    on_event(Finished(report))
    return report


Writer = Callable[[Path, Mapping[str, Tensor], Mapping[str, str]], None]
"""Writes an output: its name, tensors and header."""


@contextlib.contextmanager
def carried_out(
    plan: TransferPlan,
    output: Path | str | None,
    options: RunOptions,
    on_event: Listener,
    *,
    measured: bool = False,
    write: Writer | None = None,
) -> Iterator[TransferReport]:
    """A plan carried out, as `run` does. The block around it may still fail the run, which the log then tells.

    Args:
        write: how the output is written; by default under its name, at once.

    Raises:
        LoraportError: as `run`.
    """
    began = time.perf_counter()
    path = None if output is None else Path(output)
    check_outputs(path, plan, options)
    warnings: list[str] = []

    def warn(message: str) -> None:
        if message not in warnings:
            warnings.append(message)
            on_event(Warned(message))

    on_event(PlanReady(plan))
    for message in plan.warnings:
        warn(message)
    executor = executor_for(options)
    store, reader = open_cache(plan, options, warn)
    sample = sample_for_kinship(plan)
    check_kinship(plan, sample, reader, rounding=not measured)
    work = Worker(store, reader, _layers_to_keep(plan, store, warn))
    log = _open_log(path, plan, options)  # only now: a run that is refused leaves nothing, and no earlier log is lost
    if path is not None:
        remove_abandoned(path)
    try:
        results = _run_jobs(plan, sample, work, executor, on_event, warn, log)
        layers = tuple(result.report for result in results)
        _judge(layers, plan, warn, rounding=not measured)
        for message in twins(plan.added, [result.digests for result in results]):
            warn(message)
        report = _report(plan, path, results, warnings, time.perf_counter() - began)
        if path is not None:
            tensors, metadata = render_output(plan, results, report)
            reader.check_unchanged()
            if write is None:
                write_adapter(path, tensors, metadata, overwrite=options.overwrite)
            else:
                write(path, tensors, metadata)
            del tensors
        del results  # while the block around it goes on
        yield report
        if log is not None:
            log.append({"event": "finished", **{k: v for k, v in report.to_json().items() if k != "layers"}})
    except BaseException as error:
        store.sweep()  # workers may have been ended in the middle of writing
        if log is not None:
            with contextlib.suppress(FileError):  # a full disk must not hide what went wrong first
                log.append({"event": "failed", "error": str(error) or type(error).__name__})
        raise
    finally:
        reader.memo.flush()
        if log is not None:
            log.close()


@torch.inference_mode(False)
def compute(plan: TransferPlan, options: RunOptions = DEFAULTS) -> dict[str, LowRank]:
    """Every layer's new update by canonical name, in memory: what `run` would write, without file, log or report.

    Raises:
        UsageError, MismatchError, NumericalError: as `run`.
    """
    executor = executor_for(options)
    store, reader = open_cache(plan, options, lambda message: None)
    sample = sample_for_kinship(plan)
    check_kinship(plan, sample, reader, rounding=False)
    work = Worker(store, reader, plan.layers_to_keep(int(store.max_bytes * 0.9)))
    try:
        results = _run_jobs(plan, sample, work, executor, ignore, lambda message: None, None)
        reader.check_unchanged()
    finally:
        reader.memo.flush()
    return {result.report.name: result.update for result in results}


def open_cache(plan: TransferPlan, options: RunOptions, warn: Callable[[str], None]) -> tuple[Store, InputReader]:
    """The store that the options ask for, and a reader of the plan's files with the digests remembered there.

    A cache folder that cannot be used is said and done without.
    """
    root = None
    if options.cache != "off":
        try:
            root = cache_root(options.cache)
        except FileError as error:
            warn(f"nothing is kept for later runs: {error.what} ({error.where}: {error.values})")
    if root is None:
        return NullStore(), InputReader(DigestMemo(None), plan.identities)
    store = Store(root)
    store.sweep()
    return store, InputReader(DigestMemo(root, trust=not options.verify_inputs), plan.identities)


def _layers_to_keep(plan: TransferPlan, store: Store, warn: Callable[[str], None]) -> frozenset[str]:
    limit = int(store.max_bytes * 0.9)
    keep = plan.layers_to_keep(limit)
    if len(keep) < len(plan.jobs) and not isinstance(store, NullStore):
        warn(
            f"the decompositions of all layers take {plan.cache_bytes / 1e9:.0f} GB and the cache holds "
            f"{store.max_bytes / 1e9:.0f} GB, so those of {len(keep)} of {len(plan.jobs)} layers are kept"
        )
    return keep


def _run_jobs(
    plan: TransferPlan,
    sample: Sequence[LayerJob],
    work: Worker,
    executor: Executor,
    on_event: Listener,
    warn: Callable[[str], None],
    log: RunLog | None,
) -> list[LayerResult]:
    total = plan.cost
    done = 0.0
    by_name: dict[str, LayerResult] = {}
    jobs = {job.name: job for job in (*sample, *plan.jobs)}  # the sample first: its weights have been read already
    for result in executor.run(list(jobs.values()), work):
        report = result.report
        job = jobs[report.name]
        for role, ref in references(job).items():  # for the jobs of other processes
            work.reader.remember(ref, result.digests[role])
        work.reader.drop(references(job).values())
        by_name[report.name] = result
        done += job.cost
        for message in result.warnings:
            warn(message)
        if log is not None:
            log.append({"event": "layer", **report.to_json()})
        on_event(LayerDone(report, len(by_name), len(plan.jobs), done, total))
    return [by_name[job.name] for job in plan.jobs]


def _open_log(path: Path | None, plan: TransferPlan, options: RunOptions) -> RunLog | None:
    place = log_path(path, options)
    if place is None:
        return None
    log = RunLog(place)
    columns = [asdict(column) for column in plan_columns(plan)]
    log.append({"event": "started", "schema": SCHEMA, "version": __version__, "columns": columns})
    return log


def check_kinship(plan: TransferPlan, sample: Sequence[LayerJob], reader: InputReader, *, rounding: bool) -> None:
    """Look at a few layers before the work, so that a wrong pair costs a second and not an hour.

    Args:
        sample: of `sample_for_kinship`.
        rounding: whether a drift that is mostly rounding is a reason to refuse.

    Raises:
        MismatchError: source and target are not versions of one model, or the target is of the other expert.
        NumericalError: the drift is mostly rounding.
    """
    ratios, shares = {}, {}
    for job in sample:
        ratios[job.name], weight = drift_share(job, reader)
        shares[job.name] = rounding_share(job, ratios[job.name], weight)
    if ratios and not plan.recipe.force:
        refuse_other_expert(plan, sample, ratios, reader)
        _refuse_unrelated(ratios, plan)
    refuse_rounding(sample, ratios, shares, force=plan.recipe.force or not rounding)


def _judge(layers: Sequence[LayerReport], plan: TransferPlan, warn: Callable[[str], None], *, rounding: bool) -> None:
    """What the finished layers say about the pair of models as a whole."""
    if all(layer.stats["exact_norm"] == 0.0 for layer in layers):
        warn("every update is zero, so the output does nothing; was the LoRA trained, and saved whole?")
    drifts = {layer.name: float(layer.stats["drift_rel"]) for layer in layers if "drift_rel" in layer.stats}
    if not drifts:
        return
    if not plan.recipe.force:
        _refuse_unrelated(drifts, plan)
    if all(value == 0.0 for value in drifts.values()):
        warn(
            "the target equals the source in every layer of the LoRA: there is nothing to transfer; was the same model "
            "named twice?"
        )
        return
    strangers = [name for name, drift in drifts.items() if drift > UNRELATED]
    if strangers:  # the pair is related as a whole, so one weight of it is not what it should be
        warn(
            f"in {len(strangers)} of {len(drifts)} layers the target has little to do with the source, e.g. "
            f"{strangers[0]} ({drifts[strangers[0]]:.3g} of its norm): a damaged weight, or one whose scale was lost; "
            "leave such layers out with --drop, or reuse them as they are with --layers"
        )
    shares = {layer.name: float(layer.stats.get("drift_rounding", 0.0)) for layer in layers}
    refuse_rounding(plan.jobs, drifts, shares, force=plan.recipe.force or not rounding)
    noise = [job for job in plan.jobs if shares[job.name] >= MOSTLY]
    if len(noise) > len(layers) // 2 or any(map(quantised, noise)):
        warn(
            f"in {len(noise)} of {len(layers)} layers the drift is mostly the rounding of the stored weights; "
            "use checkpoints of a finer dtype if there are any"
        )


def _refuse_unrelated(ratios: dict[str, float], plan: TransferPlan) -> None:
    ordered = sorted(ratios.values())
    middle = ordered[len(ordered) // 2]
    if middle > UNRELATED and plan.target is not None:
        worst = max(ratios, key=lambda name: ratios[name])
        raise MismatchError(
            "source and target do not look like versions of one model",
            where=f"{plan.source.path} and {plan.target.path}",
            values=f"the weights differ by {middle:.2f} of their own norm in the middle layer, {ratios[worst]:.2f} in "
            f"{worst}; a distilled model stays well below {UNRELATED}",
            fix="check that one was made from the other, or both from a third, or go on with --force",
        )


def _report(
    plan: TransferPlan, path: Path | None, results: list[LayerResult], warnings: list[str], seconds: float
) -> TransferReport:
    layers = tuple(result.report for result in results)
    kept = [layer.energy_kept for layer in layers]
    summary = Summary(
        method=plan.method,
        params=plan.params,
        amount=plan.recipe.amount,
        strength=plan.recipe.strength,
        scale=plan.recipe.scale,
        layers=len(layers),
        rank_in=plan.adapter.max_rank,
        rank_out=max(result.update.rank for result in results),
        rank_rule=plan.recipe.rank,
        energy_kept_min=min(kept),
        energy_kept_mean=sum(kept) / len(kept),
        energy_kept_total=energy_kept_in_total(layers),
        dtype=plan.dtype,
        to=plan.recipe.to,
        lora=str(plan.adapter.path),
        training=plan.adapter.training.to_json(),
        source=str(plan.source.path),
        source_title=plan.source.architecture.title,
        target=None if plan.target is None else str(plan.target.path),
        target_title=plan.source.architecture.title if plan.target is None else plan.target.architecture.title,
        source_lora=tuple(used_with(each, plan.recipe) for each in plan.source_added),
        target_lora=tuple(used_with(each, plan.recipe) for each in plan.added),
        extra_source=plan.extra_source,
        extra_target=plan.extra_target,
        cached_layers=sum(layer.cached for layer in layers),
        seconds=seconds,
    )
    return TransferReport(
        output=path,
        summary=summary,
        columns=tuple(column for column in plan_columns(plan) if any(_has(layer, column.key) for layer in layers)),
        layers=layers,
        passthrough=tuple(key for item in plan.passthrough for key in item.keys),
        dropped=plan.dropped,
        load=() if path is None else _how_to_load(path, plan, summary),
        warnings=tuple(warnings),
    )


def plan_columns(plan: TransferPlan) -> tuple[Column, ...]:
    """What the figures of the layers will mean."""
    return layer_columns(dict.fromkeys(job.method for job in plan.jobs))


def _has(layer: LayerReport, key: str) -> bool:
    return key in layer.stats or hasattr(layer, key)


def _how_to_load(path: Path, plan: TransferPlan, summary: Summary) -> tuple[str, ...]:
    ways = tuple(ways_to_load(path, plan.content, expert=plan.recipe.expert))
    return (*ways, *used_together(summary.target_lora, None if plan.target is None else plan.target.path))
