"""`loraport probe`: how much of one colour a target shows, in four renders."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from loraport.cli.calibrate import ROLES
from loraport.cli.compare import FILES, sampling_of
from loraport.cli.console import Console
from loraport.cli.flags import Given, command
from loraport.comparing.settings import CompareSettings
from loraport.engine.options import RunOptions
from loraport.engine.recipe import OUTPUT
from loraport.errors import UsageError

EXAMPLE = """The dose of a pair, and the probe that measured it:

    loraport probe --source Z-Image/ --target Z-Image-Turbo/ -o red.safetensors

What a method makes of the probe (no need to train anything): transfer it, and compare."""

MACHINE = RunOptions.part("device", "overwrite")
ASKED = CompareSettings.part("negative", "height", "width", "frames", "offload", "precision")


@command(FILES, ASKED, *ROLES.values(), MACHINE, file=False)
def probe(
    given: Given,
    console: Console,
    output: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads the annotation at run time on every Python
        typer.Option(
            "--output", "-o", metavar="FILE", rich_help_panel=OUTPUT, show_default=False, help="The probe to write."
        ),
    ] = None,
    colour: Annotated[
        str, typer.Option("--colour", metavar="NAME", help="red, green, blue or light (all three).")
    ] = "red",
    prompt: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--prompt", metavar="TEXT", show_default=False, help="What is shown; a plain grey wall by default."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the noise.")] = 0,
) -> None:
    """Make a LoRA whose only effect is a colour, and measure how much of it the target shows: four renders."""
    if output is None:
        raise UsageError("the output is not given", fix="add --output, the probe's file")
    files, machine = given.make(FILES).values(), given.make(MACHINE).values()
    sampling = sampling_of(given)
    from loraport.cli.progress import Progress
    from loraport.comparing.sides import find_sides, refuse_two_experts

    models = (files["source"], files["target"], files["target_lora"])
    refuse_two_experts(find_sides(*models, sampling["source"], sampling["target"]))
    from loraport.comparing.probe import PROMPT  # loads torch and diffusers, after all refusals
    from loraport.comparing.probe import probe as run

    with Progress(console) as progress:
        found = run(
            source=files["source"],
            target=files["target"],
            target_lora=files["target_lora"],
            output=output,
            colour=colour,
            prompt=prompt or PROMPT,
            seed=seed,
            settings=CompareSettings(**given.make(ASKED).values()),
            source_sampling=sampling["source"],
            target_sampling=sampling["target"],
            device=machine["device"],
            overwrite=machine["overwrite"],
            on_event=progress,
        )
    console.result(
        f"the target shows {found.ratio:.2f} times the colour that the source shows",
        f"  source    {100 * found.source:.0f} % of what was asked for ({100 * found.aside[0]:.0f} % aside)",
        f"  target    {100 * found.target:.0f} % ({100 * found.aside[1]:.0f} % aside)",
        f"  evenness  the input that is to be constant varies by {100 * found.spread:.0f} %",
        f"  probe     {found.file}, which changes {found.layer} alone: no word on the layers before it",
    )
    console.document(found.to_json())
