"""`loraport demo`: the whole story on the bundled models, offline."""

from pathlib import Path
from typing import Annotated

import typer

from loraport.cli import text
from loraport.cli.options import Json, Quiet, Verbose
from loraport.cli.voice import Voice
from loraport.methods import DEFAULT

EXAMPLE = """About a minute, no network, no GPU:

    loraport demo"""


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the results go; earlier ones are replaced.")
    ] = Path("demo-output"),
    lora: Annotated[str, typer.Option("--lora", metavar="NAME", help="A bundled LoRA.")] = "outline",
    target: Annotated[str, typer.Option("--target", metavar="NAME", help="A bundled distilled model.")] = "step-strong",
    method: Annotated[str, typer.Option("--method", "-m", metavar="NAME", help="See `loraport methods`.")] = DEFAULT,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of prompts and noise.")] = 0,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Carry a bundled LoRA over to a bundled distilled model, and show what it changes in pictures."""
    voice = Voice(verbose=verbose, quiet=quiet, as_json=as_json)
    from loraport.cli.progress import Progress
    from loraport.cli.summary import show_layers
    from loraport.demo.run import run_demo

    with Progress(voice) as progress:
        done = run_demo(output, lora=lora, target=target, method=method, seed=seed, on_event=progress)
    if verbose:
        show_layers(done.report.layers, voice)
    lines = [f"carried the LoRA {lora} over to {target} and sampled both in {text.duration(done.seconds)}", ""]
    lines += [done.lead, *(f"- {remark}" for remark in done.remarks), ""]
    lines += [
        f"  page       {done.page}",
        f"  stills     {done.still}",
        f"  animation  {done.animation}",
        f"  numbers    {done.numbers}",
        f"  LoRA       {done.lora}",
        f"  run log    {done.log}",
    ]
    voice.result("\n".join(lines))
    voice.document(
        {
            "lead": done.lead,
            "remarks": list(done.remarks),
            "seconds": done.seconds,
            "files": {
                "page": str(done.page),
                "still": str(done.still),
                "animation": str(done.animation),
                "numbers": str(done.numbers),
                "lora": str(done.lora),
                "log": str(done.log),
            },
            "transfer": done.report.to_json(),
        }
    )
