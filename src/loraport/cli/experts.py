"""Both experts of Wan2.2 in one command: what is shared by `transfer` and `plan`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraport.cli import text
from loraport.cli.console import Console
from loraport.cli.flags import Given
from loraport.cli.outputs import warn_of_name, write_beside
from loraport.containers.names import Expert, named_for
from loraport.engine.experts.asked import Experts, outputs_of, recipes_of
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe
from loraport.errors import UsageError
from loraport.wording import count

if TYPE_CHECKING:
    from loraport.engine.experts.report import ExpertsReport

Pair = Mapping[Expert, Recipe]


def pair_of(given: Given, lora: str) -> Pair | None:
    """The recipes of both experts where the command is about both, else None. Raises UsageError, FileError."""
    experts = given.make(Experts)
    if experts.expert in ("high", "low"):
        return None
    plain = replace(given, values={name: value for name, value in given.values.items() if name != "expert"})
    recipe = plain.recipe(lora)
    from loraport.engine.experts.plan import both_are_meant

    if not both_are_meant(lora, recipe.source, experts):
        return None
    if experts.lora_low is not None and len(given.loras) > 1:
        raise UsageError(
            "--lora-low goes with one LoRA", values=f"{len(given.loras)} LoRAs", fix="transfer one pair at a time"
        )
    return recipes_of(recipe, experts)


def carry_experts(
    pair: Pair,
    path: Path,
    options: RunOptions,
    console: Console,
    *,
    beside: Mapping[str, Path],
    read: Sequence[tuple[str, Path]],
) -> "ExpertsReport":
    """Transfer for both experts and tell about it.

    Args:
        pair: the recipes.
        path: after which the two outputs are named.
        options: how to use the machine.
        console: where to tell.
        beside: after which the pages and cards about them are named.
        read: further files that the command reads, as (role, path).

    Raises:
        LoraportError: as `run_experts`.
    """
    from loraport.cli.progress import Progress
    from loraport.engine.experts.plan import check_experts_outputs, make_experts_plan

    outputs = outputs_of(path)
    files = {expert: {what: named_for(file, expert) for what, file in beside.items()} for expert in outputs}
    with Progress(console) as progress:
        plan = make_experts_plan(pair)
        check_experts_outputs(plan, outputs, options, read, files)
        progress.planned(count(sum(len(one.jobs) for one in plan.plans.values()), "layer"))
        from loraport.engine.experts.run import run_experts  # loads torch, after all refusals

        report = run_experts(plan, outputs, options, progress)
    from loraport.cli.summary import show_report

    for expert, one in report.reports.items():
        console.result(f"{expert}-noise expert")
        write_beside(files[expert], one.to_json())
        said = [message.removeprefix(f"{expert} noise: ") for message in progress.warned]
        show_report(one, plan.plans[expert], console, said=said, beside=files[expert], log=None)
    console.result(
        "both experts",
        f"  time      {text.duration(sum(one.summary.seconds for one in report.reports.values()))}",
        *(f"  drift     {share:.3f} of the source's norm, {name}" for name, share in report.drift.items()),
    )
    for file in outputs.values():
        warn_of_name(file, console)
    return report
