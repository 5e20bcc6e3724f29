"""`loraport`: the program. Each command lives in a file of its own and loads what it needs when it runs."""

from typing import Annotated

import typer

from loraport.cli import (
    analyze,
    cache,
    calibrate,
    check,
    compare,
    convert,
    demo,
    evaluate,
    extract,
    inspect,
    intervene,
    merge,
    methods,
    plan,
    probe,
    resize,
    sweep,
    transfer,
    verify,
)
from loraport.cli.guard import Commands

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
    add_completion=False,
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
        typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    pass


_JOB, _FILES, _MORE = "The job", "Files", "More"
_JOBS = (
    (transfer, _JOB),
    (check, _JOB),
    (calibrate, _JOB),
    (plan, _JOB),
    (sweep, _JOB),
    (analyze, _JOB),
    (compare, _JOB),
    (probe, _JOB),
)
for module, panel in (
    *_JOBS,
    (inspect, _FILES),
    (convert, _FILES),
    (resize, _FILES),
    (extract, _FILES),
    (merge, _FILES),
    (verify, _FILES),
):
    name = module.__name__.rpartition(".")[2]
    app.command(name, epilog=module.EXAMPLE, rich_help_panel=panel)(getattr(module, name))
app.command("methods", epilog=methods.EXAMPLE, rich_help_panel=_MORE)(methods.methods)
app.command("demo", epilog=demo.EXAMPLE, rich_help_panel=_MORE)(demo.demo)
app.command("evaluate", epilog=evaluate.EXAMPLE, rich_help_panel=_MORE)(evaluate.evaluate)
app.add_typer(intervene.app, name="intervene", rich_help_panel=_MORE)
app.add_typer(cache.app, name="cache", rich_help_panel=_MORE)


def run() -> None:
    """Entry point of the console script."""
    app(prog_name="loraport")
