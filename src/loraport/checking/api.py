"""The public function."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from loraport.adapters.added_lora import AddedLora
from loraport.arguments import check_arguments
from loraport.checking.results import CheckResult
from loraport.checking.run import check_recipe
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe, recipe_settings
from loraport.methods import DEFAULT

PathLike = str | Path


def check(
    lora: PathLike,
    *,
    source: PathLike,
    target: PathLike | None = None,
    source_lora: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    target_lora: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    nested_source: str | None = None,
    nested_target: str | None = None,
    architecture: str = "auto",
    strength: float = 1.0,
    scale: float | None = None,
    expert: Literal["high", "low"] | None = None,
    adapter: str | None = None,
    drop: str | None = None,
    method: str = DEFAULT,
    params: Mapping[str, Any] | None = None,
    deep: bool = False,
    options: RunOptions | None = None,
) -> CheckResult:
    """Tell whether a LoRA works on a model as it is, from headers, then from a few layers. Nothing is written.

    Args:
        lora: LoRA: a file, a folder, or zoo:NAME.
        source: model that it was trained on.
        target: model to use it on; may be left out if `target_lora` makes it from the source.
        source_lora: LoRAs that were on the source during training; as in `loraport.transfer`.
        target_lora: distillation LoRAs that make the target; as in `loraport.transfer`.
        nested_source: part of the source to read, as in `loraport.transfer`.
        nested_target: part of the target to read.
        architecture: family of the models, if it should not be detected.
        strength: strength at which the LoRA is used on its source. A recommended strength is in the same units.
        scale: the LoRA's own scale (alpha / rank), if its file does not state it or states it wrongly.
        expert: Wan2.2 expert to use.
        adapter: name of the LoRA to use, for a file that holds several.
        drop: regular expression; layers and keys that match are left out.
        method: method whose change is measured, and with which a conversion would be done.
        params: settings of the method, as in `loraport.transfer`.
        deep: look at every layer instead of a sample. The cost is about that of a transfer.
        options: device, workers, memory.

    Returns:
        The verdict, its reasons and every figure. Files that do not fit each other are a verdict too.

    Raises:
        FileError: a file is missing, damaged, or changes during the check.
        UsageError: the question makes no sense.
        NumericalError: a weight holds NaN or infinity.
    """
    check_arguments(check, locals(), besides=Recipe.model_fields)
    recipe = Recipe.build(recipe_settings(locals()))
    return check_recipe(recipe, options or RunOptions(), deep=deep)
