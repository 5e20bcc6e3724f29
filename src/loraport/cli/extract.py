"""`loraport extract`: the difference of two checkpoints as a LoRA."""

from typing import Annotated

from loraport.cli.console import Console
from loraport.cli.flags import Given, command
from loraport.cli.options import option
from loraport.cli.outputs import named_file
from loraport.cli.resize import Plan, ToWrite, carry
from loraport.engine.options import RunOptions
from loraport.engine.recipe import MODELS, Recipe
from loraport.resizing.rule import Amount

EXAMPLE = """Extract what turns a base model into its distilled variant, in 600 MB:

    loraport extract --source Wan2.1-T2V-1.3B/ --target fast.safetensors --max-size 600MB -o fast-lora.safetensors

If interrupted, run the same command again to resume."""

_CHOICE = Recipe.part("nested_source", "nested_target", "architecture", "expert", "drop", "to", "dtype")


@command(_CHOICE, Amount, RunOptions, without=("log",))
def extract(
    given: Given,
    console: Console,
    source: Annotated[str, option(
        "--source", "-s", metavar="MODEL", panel=MODELS, help="Checkpoint that the LoRA is for."
    )],
    target: Annotated[str, option(
        "--target", "-t", metavar="MODEL", panel=MODELS, help="Checkpoint that the LoRA turns it into."
    )],
    output: ToWrite = None,
    plan: Plan = False,
) -> None:  # fmt: skip
    """Write the difference of two checkpoints as a LoRA, including changes of biases and norms."""
    amount, options, choice = given.make(Amount), given.make(RunOptions), given.make(_CHOICE).values()
    place = None if output is None else named_file(output)
    from loraport.resizing.extract import plan_extract

    carry(plan_extract(source, target, **choice), amount, place, options, console, plan=plan)
