"""`loraport analyze`: what distillation and LoRAs do to the weights."""

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

from loraport.cli.console import Console
from loraport.cli.flags import OF_A_LORA, Given, command
from loraport.cli.options import OUTPUT, argument, option, required
from loraport.engine.options import RunOptions
from loraport.engine.recipe import METHOD, Recipe
from loraport.errors import UsageError
from loraport.wording import count, share, size

if TYPE_CHECKING:
    from loraport.analysis.results import Measured, PairAnalysis

EXAMPLE = """See what a distillation did to a model, and where a LoRA meets it:

    loraport analyze style.safetensors --source Wan2.1-T2V-1.3B/ --target fast.safetensors -o analysis.html

Look at one kind of layer only with, say, --layers self_attn. If interrupted, run the same command again to resume."""

_CHOICE = Recipe.part(
    "source", "target", "source_lora", "target_lora", "nested_source", "nested_target", "strength", *OF_A_LORA,
)  # fmt: skip


@command(_CHOICE, RunOptions, without=("log",))
def analyze(
    given: Given,
    console: Console,
    loras: Annotated[list[str] | None, argument(
        "LORA",
            "LoRAs of the source, to analyze the layers they change. Without any, all linear layers are analyzed."
    )] = None,
    output: Annotated[Path | None, option(
        "--output", "-o", metavar="FILE", panel=OUTPUT,
        help="File to write: .html for a page with figures, .json for all numbers.",
    )] = None,
    layers: Annotated[str | None, option(
        "--layers", metavar="REGEX", panel=METHOD, help="Analyze only layers whose names match."
    )] = None,
) -> None:  # fmt: skip
    """Show what a distillation did to the weights and what LoRAs do there, beside null models."""
    from loraport.analysis.plan import make_analysis_plan
    from loraport.cli.progress import Progress
    from loraport.writable import check_output

    choice, options = given.make(_CHOICE).values(), given.make(RunOptions)
    output = required(output, "output", "name the file to write: -o analysis.html")
    ending = output.suffix.lower()
    if ending not in (".html", ".json"):
        raise UsageError(
            "the name of the output ends in neither .html nor .json",
            values=str(output),
            fix="end the name in .html or .json",
        )
    plan = make_analysis_plan(loras or [], choice | {"layers": layers})
    check_output(output, [("input", file) for file in plan.identities], overwrite=options.overwrite)
    with Progress(console) as progress:
        progress.planned(count(len(plan.jobs), "layer"))
        from loraport.analysis.run import run_analysis  # loads torch, after all refusals

        found = run_analysis(plan, options, progress)
    if ending == ".html":
        from loraport.report.analysis_page import write_analysis_page

        write_analysis_page(output, found)
    else:
        found.write(output)
    console.result(*_summary(found), f"  output    {output}  ({size(output.stat().st_size)})")
    if console.verbose:
        rows = [
            [
                x.name,
                share(x.drift.relative.value),
                _beside([x.drift.rigidity]),
                _beside([x.drift.head_concentration]),
            ]
            for x in found.layers
        ]
        console.table(["layer", "drift", "rigidity (null)", "head concentration (null)"], rows)
    console.document(found.to_json())


def _summary(found: "PairAnalysis") -> list[str]:
    """Medians over the layers, each beside that of its null model."""
    drifts = [layer.drift for layer in found.layers]
    lines = [
        f"{count(len(found.layers), 'layer')} of {found.source_title}; medians, in brackets those of a random "
        "update of the same norm",
        f"  drift     {share(median(each.relative.value for each in drifts))} of the weight",
        f"            rigidity {_beside([each.rigidity for each in drifts])}, "
        f"head concentration {_beside([each.head_concentration for each in drifts])}",
    ]
    for lora in found.loras:
        mine = [each for layer in found.layers for each in layer.loras if each.lora == lora.label]
        if mine:
            lines += [
                f"  {lora.label}: {share(median(each.update.relative.value for each in mine))} of the weight in "
                f"{count(len(mine), 'layer')}",
                f"            rigidity {_beside([each.update.rigidity for each in mine])}, "
                f"head concentration {_beside([each.update.head_concentration for each in mine])}",
                f"            cosine with the drift {_beside([each.meeting.cosine for each in mine])}, "
                f"interaction in the head {_beside([each.meeting.interaction_in_head for each in mine])}",
            ]
    return lines


def _beside(figures: "list[Measured]") -> str:
    return f"{median(x.value for x in figures):.3g} ({median(x.gaussian for x in figures):.3g})"
