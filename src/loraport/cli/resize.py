"""`loraport resize`: another rank for a LoRA."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from loraport.cli import text
from loraport.cli.console import Console
from loraport.cli.flags import OF_A_LORA, Given, command
from loraport.cli.options import OUTPUT, SourceModel, argument, option, required
from loraport.cli.outputs import output_file, warn_of_name
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe
from loraport.resizing.rule import Amount
from loraport.wording import count, share, size

if TYPE_CHECKING:
    from loraport.resizing.report import Resized
    from loraport.resizing.task import Task

EXAMPLE = """Keep the best 40 MB of a LoRA, or cut it to rank 16:

    loraport resize style.safetensors --max-size 40MB -o style-40.safetensors

    loraport resize style.safetensors --rank 16 -o style-16.safetensors"""

ToWrite = Annotated[str | None, option(
    "--output", "-o", metavar="FILE", panel=OUTPUT, help="File to write."
)]  # fmt: skip
Plan = Annotated[bool, option("--plan", help="Print what would be done, and stop before any work.")]
_CHOICE = Recipe.part("dtype", *OF_A_LORA)


@command(_CHOICE, Amount, RunOptions, without=("log",))
def resize(
    given: Given,
    console: Console,
    lora: Annotated[str, argument("LORA", "LoRA file, of any kind.")],
    output: ToWrite = None,
    to: Annotated[str, option(
        "--to", metavar="PROFILE", panel=OUTPUT, help="Key names in the output, as for transfer.", default=True
    )] = "same-as-input",
    model: SourceModel = None,
    plan: Plan = False,
) -> None:  # fmt: skip
    """Write a LoRA at another rank: one rank for all layers, or chosen by the share to keep or by file size."""
    amount, options = given.make(Amount), given.make(RunOptions)
    from loraport.resizing.resize import plan_resize

    task = plan_resize(lora, to=to, model=model, **given.make(_CHOICE).values())
    place = None if output is None else output_file(output, lora)
    carry(task, amount, place, options, console, plan=plan)


def carry(
    task: "Task", amount: Amount, output: Path | None, options: RunOptions, console: Console, *, plan: bool
) -> None:
    """Do it and say what was done, or say what would be. Raises UsageError where no output is given."""
    from loraport.cli.progress import Progress

    if plan:
        from loraport.engine.executor import executor_for, in_flight

        side_by_side = in_flight(task.jobs, executor_for(options).slots())
        memory = sum(sorted((job.peak_bytes for job in task.jobs), reverse=True)[:side_by_side])
        operations, name = task.cost_of(amount), task.architecture.title
        console.result(
            f"{count(len(task.jobs), 'weight')} of {name} would be cut ({amount})",
            f"  as it is  {count(len(task.passthrough), 'change')} of biases, norms and the like",
            f"  work      about {text.operations(operations)} operations",
            f"  memory    {size(memory)}, {count(side_by_side, 'weight')} at a time",
        )
        console.warning(*task.warnings)
        console.document(
            {
                "model": name,
                "rule": str(amount),
                "weights": len(task.jobs),
                "passthrough": [key for item in task.passthrough for key in item.keys],
                "operations": operations,
                "peak_bytes": memory,
                "warnings": list(task.warnings),
            }
        )
        return
    output = required(output, "output", "name the file to write: -o FILE")
    task.check_output(output, overwrite=options.overwrite)
    with Progress(console) as progress:
        progress.planned(count(len(task.jobs), "weight"))
        from loraport.resizing.cut import carry_out  # loads torch, after all refusals

        done = carry_out(task, amount, output, options, progress)
    show(done, {"resize": "resized", "extract": "extracted"}[task.what], console)


def show(done: "Resized", what: str, console: Console) -> None:
    """Say what was written."""
    ranks = [layer.rank_out for layer in done.layers]
    spread = f"{min(ranks)} to {max(ranks)}" if len(set(ranks)) > 1 else str(max(ranks, default=0))
    lines = [
        f"{what} {count(len(done.layers), 'weight')} ({done.rule})",
        f"  rank      {spread}",
        f"  energy    {share(done.energy_kept)} of the squared norm is kept",
    ]
    if done.left_out:
        lines.append(f"  without   {count(len(done.left_out), 'weight')}: {text.listing(done.left_out)}")
    if done.passthrough:
        lines.append(f"  as it is  {count(len(done.passthrough), 'change')} of biases, norms and the like")
    lines.append(f"  output    {done.output}  ({size(done.size)}, written and read back)")
    console.result(*lines, *text.under("load it", done.load))
    if console.verbose:
        rows = [[x.name, str(x.rank_in), str(x.rank_out), share(x.energy_kept)] for x in done.layers]
        console.table(["weight", "rank in", "rank out", "energy kept"], rows)
    warn_of_name(done.output, console)
    console.document(done.to_json())
