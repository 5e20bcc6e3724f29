"""`loraport convert`: other names for the same LoRA."""

from typing import Annotated

from loraport.cli import text
from loraport.cli.console import Console
from loraport.cli.flags import OF_A_LORA, Given, command
from loraport.cli.options import OUTPUT, SourceModel, argument, option
from loraport.cli.outputs import output_file, warn_of_name
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe
from loraport.wording import count, size

EXAMPLE = """Convert a file written by diffusers for tools that read kohya's names:

    loraport convert style.safetensors --to kohya -o style-kohya.safetensors"""


@command(
    Recipe.part("to", *OF_A_LORA),
    RunOptions.part("overwrite"),
)
def convert(
    given: Given,
    console: Console,
    lora: Annotated[str, argument("LORA", "LoRA file to convert.")],
    output: Annotated[str, option("--output", "-o", metavar="FILE", panel=OUTPUT, help="File to write.")],
    model: SourceModel = None,
) -> None:
    """Write a LoRA for another program: rename its keys, fold its scale into the factors, keep its effect."""
    from loraport.adapters.convert import convert as carry_out

    done = carry_out(lora, output_file(output, lora), model=model, **given.checked())
    changed = [f"the scale was written into {count(len(done.folded), 'layer')}"] if done.folded else []
    changed += [f"{count(len(done.multiplied), 'layer')} multiplied out"] if done.multiplied else []
    exact = " and ".join(changed) or "bit for bit"
    lines = [
        f"renamed {count(done.layers, 'layer')}, {exact}",
        f"  from      {done.before}",
        f"  to        {done.after}",
        f"  keys      {count(len(done.passthrough), 'key')} passed through, {len(done.dropped) or 'none'} dropped",
    ]
    if done.dropped:
        lines.append(f"  dropped   {text.listing(done.dropped)}")
    lines.append(f"  output    {done.output}  ({size(done.output.stat().st_size)}, written and read back)")
    console.result(*lines, *text.under("load it", done.load))
    console.warning(*done.warnings)
    warn_of_name(done.output, console)
    console.document(done.to_json())
