"""`loraport convert`: other names for the same LoRA."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from loraport.cli import text
from loraport.cli.options import Json, Quiet, Verbose
from loraport.cli.voice import Voice

EXAMPLE = """Make a file that diffusers wrote load in tools that read kohya's names:

    loraport convert style.safetensors --to kohya -o style-kohya.safetensors"""


def convert(
    lora: Annotated[str, typer.Argument(metavar="LORA", help="The LoRA file.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    to: Annotated[
        str,
        typer.Option("--to", metavar="PROFILE", help="universal, diffusers, kohya, original or same-as-input."),
    ] = "universal",
    expert: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation at run time on every Python
        typer.Option("--expert", metavar="high|low", help="Which of two Wan2.2 LoRAs in one file.", show_default=False),
    ] = None,
    adapter: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--adapter", metavar="NAME", help="Which of several named LoRAs in one file.", show_default=False),
    ] = None,
    drop: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--drop", metavar="REGEX", help="Leave keys that match out.", show_default=False),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Leave out what is not understood, instead of refusing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Rename the keys of a LoRA for another program. The numbers stay as they are."""
    voice = Voice(verbose=verbose, quiet=quiet, as_json=as_json)
    from loraport.formats.convert import convert_adapter

    done = convert_adapter(
        lora,
        output,
        to=to,
        expert=expert,
        adapter=adapter,
        drop=drop,
        allow_partial=allow_partial,
        overwrite=overwrite,
    )
    exact = "bit for bit" if not done.folded else f"the scale was written into {text.count(len(done.folded), 'layer')}"
    lines = [
        f"renamed {text.count(done.layers, 'layer')}, {exact}",
        f"  from      {done.before}",
        f"  to        {done.after}",
        f"  besides   {text.count(len(done.carried), 'key')} carried over, {len(done.dropped) or 'none'} dropped",
    ]
    if done.dropped:
        lines.append(f"  dropped   {text.listing(done.dropped)}")
    lines.append(f"  output    {done.output}  ({text.size(done.output.stat().st_size)}, written and read back)")
    voice.result("\n".join(lines))
    for message in done.warnings:
        voice.warning(message)
    voice.document(
        {
            "output": str(done.output),
            "before": done.before,
            "after": done.after,
            "layers": done.layers,
            "carried": list(done.carried),
            "dropped": list(done.dropped),
            "folded": list(done.folded),
            "warnings": list(done.warnings),
        }
    )
