"""`loraport extract`: the difference of two checkpoints as a LoRA."""

from pathlib import Path
from typing import Annotated

import typer

from loraport.cli.console import Console
from loraport.cli.flags import Given, command
from loraport.cli.options import OUTPUT
from loraport.cli.resize import MACHINE, show
from loraport.engine.recipe import MODELS, Recipe, RunOptions
from loraport.resizing.rule import Amount

EXAMPLE = """What makes a distilled model of its base, in 600 MB:

    loraport extract --source Wan2.1-T2V-1.3B/ --target fast.safetensors --max-size 600MB -o fast-lora.safetensors

The same command again resumes what was interrupted."""

_CHOICE = Recipe.part("nested_source", "nested_target", "architecture", "expert", "drop", "to", "dtype")


@command(_CHOICE, Amount, MACHINE, file=False)
def extract(
    given: Given,
    console: Console,
    source: Annotated[
        str,
        typer.Option(
            "--source", "-s", metavar="MODEL", rich_help_panel=MODELS, show_default=False,
            help="The checkpoint that the LoRA is for.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--target", "-t", metavar="MODEL", rich_help_panel=MODELS, show_default=False,
            help="What the LoRA makes of it.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", rich_help_panel=OUTPUT, show_default=False, help="The file to write."
        ),
    ],
) -> None:  # fmt: skip
    """Write the difference of two checkpoints as a LoRA, with the changes of biases and norms."""
    from loraport.cli.progress import Progress
    from loraport.resizing.extract import extract_adapter

    amount, options, choice = given.make(Amount), given.make(RunOptions), given.make(_CHOICE).values()
    with Progress(console) as progress:
        done = extract_adapter(
            source, target, output, amount, options=options,
            on_event=progress, **choice,
        )  # fmt: skip
    show(done, "extracted", console)
