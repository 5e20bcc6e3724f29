"""A plan carried out: jobs through an executor, results into one file, one report.

The output appears under its name only when everything has succeeded; the run log beside it grows line by
line, so that there is something to read after a failure too.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from loraport.adapters.render import fill_adapter, write_adapter
from loraport.core.lowrank import LowRank
from loraport.engine.events import Event, Finished, LayerDone, Listener, PlanReady, Warnings, ignore
from loraport.engine.executor import Executor, executor_for
from loraport.engine.job import LayerJob
from loraport.engine.kinship import check_kinship, judge_pair
from loraport.engine.options import RunOptions
from loraport.engine.output import check_outputs, render_output
from loraport.engine.overlap import overlapped
from loraport.engine.plan import TransferPlan, sample_for_kinship
from loraport.engine.reading import InputReader
from loraport.engine.reporting import make_report
from loraport.engine.results import TransferReport
from loraport.engine.room import short_of_room
from loraport.engine.run_cache import layers_worth_keeping, open_cache
from loraport.engine.run_log import TransferLog
from loraport.engine.surroundings import usual_torch
from loraport.engine.target import twins
from loraport.engine.worker import LayerResult, Worker
from loraport.partial import remove_abandoned

DEFAULTS = RunOptions()


@usual_torch()
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
        plan: what is to be done.
        output: the file to write; None computes and reports only.
        options: how to use the machine.
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


@contextlib.contextmanager
def carried_out(
    plan: TransferPlan,
    output: Path | str | None,
    options: RunOptions,
    on_event: Listener,
    *,
    measured: bool = False,
    checked: bool = False,
    temporary: Path | None = None,
) -> Iterator[TransferReport]:
    """A plan carried out, as `run` does. The block around it may still fail the run, which the log then tells.

    Args:
        plan, output, options, on_event, measured: as for `run`.
        checked: `check_kinship` found nothing to say against the pair of models.
        temporary: where the output is written, for whoever gives it its name; by default it gets that at once.

    Raises:
        LoraportError: as `run`.
    """
    began = time.perf_counter()
    path = None if output is None else Path(output)
    check_outputs(path, plan, options)
    warn = Warnings(on_event)
    on_event(PlanReady(plan))
    for message in plan.warnings:
        warn(message)
    log = TransferLog()

    def tell(event: Event) -> None:
        """Of the machines that do the work."""
        log.machines([event])
        on_event(event)

    executor = executor_for(options, tell)
    for message in short_of_room(
        [plan], None if path is None else path.absolute().parent, options, executor, twice=False
    ):
        warn(message)
    store, reader = open_cache(plan.identities, options, warn, executor)
    sample = sample_for_kinship(plan)
    if not checked:
        check_kinship(plan, sample, reader, store, rounding=not measured)
    work = Worker(store, reader, layers_worth_keeping(plan.jobs, options, store, reader, executor, warn))
    log.begin(path, plan, options)  # only now: a run that is refused leaves nothing, and no earlier log is lost
    if path is not None:
        remove_abandoned(path)
    try:
        results = _run_jobs(plan, sample, work, executor, on_event, warn, log)
        judge(plan, results, warn, measured=measured)
        report = make_report(plan, path, results, warn.told, time.perf_counter() - began)
        if path is not None:
            write_output(plan, path, results, report, reader, options, temporary)
        del results  # while the block around it goes on
        yield report
        log.finished(report)
    except BaseException as error:
        store.sweep()  # workers may have been ended in the middle of writing
        log.failed(error)
        raise
    finally:
        reader.memo.flush()
        log.close()


def judge(
    plan: TransferPlan, results: Sequence[LayerResult], warn: Callable[[str], None], *, measured: bool = False
) -> None:
    """What the finished layers say about the models that were named. Raises MismatchError, NumericalError as `run`."""
    judge_pair([result.report for result in results], plan, warn, rounding=not measured)
    for message in twins(plan.added, [result.digests for result in results]):
        warn(message)


def write_output(
    plan: TransferPlan,
    path: Path,
    results: list[LayerResult],
    report: TransferReport,
    reader: InputReader,
    options: RunOptions,
    temporary: Path | None = None,
) -> None:
    """Render the finished layers and write them, if no input changed meanwhile.

    Args:
        plan: that was carried out.
        path: the file.
        results: of all its layers.
        report: about them.
        reader: of the plan's files.
        options: whether a file of this name may be replaced.
        temporary: as for `carried_out`.

    Raises:
        FileError: an input changed, or the output cannot be written. NumericalError: as `run`.
    """
    tensors, metadata = render_output(plan, results, report)
    reader.check_unchanged()
    if temporary is None:
        write_adapter(path, tensors, metadata, overwrite=options.overwrite)
    else:
        fill_adapter(temporary, path, tensors, metadata)


@usual_torch()
def compute(plan: TransferPlan, options: RunOptions) -> dict[str, LowRank]:
    """Every layer's new update by canonical name, in memory: what `run` would write, without file, log or report.

    Raises:
        UsageError, MismatchError, NumericalError: as `run`.
    """

    def silent(message: str) -> None:
        """Nobody is told."""

    executor = executor_for(options)
    store, reader = open_cache(plan.identities, options, silent, executor)
    sample = sample_for_kinship(plan)
    check_kinship(plan, sample, reader, store, rounding=False)
    work = Worker(store, reader, layers_worth_keeping(plan.jobs, options, store, reader, executor, silent))
    try:
        results = _run_jobs(plan, sample, work, executor, ignore, silent, TransferLog())
        reader.check_unchanged()
    finally:
        reader.memo.flush()
    return {result.report.name: result.update for result in results}


def _run_jobs(
    plan: TransferPlan,
    sample: Sequence[LayerJob],
    work: Worker,
    executor: Executor,
    on_event: Listener,
    warn: Callable[[str], None],
    log: TransferLog,
) -> list[LayerResult]:
    total = plan.cost
    done = 0.0
    by_name: dict[str, LayerResult] = {}
    # The sample first: its weights have been read already. Then the largest, so that none of them is left for the end,
    # and memory that one of them had serves the next.
    by_size = sorted(plan.jobs, key=lambda job: -job.shape[0] * job.shape[1])
    jobs = {job.name: job for job in (*sample, *by_size)}
    with overlapped(work, list(jobs.values()), executor) as busy:
        for result in executor.run(list(jobs.values()), busy):
            report = result.report
            job = jobs[report.name]
            work.reader.drop(job.refs.values())
            by_name[report.name] = result
            done += job.cost
            for message in result.warnings:
                warn(message)
            log.layer(report)
            on_event(LayerDone(report, len(by_name), len(plan.jobs), done, total))
    for problem in work.store.take_problems():
        warn(problem.message)
    return [by_name[job.name] for job in plan.jobs]
