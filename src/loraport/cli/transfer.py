"""`loraport transfer`: the main job."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from loraport.cli import options
from loraport.cli.console import Console, error_document
from loraport.cli.flags import Given, command
from loraport.cli.outputs import output_file, output_name, warn_of_name
from loraport.engine.recipe import Recipe, RunOptions
from loraport.errors import Interrupted, LoraportError, UsageError

EXAMPLE = """Carry a LoRA over, and the same with more room for what the distillation took away:

    loraport transfer style.safetensors -s Wan2.1-T2V-1.3B/ -t FastWan2.1-T2V-1.3B/ -o style-fast.safetensors

    loraport transfer style.safetensors -s base.safetensors -t fast.pt --rank energy=0.99 -o style-fast.safetensors

The same command again resumes what was interrupted."""

Carry = Callable[[str, Path, Console], dict[str, Any]]
"""Works on one LoRA, writes one file, and returns the report as plain values."""


@command(Recipe, RunOptions)
def transfer(given: Given, console: Console, output: options.Output = None) -> None:
    """Carry LoRAs over from the model they were trained on to its distilled variant."""
    if output is None:
        raise UsageError("the output is not given", fix="name the file to write: -o FILE")
    carry = _transfer(given)
    if len(given.loras) == 1:
        console.document(carry(given.loras[0], output_file(output, given.loras[0]), console))
    else:
        _several(given.loras, output, carry, console)


def _transfer(given: Given) -> Carry:
    """Transfers with the settings that were given. Raises UsageError for those that make no sense."""
    recipes = {lora: given.recipe(lora) for lora in given.loras}
    run_options = given.make(RunOptions)
    from loraport.cli.progress import Progress
    from loraport.cli.summary import show_report
    from loraport.engine.plan import make_plan
    from loraport.engine.run import run

    def carry(lora: str, path: Path, console: Console) -> dict[str, Any]:
        with Progress(console) as progress:
            plan = make_plan(recipes[lora])
            report = run(plan, path, run_options, progress)
        show_report(report, plan, console, said=progress.warned)
        warn_of_name(path, console)
        return report.to_json()

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
            document = carry(lora, folder / name, inner)
            rows.append([name, "done", *_facts(document)])
            documents.append(document)
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


def _facts(document: dict) -> tuple[str, str, str]:
    """Layers, rank and energy kept."""
    facts = document["summary"]
    energy = f"{100 * facts['energy_kept_total']:.1f} %"
    return str(facts["layers"]), f"{facts['rank_in']} -> {facts['rank_out']}", energy
