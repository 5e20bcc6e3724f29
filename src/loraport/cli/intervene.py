"""`loraport intervene`: checkpoints with a part of the drift taken away, or made stronger."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from loraport.merging.report import MergeReport

EXAMPLE = """See how much of a distilled model lies outside the dominant directions of its drift, by removing that part:

    loraport intervene remove-drift --source Wan2.1-T2V-1.3B/ --target fast.safetensors -o without.safetensors

Make its strongest part twice as strong:

    loraport intervene amplify-head --source Wan2.1-T2V-1.3B/ --target fast.safetensors -o stronger.safetensors"""

app = typer.Typer(
    cls=Group,
    help="Write a target with part of its drift removed or made stronger.",
    epilog=EXAMPLE,
    add_completion=False,
)

_CHOICE = Recipe.part("source", "target", "nested_source", "nested_target", "architecture", "expert")
_MACHINE = RunOptions.part("cache", "verify_inputs", "overwrite")
Output = Annotated[Path, option(
    "--output", "-o", metavar="FILE|FOLDER", panel=OUTPUT,
    help="File to write; a folder if the target consists of several files.",
)]  # fmt: skip
Layers = Annotated[str | None, option(
    "--layers", metavar="REGEX", panel=METHOD, help="Change only layers whose names match."
)]  # fmt: skip
Dequantize = Annotated[PlainFormat | None, option(
    "--dequantize", panel=OUTPUT,
    help="Also change quantised weights, which become plain numbers of this format.",
)]  # fmt: skip
Requantize = Annotated[bool, option(
    "--requantize", panel=OUTPUT,
    help="Also change weights stored in 8 bits. They are rounded again, and the loss is reported.",
)]  # fmt: skip


@app.command("remove-drift", cls=Command, epilog=EXAMPLE)
@command(_CHOICE, _MACHINE)
def remove_drift(
    given: Given,
    console: Console,
    output: Output,
    quantile: Annotated[float, option(
        "--quantile", metavar="0..1", panel=METHOD, default=True,
        help=
            "Quantile of the densities of the head's directions. From it on a direction is dominant, and the "
            "drift in it stays.",
    )] = 0.5,
    layers: Layers = None,
    requantize: Requantize = False,
    dequantize: Dequantize = None,
) -> None:  # fmt: skip
    """Remove the drift except in its dominant directions."""
    from loraport.analysis import intervening

    own: dict[str, Any] = {"quantile": quantile, "layers": layers, "requantize": requantize, "dequantize": dequantize}
    _carry(partial(intervening.remove_drift, output=output, **own), given, console)


@app.command("amplify-head", cls=Command, epilog=EXAMPLE)
@command(_CHOICE, _MACHINE)
def amplify_head(
    given: Given,
    console: Console,
    output: Output,
    share: Annotated[float, option(
        "--share", metavar="0..1", panel=METHOD, default=True,
        help=
            "Share of the entries between directions of the head to amplify, taking those where the drift is "
            "largest.",
    )] = 0.05,
    factor: Annotated[float, option(
        "--factor", metavar="X", panel=METHOD, default=True, help="Factor for these entries; 0 removes them."
    )] = 2.0,
    layers: Layers = None,
    requantize: Requantize = False,
    dequantize: Dequantize = None,
) -> None:  # fmt: skip
    """Amplify the drift where it is strongest within the head."""
    from loraport.analysis import intervening

    own: dict[str, Any] = {
        "share": share,
        "factor": factor,
        "layers": layers,
        "requantize": requantize,
        "dequantize": dequantize,
    }
    _carry(partial(intervening.amplify_head, output=output, **own), given, console)


def _carry(intervene: "Callable[..., MergeReport]", given: Given, console: Console) -> None:
    """Do it, and say what was done."""
    from loraport.cli.progress import Progress

    with Progress(console) as progress:
        done = intervene(**given.make(_CHOICE).values(), options=given.make(RunOptions), on_event=progress)
    written = sum(file.stat().st_size for file in done.files)
    console.result(
        f"changed {count(done.tensors, 'tensor')}",
        f"  untouched {count(done.untouched, 'tensor')}, bit for bit",
        f"  rounding  {percent(done.lost)} of the change, at most {percent(done.lost_most)} ({done.lost_in})",
        f"  output    {done.output}  ({size(written)}, {count(len(done.files), 'file')})",
    )
    console.document(done.to_json())
