"""`loraport transfer`: the main job."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraport.cli import options, text
from loraport.cli.console import Console
from loraport.cli.experts import Pair, carry_experts, pair_of
from loraport.cli.flags import Given, command
from loraport.cli.options import option, required
from loraport.cli.outputs import asked_loras, output_file, warn_of_name, write_beside
from loraport.engine.experts.asked import Experts, outputs_of
from loraport.engine.many.asked import EXISTS, Asked, check_options, check_skip, holds_many
from loraport.engine.options import RunOptions
from loraport.engine.recipe import OUTPUT, Recipe
from loraport.errors import Interrupted, LoraportError, UsageError
from loraport.wording import count, share

if TYPE_CHECKING:
    from loraport.engine.experts.report import ExpertsReport
    from loraport.engine.many.report import Outcome
    from loraport.engine.results import TransferReport

EXAMPLE = """Transfer a LoRA, then again with a larger rank, which has more room for what the distillation took away:

    loraport transfer style.safetensors -s Wan2.1-T2V-1.3B/ -t FastWan2.1-T2V-1.3B/ -o style-fast.safetensors

    loraport transfer style.safetensors -s base.safetensors -t fast.pt --rank energy=0.99 -o style-fast.safetensors

Transfer a folder of LoRAs and its subfolders. Each layer of the two models is read and decomposed once for all of them:

    loraport transfer loras/ --recursive --skip-existing -s base.safetensors -t fast.pt -o loras-fast/

Transfer both experts of Wan2.2 at once, into style-fast_high_noise.safetensors and style-fast_low_noise.safetensors:

    loraport transfer style_high.safetensors --lora-low style_low.safetensors -s Wan2.2-T2V-A14B/ -t fast/ -o style-fast.safetensors

