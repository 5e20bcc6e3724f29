"""`loraport resize`: another rank for a LoRA."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraport.cli import text
from loraport.cli.console import Console
from loraport.cli.flags import Given, command
from loraport.cli.options import OUTPUT, SourceModel
from loraport.cli.outputs import output_file, warn_of_name
from loraport.engine.recipe import Recipe, RunOptions
from loraport.resizing.rule import Amount

if TYPE_CHECKING:
    from loraport.resizing.cut import Resized

EXAMPLE = """The best 40 MB of a LoRA, and the same at rank 16:

    loraport resize style.safetensors --max-size 40MB -o style-40.safetensors

    loraport resize style.safetensors --rank 16 -o style-16.safetensors"""

_CHOICE = Recipe.part("dtype", "scale", "expert", "adapter", "drop", "allow_partial", "architecture")
MACHINE = RunOptions.part("device", "workers", "executor", "max_memory", "cache", "verify_inputs", "overwrite")


@command(_CHOICE, Amount, MACHINE)
def resize(
    given: Given,
    console: Console,
    lora: Annotated[str, typer.Argument(metavar="LORA", help="The LoRA file, of any kind.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", rich_help_panel=OUTPUT, help="The file to write.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="PROFILE", rich_help_panel=OUTPUT, help="Names in the output, as for transfer.",
        ),
    ] = "same-as-input",
    model: SourceModel = None,
) -> None:  # fmt: skip
    """Write a LoRA at another rank: one for all, by the share that is kept, or what a size of the file is worth."""
    amount, options = given.make(Amount), given.make(RunOptions)
    choice = given.make(_CHOICE).values()
    from loraport.cli.progress import Progress
    from loraport.models.checkpoint import open_checkpoint
    from loraport.resizing.resize import resize_adapter

    with Progress(console) as progress:
        done = resize_adapter(
            lora,
            output_file(output, lora),
            amount,
            to=to,
            model=None
            if model is None
            else open_checkpoint(model, expert=choice["expert"], architecture=choice["architecture"]),
            options=options,
            on_event=progress,
            **choice,
        )
    show(done, "resized", console)


def show(done: "Resized", what: str, console: Console) -> None:
    """Say what was written."""
    ranks = [layer.rank_out for layer in done.layers]
    spread = f"{min(ranks)} to {max(ranks)}" if len(set(ranks)) > 1 else str(max(ranks, default=0))
    lines = [
        f"{what} {text.count(len(done.layers), 'weight')} ({done.rule})",
        f"  rank      {spread}",
        f"  energy    {text.share(done.energy_kept)} of the squared norm is kept",
    ]
    if done.left_out:
        lines.append(f"  without   {text.count(len(done.left_out), 'weight')}: {text.listing(done.left_out)}")
    if done.passthrough:
        lines.append(f"  as it is  {text.count(len(done.passthrough), 'change')} of biases, norms and the like")
    lines.append(f"  output    {done.output}  ({text.size(done.size)}, written and read back)")
    lines += [f"  {'load it' if way == done.load[0] else '':<9} {way}" for way in done.load]
    console.result(*lines)
    if console.verbose:
        rows = [[x.name, str(x.rank_in), str(x.rank_out), text.share(x.energy_kept)] for x in done.layers]
        console.table(["weight", "rank in", "rank out", "energy kept"], rows)
    warn_of_name(done.output, console)
    console.document(done.to_json())
