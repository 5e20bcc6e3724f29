"""`loraport`: the program. Each command lives in a file of its own and loads what it needs when it runs."""

from typing import Annotated

import typer

from loraport.cli import collector
from loraport.cli.guard import Commands
from loraport.cli.later import Later

_EXAMPLE = """First time? Watch the whole story on small bundled models, offline:

    loraport demo

Then carry a LoRA over:

    loraport transfer style.safetensors --source Wan-AI/Wan2.1-T2V-1.3B --target fast.safetensors -o style-fast.safetensors

Exit codes: 0 done and verified, 1 a bug, 2 usage, 3 inputs do not fit, 4 numerical failure, 5 files or disk, 130 interrupted (run again to resume); 129 and 143 the same, by SIGHUP and SIGTERM. The verdicts of `check` have codes of their own, 10 to 12."""  # noqa: E501

app = typer.Typer(
    cls=Commands,
    name="loraport",
    help="Carry a LoRA from a base diffusion model to its distilled variant, from weights alone.",
    epilog=_EXAMPLE,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        from loraport.version import __version__

        print(f"loraport {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    pass


# What each says of itself in its first paragraph, so that this list needs none of them loaded.
_JOB = {
    "transfer": "Carry LoRAs over from the model they were trained on to its distilled variant, or to any other of its "
    "family.",
    "check": "Say whether a LoRA works on a model: use as is, use at a strength, convert, or cannot help, and why.",
    "calibrate": "Choose method and strength for a LoRA by running both models on noise. No data, no labels.",
    "plan": "Say what a transfer would do: coverage, time, memory, disk. Takes the same options, changes nothing.",
    "sweep": "Carry LoRAs over to several targets with several settings: one job, one folder, one index.",
    "analyze": "Show what a distillation did to the weights, and what LoRAs do there, beside null models.",
    "compare": "Make the same clips with the source and the target, with and without the LoRA: one page to look at.",
    "probe": "Make a LoRA whose only effect is a colour, and measure how much of it the target shows: four renders.",
}
_FILES = {
    "inspect": "Say what files are: model or LoRA, names, ranks, scales, number format, header, and what is odd.",
    "convert": "Write a LoRA for another program: its keys renamed, its scale put into the factors. Its effect stays "
    "the same.",
    "resize": "Write a LoRA at another rank: one for all, by the share that is kept, or what a size of the file is "
    "worth.",
    "extract": "Write the difference of two checkpoints as a LoRA, with the changes of biases and norms.",
    "merge": "Bake LoRAs into a checkpoint: the exact sum, in the checkpoint's own layout and number formats.",
    "report": "Write the page of a transfer from its run log: what was done, the verdict, the layers with their maps.",
    "verify": "Check LoRA files: every key known, every number finite, content as the header of a transfer says.",
}
_MORE = {
    "methods": "List the methods and presets, or the settings of one.",
    "demo": "Carry a bundled LoRA over to a bundled distilled model, and show what it changes in pictures.",
    "evaluate": "Measure methods on the tiny models: function, quality and motion, with intervals and controls.",
    "intervene": "Write a target with a part of its drift taken away, or made stronger.",
    "cache": "The kept work of earlier runs: decompositions of source models, and finished layers.",
}
for panel, commands in (("The job", _JOB), ("Files", _FILES), ("More", _MORE)):
    for name, help in commands.items():
        app.command(name, cls=Later, help=help, rich_help_panel=panel)(lambda: None)


def run() -> None:
    """Run the program that `start` has loaded."""
    collector.leave_out()
    app(prog_name="loraport")