If interrupted, run the same command again to resume."""  # noqa: E501

Page = Annotated[Path | None, option(
    "--report", metavar="FILE", panel=OUTPUT,
    help="Also write an HTML page with settings, totals and every layer (one LoRA only).",
)]  # fmt: skip
Card = Annotated[Path | None, option(
    "--card", metavar="FILE", panel=OUTPUT,
    help="Also write a Markdown model card: what was done, how to use it, which licences apply (one LoRA only).",
)]  # fmt: skip
_LATER = {"page": "--report, and run loraport report FOLDER afterwards to make the pages", "card": "--card"}
Beside = Mapping[str, Path]
"""What is also written about a LoRA: "page", "card" -> where."""


@command(Recipe, Experts, RunOptions)
def transfer(
    given: Given,
    console: Console,
    output: options.Output = None,
    page: Page = None,
    card: Card = None,
    recursive: options.Recursive = False,
    skip_existing: options.SkipExisting = False,
) -> None:
    """Transfer LoRAs from the model they were trained on to another of its family, such as a distilled variant."""
    output = required(output, "output", "name the file to write, or a folder for several LoRAs: -o FILE")
    check_skip(given.make(RunOptions), skip_existing=skip_existing)
    beside = {what: file for what, file in (("page", page), ("card", card)) if file is not None}
    if len(given.loras) > 1 or holds_many(given.loras[0], recursive=recursive):
        _many(given, Path(output), beside, console, recursive=recursive, skip_existing=skip_existing)
    else:
        _one(given, output_file(output, given.loras[0]), beside, console, skip_existing=skip_existing)


def _one(given: Given, path: Path, beside: Beside, console: Console, *, skip_existing: bool) -> None:
    """One LoRA, or both experts of one."""
    (lora,), run_options = given.loras, given.make(RunOptions)
    pair = pair_of(given, lora)
    if skip_existing and _is_made(path, pair):
        console.result(f"{path}: {EXISTS}")
        console.document({"lora": lora, "output": str(path), "skipped": EXISTS})
    elif pair is not None:
        report = carry_experts(pair, path, run_options, console, beside=beside, read=list(given.read()))
        console.document(report.to_json())
    else:
        console.document(_transfer(given, lora, path, beside, run_options, console).to_json())


def _is_made(output: Path, pair: Pair | None) -> bool:
    """Whether the output is there, or those of both experts."""
    paths = [output] if pair is None else outputs_of(output).values()
    return all(path.exists() for path in paths)


def _transfer(
    given: Given, lora: str, path: Path, beside: Beside, run_options: RunOptions, console: Console
) -> "TransferReport":
    recipe = given.recipe(lora)
    from loraport.cli.progress import Progress
    from loraport.engine.output import check_outputs, log_path
    from loraport.engine.plan import make_plan

    with Progress(console) as progress:
        plan = make_plan(recipe)
        check_outputs(path, plan, run_options, given.read(), beside)
        progress.planned(count(len(plan.jobs), "layer"))
        from loraport.engine.run import run  # loads torch, after all refusals

        report = run(plan, path, run_options, progress)
    from loraport.cli.summary import show_report

    write_beside(beside, report.to_json())
    show_report(report, plan, console, said=progress.warned, beside=beside, log=log_path(path, run_options))
    warn_of_name(path, console)
    return report


def _many(
    given: Given, folder: Path, beside: Beside, console: Console, *, recursive: bool, skip_existing: bool
) -> None:
    """Many LoRAs into one folder. One that fails does not stop the others; the first failure sets the code."""
    asked = asked_loras(given.loras, folder, console, recursive=recursive)
    if beside:
        what = next(iter(beside))
        raise UsageError(
            f"a {what} describes one LoRA",
            values=f"{len(asked)} LoRAs",
            fix="leave out " + ", and ".join(_LATER[what] for what in sorted(beside)),
        )
    run_options = given.make(RunOptions)
    from loraport.cli.progress import Progress
    from loraport.engine.many.job import carry_many
    from loraport.engine.many.report import Outcome

    check_options(run_options)
    given = replace(given, loras=tuple(each.lora for each in asked))
    rows: dict[Asked, Outcome | ExpertsReport] = {}
    pairs: dict[Asked, Pair | None] = {}
    failures: list[LoraportError] = []
    for each in asked:
        try:
            pairs[each] = pair_of(given, each.lora)
        except LoraportError as error:
            rows[each] = Outcome(each.lora, each.output, error=error)
            failures.append(error)
    if not pairs and all(isinstance(error, UsageError) for error in failures):
        raise failures[0]  # what is wrong is none of the LoRAs
    plain = [each for each, pair in pairs.items() if pair is None]
    if plain:
        with Progress(console) as progress:
            report = carry_many(
                plain, given.recipe, folder, run_options, progress, skip_existing=skip_existing, also=given.read()
            )
        rows |= dict(zip(plain, report.outcomes, strict=True))
    both = {each: pair for each, pair in pairs.items() if pair is not None}
    rows |= _pairs(both, list(given.read()), run_options, console, skip_existing=skip_existing)
    _tell({each: rows[each] for each in asked}, folder, console)


def _pairs(
    pairs: Mapping[Asked, Pair],
    read: Sequence[tuple[str, Path]],
    run_options: RunOptions,
    console: Console,
    *,
    skip_existing: bool,
) -> "dict[Asked, Outcome | ExpertsReport]":
    """What becomes of LoRAs for both experts, one after the other. The two files of a pair are one."""
    from loraport.engine.many.report import Outcome

    rows: dict[Asked, Outcome | ExpertsReport] = {}
    inner = Console(quiet=True) if console.as_json else console
    done: dict[object, Asked] = {}
    for each, pair in pairs.items():
        first = done.setdefault((pair["high"].lora, pair["low"].lora), each)
        if first is not each:
            rows[each] = Outcome(each.lora, each.output, skipped=f"transferred with {first.lora}")
        elif skip_existing and _is_made(each.output, pair):
            rows[each] = Outcome(each.lora, each.output, skipped=EXISTS)
        else:
            try:
                rows[each] = carry_experts(pair, each.output, run_options, inner, beside={}, read=read)
            except Interrupted:
                raise
            except LoraportError as error:
                rows[each] = Outcome(each.lora, each.output, error=error)
    return rows


def _tell(rows: "Mapping[Asked, Outcome | ExpertsReport]", folder: Path, console: Console) -> None:
    """The table of what became of each LoRA, the errors in full, and the exit code."""
    from loraport.cli.summary import show_layers
    from loraport.engine.many.report import Outcome

    cells: list[list[str]] = []
    failures: list[LoraportError] = []
    for asked, found in rows.items():
        name = str(asked.output.relative_to(folder).with_name(Path(asked.lora).name))
        if not isinstance(found, Outcome):
            cells += [_done(name, report) for report in found.reports.values()]
        elif found.report is not None:
            cells.append(_done(name, found.report))
            if console.verbose:
                console.result(name)
                show_layers(found.report, console)
        elif found.error is not None:
            failures.append(found.error)
            cells.append([name, "failed", "", "", "", text.reason(found.error)])
        else:
            cells.append([name, "skipped", "", "", "", found.skipped or ""])
    console.errors(failures)
    console.table(["LoRA", "outcome", "layers", "rank", "energy kept", "output, or why there is none"], cells)
    skipped = sum(isinstance(found, Outcome) and found.skipped is not None for found in rows.values())
    console.result(_in_short(len(rows), skipped, len(failures), folder))
    reports = [found.to_json() for found in rows.values()]
    console.document({"reports": reports, "failed": len(failures), "skipped": skipped})
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _in_short(loras: int, skipped: int, failed: int, folder: Path) -> str:
    """The last line of a job: how many outputs there are now, and what became of the rest."""
    parts = [f"{loras - skipped - failed} of {count(loras, 'LoRA')} transferred into {folder}"]
    parts += [f"{skipped} skipped"] if skipped else []
    parts += [f"{failed} failed: the table says why, and the errors above say what to do"] if failed else []
    return ", ".join(parts)


def _done(name: str, report: "TransferReport") -> list[str]:
    facts = report.summary
    rank = f"{facts.rank_in} -> {facts.rank_out}"
    return [name, "done", str(facts.layers), rank, share(facts.energy_kept_total), str(report.output)]
