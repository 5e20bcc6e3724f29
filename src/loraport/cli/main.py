"""`loraport`: the program. Each command lives in a file of its own and loads what it needs when it runs."""

from typing import Annotated

import typer

from loraport.cli import collector
from loraport.cli.guard import Commands
from loraport.cli.later import Later

_EXAMPLE = """First time? Watch the whole story on small bundled models, offline:

    loraport demo

Then transfer a LoRA:

    loraport transfer style.safetensors -s BASE -t FAST -o fast.safetensors

Exit codes: 0 done and verified, 1 a bug, 2 usage, 3 inputs do not fit, 4 numerical failure, 5 files or disk, 130 interrupted (run again to resume; 129 and 143 are the same for SIGHUP and SIGTERM). The verdicts of `check` have their own codes, 10 to 12."""  # noqa: E501

app = typer.Typer(
    cls=Commands,
    name="loraport",
    help="Transfer a LoRA from a base diffusion model to its distilled variant, from weights alone.",
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
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


# What each says of itself in its first paragraph, so that this list needs none of them loaded.
_JOB = {
    "transfer": "Transfer LoRAs from the model they were trained on to another of its family, such as a distilled "
    "variant.",
    "check": "Tell whether a LoRA works on a model, and why: use as is, use at a strength, convert, or cannot help.",
    "calibrate": "Choose method and strength for a LoRA by running both models on noise, without data or labels.",
    "plan": "Show what a transfer would do: coverage, time, memory, disk. Takes the same options and changes nothing.",
    "sweep": "Transfer LoRAs to several targets with several settings: one job, one folder, one index.",
    "analyze": "Show what a distillation did to the weights and what LoRAs do there, beside null models.",
    "compare": "Make the same clips with source and target, with and without the LoRA, and show them on one page.",
    "probe": "Make a LoRA whose only effect is a colour, and measure how much of it the target shows, in four renders.",
}
_FILES = {
    "inspect": "Describe files: model or LoRA, names, ranks, scales, number format, header, and anything odd.",
    "convert": "Write a LoRA for another program: rename its keys, fold its scale into the factors, keep its effect.",
    "resize": "Write a LoRA at another rank: one rank for all layers, or chosen by the share to keep or by file size.",
    "extract": "Write the difference of two checkpoints as a LoRA, including changes of biases and norms.",
    "merge": "Bake LoRAs into a checkpoint: the exact sum, in the checkpoint's own layout and number formats.",
    "report": "Write the page of a transfer from its run log: what was done, the verdict, and the layers with their "
    "maps.",
    "verify": "Check LoRA files: every key known, every number finite, and content as the header of a transfer states.",
}
_MORE = {
    "methods": "List methods and presets, or show the settings of one.",
    "demo": "Transfer a bundled LoRA to a bundled distilled model, and show in pictures what changes.",
    "evaluate": "Measure methods on the tiny models: function, quality and motion, with intervals and controls.",
    "intervene": "Write a target with part of its drift removed or made stronger.",
    "cache": "Manage the work kept from earlier runs: decompositions of source models and finished layers.",
}
for panel, commands in (("The job", _JOB), ("Files", _FILES), ("More", _MORE)):
    for name, help in commands.items():
        app.command(name, cls=Later, help=help, rich_help_panel=panel)(lambda: None)


def run() -> None:
    """Run the program that `start` has loaded."""
    collector.leave_out()
    app(prog_name="loraport")
