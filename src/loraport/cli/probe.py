"""`loraport probe`: how much of one colour a target shows, in four renders."""

from pathlib import Path
from typing import Annotated

from loraport.cli.compare import FILES, Pipelines
from loraport.cli.console import Console
from loraport.cli.flags import Given, command
from loraport.cli.options import option, required
from loraport.cli.sampling import OF_PIPELINES, sampling_of
from loraport.comparing.settings import CompareSettings
from loraport.engine.experts.asked import Experts
from loraport.engine.options import RunOptions
from loraport.engine.recipe import OUTPUT

EXAMPLE = """Measure the dose of a pair, and keep the probe that measured it:

    loraport probe --source Z-Image/ --target Z-Image-Turbo/ -o red.safetensors

To see what a method makes of the probe, without training anything, transfer it and compare."""

MACHINE = RunOptions.part("device", "overwrite")
ASKED = CompareSettings.part("negative", "height", "width", "frames", "offload", "precision")
LOW = Experts.part("target_lora_low")


@command(FILES, Pipelines, LOW, ASKED, *OF_PIPELINES, MACHINE)
def probe(
    given: Given,
    console: Console,
    output: Annotated[Path | None, option(
        "--output", "-o", metavar="FILE", panel=OUTPUT,
        help="Probe to write. For both experts of Wan2.2, the expert is added to the name.",
    )] = None,
    colour: Annotated[str, option(
        "--colour", metavar="NAME", help="Colour: red, green, blue or light (all three).", default=True
    )] = "red",
    prompt: Annotated[str | None, option(
        "--prompt", metavar="TEXT", help="Prompt to render; by default, a plain grey wall."
    )] = None,
    seed: Annotated[int, option("--seed", metavar="N", least=0, help="Seed of the noise.", default=True)] = 0,
) -> None:  # fmt: skip
    """Make a LoRA whose only effect is a colour, and measure how much of it the target shows, in four renders."""
    output = required(output, "output", "add --output, the probe's file")
    files, machine = given.make(FILES).values(), given.make(MACHINE).values()
    sampling = sampling_of(given)
    from loraport.cli.progress import Progress
    from loraport.comparing.api import GREY_WALL
    from loraport.comparing.api import probe as run

    with Progress(console) as progress:
        found = run(
            source=files["source"],
            target=files["target"],
            target_lora=files["target_lora"],
            target_lora_low=given.make(LOW).values()["target_lora_low"],
            output=output,
            colour=colour,
            prompt=prompt or GREY_WALL,
            seed=seed,
            settings=CompareSettings(**given.make(ASKED).values()),
            source_sampling=sampling["source"],
            target_sampling=sampling["target"],
            device=machine["device"],
            overwrite=machine["overwrite"],
            on_event=progress,
        )
    written = " and ".join(str(file) for file in (found.file, found.file_low) if file is not None)
    console.result(
        f"the target shows {found.ratio:.2f} times as much of the colour as the source",
        f"  source    {100 * found.source:.0f} % of what was asked for ({100 * found.aside[0]:.0f} % in other colours)",
        f"  target    {100 * found.target:.0f} % ({100 * found.aside[1]:.0f} % in other colours)",
        f"  evenness  the input that should be constant varies by {100 * found.spread:.0f} %",
        f"  probe     {written}, which changes only {found.layer} and says nothing of the layers before it",
    )
    console.document(found.to_json())
