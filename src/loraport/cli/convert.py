"""`loraport convert`: other names for the same LoRA."""

from pathlib import Path
from typing import Annotated

import typer

from loraport.cli import text
from loraport.cli.flags import output_file, warn_of_name
from loraport.cli.options import Adapter, AllowPartial, Drop, Expert, Json, Model, Overwrite, Quiet, To, Verbose
from loraport.cli.voice import Voice

EXAMPLE = """Make a file that diffusers wrote load in tools that read kohya's names:

    loraport convert style.safetensors --to kohya -o style-kohya.safetensors"""


def convert(
    lora: Annotated[str, typer.Argument(metavar="LORA", help="The LoRA file.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", rich_help_panel="Output", help="The file to write.")
    ],
    to: To = "universal",
    model: Model = None,
    expert: Expert = None,
    adapter: Adapter = None,
    drop: Drop = None,
    allow_partial: AllowPartial = False,
    overwrite: Overwrite = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Rename the keys of a LoRA for another program. The numbers stay as they are."""
    voice = Voice(verbose=verbose, quiet=quiet, as_json=as_json)
    from loraport.adapters.convert import convert_adapter
    from loraport.models.checkpoint import open_checkpoint

    done = convert_adapter(
        lora,
        output_file(output, lora),
        to=to,
        model=None if model is None else open_checkpoint(model),
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
    lines += [f"  {'load it' if way == done.load[0] else '':<9} {way}" for way in done.load]
    voice.result("\n".join(lines))
    for message in done.warnings:
        voice.warning(message)
    warn_of_name(done.output, voice)
    voice.document(
        {
            "output": str(done.output),
            "before": done.before,
            "after": done.after,
            "layers": done.layers,
            "carried": list(done.carried),
            "dropped": list(done.dropped),
            "folded": list(done.folded),
            "load": list(done.load),
            "warnings": list(done.warnings),
        }
    )
