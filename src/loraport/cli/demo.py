"""`loraport demo`: the whole story on the bundled models, offline."""

from pathlib import Path
from typing import Annotated

from loraport.cli import text
from loraport.cli.console import Console
from loraport.cli.entry import entry
from loraport.cli.options import option
from loraport.methods import DEFAULT

EXAMPLE = """Run the demo, in about a minute, without network or GPU:

    loraport demo"""

_FILES = {
    "page": "page", "still": "stills", "animation": "animation", "numbers": "numbers", "lora": "LoRA", "log": "run log",
}  # fmt: skip


@entry
def demo(
    console: Console,
    output: Annotated[Path, option(
        "--output", "-o", metavar="FOLDER", help="Folder for the results; earlier ones are replaced.", default=True
    )] = Path("demo-output"),
    lora: Annotated[str, option("--lora", metavar="NAME", help="Bundled LoRA.", default=True)] = "outline",
    target: Annotated[str, option("--target", metavar="NAME", help="Bundled distilled model.", default=True)] = "dmd",
    method: Annotated[str, option(
        "--method", "-m", metavar="NAME", help="Transfer method; `loraport methods` lists them.", default=True
    )] = DEFAULT,
    seed: Annotated[int, option("--seed", metavar="N", least=0, help="Seed of prompts and noise.", default=True)] = 0,
) -> None:  # fmt: skip
    """Transfer a bundled LoRA to a bundled distilled model, and show in pictures what changes."""
    from loraport.cli.progress import Progress
    from loraport.cli.summary import show_layers
    from loraport.demo.asked import cards_of
    from loraport.methods import registry

    cards_of(lora, target)
    registry.resolve(method)
    from loraport.demo.run import run_demo  # loads torch and diffusers, after all refusals

    with Progress(console) as progress:
        done = run_demo(output, lora=lora, target=target, method=method, seed=seed, on_event=progress)
    if console.verbose:
        show_layers(done.report, console)
    lines = [f"transferred the LoRA {lora} to {target} and sampled both in {text.duration(done.seconds)}", ""]
    lines += [done.lead, *(f"- {remark}" for remark in done.remarks), ""]
    files = {name: str(getattr(done, name)) for name in _FILES}
    console.result(*lines, *(f"  {_FILES[name]:<10} {file}" for name, file in files.items()))
    console.document(
        {
            "lead": done.lead,
            "remarks": list(done.remarks),
            "seconds": done.seconds,
            "files": files,
            "transfer": done.report.to_json(),
        }
    )
