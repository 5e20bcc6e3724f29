"""`loraport intervene`: checkpoints with a part of the drift taken away, or made stronger."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraport.cli.console import Console
from loraport.cli.flags import Given, command
from loraport.cli.options import OUTPUT, option
from loraport.cli.plain_help import Command, Group
from loraport.containers.dtypes import PlainFormat
from loraport.engine.options import RunOptions
from loraport.engine.recipe import METHOD, Recipe
from loraport.wording import count, percent, size

if TYPE_CHECKING:
    from loraport.merging.run import MergeReport

EXAMPLE = """How much of a distilled model is outside of the dominant directions of its drift? Take it away and look:

    loraport intervene remove-drift --source Wan2.1-T2V-1.3B/ --target fast.safetensors -o without.safetensors

Its strongest part twice as strong:

    loraport intervene amplify-head --source Wan2.1-T2V-1.3B/ --target fast.safetensors -o stronger.safetensors"""

app = typer.Typer(
    cls=Group,
    help="Write a target with a part of its drift taken away, or made stronger.",
    epilog=EXAMPLE,
    add_completion=False,
)

_CHOICE = Recipe.part("source", "target", "nested_source", "nested_target", "architecture", "expert")
_MACHINE = RunOptions.part("cache", "verify_inputs", "overwrite")
Output = Annotated[Path, option(
    "--output", "-o", metavar="FILE|FOLDER", panel=OUTPUT,
    help="The file to write; the folder, where the target consists of several files.",
)]  # fmt: skip
Layers = Annotated[str | None, option(
    "--layers", metavar="REGEX", panel=METHOD, help="Change layers alone whose names match."
)]  # fmt: skip
Dequantize = Annotated[PlainFormat | None, option(
    "--dequantize", panel=OUTPUT,
    help="Also change quantised weights, which become plain numbers of this format.",
)]  # fmt: skip
Requantize = Annotated[bool, option(
    "--requantize", panel=OUTPUT,
    help="Also change weights that are stored in 8 bits, which rounds them anew; the loss is told.",
)]  # fmt: skip


@app.command("remove-drift", cls=Command, epilog=EXAMPLE)
@command(_CHOICE, _MACHINE)
def remove_drift(
    given: Given,
    console: Console,
    output: Output,
    quantile: Annotated[float, option(
        "--quantile", metavar="0..1", panel=METHOD, default=True,
        help="Of the densities of the head's directions: from it on one is dominant, and the drift in it stays.",
    )] = 0.5,
    layers: Layers = None,
    requantize: Requantize = False,
    dequantize: Dequantize = None,
) -> None:  # fmt: skip
    """Take the drift away but for its dominant directions."""
    from loraport.analysis import intervening
    from loraport.cli.progress import Progress

    choice, options = given.make(_CHOICE).values(), given.make(RunOptions)
    with Progress(console) as progress:
        done = intervening.remove_drift(
            **choice, output=output, quantile=quantile, layers=layers, requantize=requantize, dequantize=dequantize,
            options=options, on_event=progress,
        )  # fmt: skip
    _show(done, console)


@app.command("amplify-head", cls=Command, epilog=EXAMPLE)
@command(_CHOICE, _MACHINE)
def amplify_head(
    given: Given,
    console: Console,
    output: Output,
    share: Annotated[float, option(
        "--share", metavar="0..1", panel=METHOD, default=True,
        help="Of the entries between directions of the head, those where the drift is largest.",
    )] = 0.05,
    factor: Annotated[float, option(
        "--factor", metavar="X", panel=METHOD, default=True, help="What they are multiplied by; 0 takes them out."
    )] = 2.0,
    layers: Layers = None,
    requantize: Requantize = False,
    dequantize: Dequantize = None,
) -> None:  # fmt: skip
    """Make the drift stronger where it is strongest, within the head."""
    from loraport.analysis import intervening
    from loraport.cli.progress import Progress

    choice, options = given.make(_CHOICE).values(), given.make(RunOptions)
    with Progress(console) as progress:
        done = intervening.amplify_head(
            **choice, output=output, share=share, factor=factor, layers=layers, requantize=requantize,
            dequantize=dequantize, options=options, on_event=progress,
        )  # fmt: skip
    _show(done, console)


def _show(done: "MergeReport", console: Console) -> None:
    written = sum(file.stat().st_size for file in done.files)
    console.result(
        f"changed {count(done.tensors, 'tensor')}",
        f"  untouched {count(done.untouched, 'tensor')}, bit for bit",
        f"  rounding  {percent(done.lost)} of the change, at most {percent(done.lost_most)} ({done.lost_in})",
        f"  output    {done.output}  ({size(written)}, {count(len(done.files), 'file')})",
    )
    console.document(done.to_json())
