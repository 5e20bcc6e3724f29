"""`loraport transfer`: the main job."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from loraport.cli import options, text
from loraport.cli.console import Console, error_document
from loraport.cli.experts import carry_experts, pair_of
from loraport.cli.flags import Given, command
from loraport.cli.outputs import output_file, output_name, warn_of_name
from loraport.engine.experts import Experts
from loraport.engine.recipe import OUTPUT, Recipe, RunOptions
from loraport.engine.results import TransferReport
from loraport.errors import Interrupted, LoraportError, UsageError
from loraport.writable import check_apart, check_output

if TYPE_CHECKING:
    from loraport.engine.experts_run import ExpertsReport

EXAMPLE = """Carry a LoRA over, and the same with more room for what the distillation took away:

    loraport transfer style.safetensors -s Wan2.1-T2V-1.3B/ -t FastWan2.1-T2V-1.3B/ -o style-fast.safetensors

    loraport transfer style.safetensors -s base.safetensors -t fast.pt --rank energy=0.99 -o style-fast.safetensors

Both experts of Wan2.2 at once, which writes style-fast_high_noise.safetensors and style-fast_low_noise.safetensors:

    loraport transfer style_high.safetensors --lora-low style_low.safetensors -s Wan2.2-T2V-A14B/ -t fast/ -o style-fast.safetensors

The same command again resumes what was interrupted."""  # noqa: E501

Carry = Callable[[str, Path, Console], "TransferReport | ExpertsReport"]
"""Works on one LoRA and writes its file, or those of both experts."""

Page = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads the annotation at run time on every Python
    typer.Option(
        "--report", metavar="FILE", show_default=False, rich_help_panel=OUTPUT,
        help="Also write a page about it: settings, totals, layer by layer (HTML, for one LoRA).",
    ),
]  # fmt: skip


@command(Recipe, Experts, RunOptions)
def transfer(given: Given, console: Console, output: options.Output = None, page: Page = None) -> None:
    """Carry LoRAs over from the model they were trained on to its distilled variant, or to any other of its family."""
    if output is None:
        raise UsageError("the output is not given", fix="name the file to write: -o FILE")
    if page is not None and len(given.loras) > 1:
        raise UsageError("a page is about one LoRA", values=f"{len(given.loras)} LoRAs", fix="leave out --report")
    carry = _transfer(given, page)
    if len(given.loras) == 1:
        console.document(carry(given.loras[0], output_file(output, given.loras[0]), console).to_json())
    else:
        _several(given.loras, output, carry, console)


def _transfer(given: Given, page: Path | None) -> Carry:
    """Transfers with the settings that were given. Raises UsageError for those that make no sense."""
    pairs = {lora: pair_of(given, lora) for lora in given.loras}
    recipes = {lora: given.recipe(lora) for lora, pair in pairs.items() if pair is None}
    run_options = given.make(RunOptions)
    from loraport.cli.progress import Progress
    from loraport.cli.summary import show_report
    from loraport.engine.output import check_outputs, input_files, log_path
    from loraport.engine.plan import make_plan
    from loraport.engine.run import run
    from loraport.report import write_page

    def carry(lora: str, path: Path, console: Console) -> "TransferReport | ExpertsReport":
        pair = pairs[lora]
        if pair is not None:
            return carry_experts(pair, path, run_options, console, page=page, read=list(given.read()))
        with Progress(console) as progress:
            plan = make_plan(recipes[lora])
            check_outputs(path, plan, run_options, given.read())
            if page is not None:
                check_output(page, [*input_files(plan), *given.read()], overwrite=run_options.overwrite, what="page")
                check_apart([("output", path), ("page", page)])
            report = run(plan, path, run_options, progress)
        if page is not None:
            write_page(page, report.to_json())
        show_report(report, plan, console, said=progress.warned, page=page, log=log_path(path, run_options))
        warn_of_name(path, console)
        return report

    return carry


def _several(loras: tuple[str, ...], folder: Path, carry: Carry, console: Console) -> None:
    """Several LoRAs into one folder. One that fails does not stop the others; the first failure sets the code."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("several LoRAs need a folder to be written to", values=str(folder), fix="-o FOLDER")
    names = [output_name(lora) for lora in loras]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            "two LoRAs would get the same output name", values=", ".join(twice), fix="transfer them one by one"
        )
    inner = Console(verbose=console.verbose, quiet=True) if console.as_json else console
    rows: list[list[str]] = []
    documents: list[dict[str, Any]] = []
    failures: list[LoraportError] = []
    for lora, name in zip(loras, names, strict=True):
        try:
            report = carry(lora, folder / name, inner)
            for one in [report] if isinstance(report, TransferReport) else report.reports.values():
                facts = one.summary
                rank = f"{facts.rank_in} -> {facts.rank_out}"
                written = name if one.output is None else one.output.name
                rows.append([written, "done", str(facts.layers), rank, text.share(facts.energy_kept_total)])
            documents.append(report.to_json())
        except Interrupted:
            raise
        except LoraportError as error:
            if not console.as_json:
                console.error(error)
            rows.append([name, "failed", "", "", ""])
            documents.append({"lora": lora, "error": error_document(error)})
            failures.append(error)
    console.table(["LoRA", "outcome", "layers", "rank", "energy kept"], rows)
    console.document({"reports": documents, "failed": len(failures)})
    if failures:
        raise typer.Exit(failures[0].exit_code)
