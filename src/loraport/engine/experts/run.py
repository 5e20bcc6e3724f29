"""Both experts of Wan2.2 in one job: two transfers that are checked, carried out, written and reported together.

Each expert is a transfer of its own with a recipe of its own; what is here is what they have in common. Neither
output appears unless both are finished. Finished layers are kept one by one as always, so that the same command
resumes.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

from loraport.containers.names import EXPERTS, Expert
from loraport.engine.events import Event, Finished, LayerDone, Listener, PlanReady, Warned
from loraport.engine.executor import executor_for
from loraport.engine.experts.nearer import OTHER, distances, exchanged, nearer
from loraport.engine.experts.plan import ExpertsPlan, check_experts_outputs, naming, options_of
from loraport.engine.experts.report import ExpertsReport
from loraport.engine.job import LayerJob
from loraport.engine.kinship import check_kinship
from loraport.engine.options import RunOptions
from loraport.engine.plan import TransferPlan, sample_for_kinship
from loraport.engine.reading import InputReader
from loraport.engine.results import TransferReport
from loraport.engine.run import carried_out
from loraport.engine.surroundings import usual_torch
from loraport.files import atomic_paths
from loraport.store.digests import DigestMemo
from loraport.store.store import NullStore

_TARGETS = {"high": "--target", "low": "--target-low"}


@usual_torch()
def run_experts(
    plan: ExpertsPlan,
    outputs: Mapping[Expert, Path] | None,
    options: RunOptions,
    on_event: Listener,
) -> ExpertsReport:
    """Carry out a plan for both experts.

    Args:
        plan: of `make_experts_plan`.
        outputs: the file of each expert, such as `outputs_of` names them; None computes and reports only.
        options: how to use the machine. A run log that is named is written for each expert, named after it.
        on_event: told about every step, as of one run.

    Raises:
        MismatchError: a target was distilled from the other expert (unless forced).
        LoraportError: as `run`, with the expert named. Neither output is there then, and what stood under their names
            still does.
    """
    settings = {expert: options_of(expert, options) for expert in EXPERTS}
    check_experts_outputs(plan, outputs, options)
    executor_for(options)  # refuses a device that is not there
    drift, doubts = _compare(plan)
    for expert, one in plan.plans.items():
        with naming(expert), _looking(one) as (sample, reader):
            check_kinship(one, sample, reader, NullStore(), rounding=True)
    for message in (*plan.warnings, *doubts):
        on_event(Warned(message))
    reports: dict[Expert, TransferReport] = {}
    # The names are given before the runs end, so that whatever goes wrong is told in the log of each.
    with contextlib.ExitStack() as runs, contextlib.ExitStack() as files:
        temporaries: Mapping[Path, Path] = {}
        if outputs is not None:
            paths = [outputs[expert] for expert in EXPERTS]
            temporaries = files.enter_context(atomic_paths(paths, overwrite=options.overwrite))
        for expert, one in plan.plans.items():
            path = None if outputs is None else outputs[expert]
            temporary = None if path is None else temporaries[path]
            listener = _listener(plan, expert, on_event)
            with naming(expert):
                reports[expert] = runs.enter_context(
                    carried_out(one, path, settings[expert], listener, checked=True, temporary=temporary)
                )
    for report in reports.values():
        on_event(Finished(report))
    return ExpertsReport(reports, drift, (*plan.warnings, *doubts))


def _compare(plan: ExpertsPlan) -> tuple[dict[str, float], list[str]]:
    """How far each target is from each source on a few layers, and what speaks against the pairing.

    Raises:
        MismatchError: a target is clearly nearer to the other source (unless forced).
    """
    plans = plan.plans
    found: dict[str, dict[str, float]] = {}
    wrong: list[Expert] = []
    for expert, one in plans.items():
        if one.target is None:
            continue
        other = plans[OTHER[expert]].source
        with _looking(one) as (sample, reader):
            own = found[f"{expert} source, {expert} target"] = distances(sample, reader)
            crossed = found[f"{OTHER[expert]} source, {expert} target"] = distances(sample, reader, source=other)
        wrong += [expert] if nearer(crossed, own) else []
    drift = {name: median(ratios.values()) for name, ratios in found.items() if ratios}
    if not wrong:
        return drift, []
    refusal = exchanged(
        "the two targets are the wrong way round"
        if len(wrong) == 2
        else f"the target of the {wrong[0]}-noise expert was made from the other expert",
        " and ".join(str(one.target.path) for one in plans.values() if one.target is not None),
        found,
        "swap --target and --target-low (or --source and --source-low), or use --force to continue as is"
        if len(wrong) == 2
        else f"give the one made from the {wrong[0]}-noise source as {_TARGETS[wrong[0]]}, or use --force to "
        "continue as is",
    )
    if not all(one.recipe.force for one in plans.values()):
        raise refusal
    return drift, [f"{refusal.what}: {refusal.values}"]


@contextlib.contextmanager
def _looking(plan: TransferPlan) -> Iterator[tuple[list[LayerJob], InputReader]]:
    """A few layers and a reader of their weights, which are let go of afterwards."""
    sample, reader = sample_for_kinship(plan), InputReader(DigestMemo(None), plan.identities)
    yield sample, reader
    reader.drop(ref for job in sample for ref in job.refs.values())


def _listener(plan: ExpertsPlan, expert: Expert, on_event: Listener) -> Listener:
    """Passes the events of one expert's run on as those of the whole job."""
    layers, total = sum(len(one.jobs) for one in plan.plans.values()), plan.cost
    before = [] if expert == "high" else [plan.plans["high"]]
    jobs, cost = sum(len(one.jobs) for one in before), sum(one.cost for one in before)

    def listen(event: Event) -> None:
        if isinstance(event, LayerDone):
            event = LayerDone(event.layer, jobs + event.finished, layers, cost + event.done, total)
        elif isinstance(event, Warned):
            event = Warned(f"{expert} noise: {event.message}")
        elif isinstance(event, PlanReady) and before:
            return
        on_event(event)

    return listen
