"""`loraport merge`: LoRAs baked into a checkpoint."""

from pathlib import Path
from typing import Annotated

from loraport.cli import text
from loraport.cli.console import Console
from loraport.cli.flags import OF_A_LORA, Given, command
from loraport.cli.options import OUTPUT, argument, option, required
from loraport.containers.dtypes import PlainFormat
from loraport.engine.options import RunOptions
from loraport.engine.recipe import MODELS, Recipe
from loraport.wording import count, percent, size

EXAMPLE = """Bake a LoRA into a checkpoint at strength 0.8. The checkpoint may also be a folder of shards or a .pt file:

    loraport merge style.safetensors --into fast.safetensors --strength 0.8 -o fast-style.safetensors

Bake in two LoRAs, each at its own strength, into a pipeline's transformer:

    loraport merge style.safetensors:0.8 few-steps.safetensors:1 --into Wan2.1-T2V-1.3B/ -o merged/

If interrupted, run the same command again to resume."""


@command(
    Recipe.part("strength", *OF_A_LORA),
    RunOptions.part("overwrite"),
)
def merge(
    given: Given,
    console: Console,
    loras: Annotated[list[str], argument("LORA[:STRENGTH]", "LoRAs to bake in, of any kind.")],
    into: Annotated[str, option("--into", metavar="MODEL", panel=MODELS, help="Checkpoint to merge into.")],
    output: Annotated[Path | None, option(
        "--output", "-o", metavar="FILE|FOLDER", panel=OUTPUT,
        help="File to write; a folder if the checkpoint consists of several files.",
    )] = None,
    nested: Annotated[str | None, option(
        "--nested", metavar="NAME", panel=MODELS,
        help="Part of the checkpoint to change, such as generator_ema in a .pt file, or transformer_2 in a folder.",
    )] = None,
    requantize: Annotated[bool, option(
        "--requantize", panel=OUTPUT,
        help="Also change weights stored in fp8. They are rounded again, and the loss is reported.",
    )] = False,
    dequantize: Annotated[PlainFormat | None, option(
        "--dequantize", panel=OUTPUT,
        help=
            "Also change quantised weights, which become plain numbers of this format; other weights stay as they "
            "are. With --requantize, only those that cannot be rounded again.",
    )] = None,
    plan: Annotated[bool, option("--plan", help="Print what would be done, from headers alone, and stop.")] = False,
) -> None:  # fmt: skip
    """Bake LoRAs into a checkpoint: the exact sum, in the checkpoint's own layout and number formats."""
    from loraport.adapters.added_lora import AddedLora
    from loraport.cli.progress import Progress
    from loraport.merging.plan import make_merge_plan

    choice = given.checked()
    overwrite = choice.pop("overwrite")
    if not plan:
        output = required(output, "output", "name a file or folder to write: -o NAME")
    ready = make_merge_plan(
        [AddedLora.parse(lora) for lora in loras],
        into,
        nested=nested,
        requantize=requantize,
        dequantize=dequantize,
        **choice,
    )
    if plan:
        facts = {
            "model": ready.model.architecture.title,
            "tensors": len(ready.tensors),
            "requantized": len(ready.requantized),
            "dequantized": len(ready.dequantized),
            "grown_bytes": ready.grown_bytes,
            "files": [str(file) for file in ready.layout.files],
            "output_bytes": ready.output_bytes,
            "peak_bytes": ready.peak_bytes,
            "left_out": list(ready.left_out),
            "warnings": list(ready.warnings),
        }
        console.result(
            f"{count(len(ready.tensors), 'tensor')} of {ready.model.architecture.title} would change",
            f"  reads     {text.listing([file.name for file in ready.layout.files])}",
            f"  writes    {size(ready.output_bytes)}",
            f"  memory    {size(ready.peak_bytes)} for the tensors in progress",
            *_formats(len(ready.requantized), len(ready.dequantized), ready.grown_bytes, dequantize),
        )
        console.warning(*ready.warnings)
        console.document(facts)
        return
    assert output is not None
    ready.placed(output, overwrite=overwrite)
    with Progress(console) as progress:
        progress.planned(count(len(ready.tensors), "tensor"))
        from loraport.merging.run import run_merge  # loads torch, after all refusals

        done = run_merge(ready, output, overwrite=overwrite, on_event=progress)
    written = sum(file.stat().st_size for file in done.files)
    lines = [
        f"merged into {count(done.tensors, 'tensor')} of {ready.model.architecture.title}",
        f"  untouched {count(done.untouched, 'tensor')}, bit for bit",
        f"  rounding  {percent(done.lost)} of the update, at most {percent(done.lost_most)} ({done.lost_in})",
    ]
    if done.continued:
        lines.append(f"  continued {done.continued} of {count(done.tensors, 'tensor', 'was/were')} already written")
    lines += _formats(done.requantized, done.dequantized, done.grown_bytes, dequantize)
    if done.left_out:
        lines.append(f"  left out  {text.listing(done.left_out)}")
    lines.append(f"  output    {done.output}  ({size(written)}, {count(len(done.files), 'file')})")
    console.result(*lines)
    console.document(done.to_json())


def _formats(requantized: int, dequantized: int, grown: int, form: str | None) -> list[str]:
    """What became of quantised weights."""
    lines = [f"  8 bits    {count(requantized, 'tensor')} rounded again"] if requantized else []
    if dequantized:
        lines.append(f"  {form:<9} {count(dequantized, 'tensor')} that were quantised, {size(grown)} larger")
    return lines
