"""The public functions of transfers: each does what the command of its name does, and returns instead of printing."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from loraport.adapters.added_lora import AddedLora
from loraport.arguments import as_paths, check_arguments
from loraport.engine.events import Listener, ignore
from loraport.engine.experts.asked import Experts, outputs_of, recipes_of
from loraport.engine.experts.plan import ExpertsPlan, make_experts_plan
from loraport.engine.experts.report import ExpertsReport
from loraport.engine.many.asked import find_loras
from loraport.engine.many.job import carry_many
from loraport.engine.many.report import ManyReport
from loraport.engine.options import RunOptions
from loraport.engine.plan import TransferPlan, make_plan
from loraport.engine.recipe import Recipe, recipe_settings
from loraport.engine.results import TransferReport
from loraport.methods import DEFAULT, registry

PathLike = str | Path


# The fields of Recipe, written by tests/test_signatures.py.
def transfer(
    lora: PathLike,
    *,
    source: PathLike,
    target: PathLike | None = None,
    source_lora: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    target_lora: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    output: PathLike | None = None,
    nested_source: str | None = None,
    nested_target: str | None = None,
    architecture: str = "auto",
    force: bool = False,
    strength: float = 1.0,
    scale: float | None = None,
    expert: Literal["high", "low"] | None = None,
    adapter: str | None = None,
    drop: str | None = None,
    allow_partial: bool = False,
    method: str = DEFAULT,
    params: Mapping[str, Any] | None = None,
    amount: float = 1.0,
    layers: str | None = None,
    rank: str | int = "auto",
    to: str = "universal",
    dtype: Literal["same", "float32", "bfloat16", "float16"] = "same",
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> TransferReport:
    """Transfer a LoRA from the model it was trained on to another of its family, such as a distilled variant.

    Args:
        lora: LoRA to transfer: a file, a folder, or zoo:NAME.
        source: model the LoRA was trained on, distilled or not: a safetensors file, a diffusers folder, a hub id, or
            zoo:NAME.
        target: target model, of the same family: a safetensors or .pt file, a diffusers folder, a hub id, or zoo:NAME.
        source_lora: LoRA that was on the source during training, such as a training adapter. It is not part of the
            target; without `target`, the target is the source alone. May be repeated; takes the same choices as
            `target_lora`.
        target_lora: distillation LoRA that makes the target: added to `target` if given, otherwise to the source. May
            be repeated. FILE:0.5:expert=high also sets options for this file (expert, adapter, scale).
        output: file to write; None computes and reports only.
        nested_source: part of the source to read, such as generator or generator_ema in a .pt file, or transformer_2 in
            a folder.
        nested_target: part of the target to read, chosen in the same way.
        architecture: family of the models, if it should not be detected. any: an unknown family, whose layers are
            matched by name and shape alone.
        force: go on even if source and target do not look like versions of one model, their drift is mostly rounding,
            or the LoRA was transferred before.
        strength: strength of the whole LoRA.
        scale: the LoRA's own scale (alpha / rank), if its file does not state it or states it wrongly.
        expert: Wan2.2 expert to use: its folder in a pipeline, its LoRA in every file that holds both.
        adapter: name of the LoRA to use from files that hold several. Applies to every file that has it.
        drop: regular expression; leave out layers and keys that match, from LoRAs and output.
        allow_partial: leave out what cannot be matched, instead of stopping with an error.
        method: transfer method or preset; `loraport methods` lists them.
        params: settings of the method, such as `{"q_dom": 0.5}`.
        amount: how much of the method to apply: 0 reuses the LoRA as it is, 1 is the full method. Values in between
            interpolate linearly.
        layers: regular expression; apply the method only to layers that match. The others keep their update unchanged.
        rank: rank of the output: a number, same (as the input), full, or energy=0.99 for the rank that keeps 99 %.
            auto: the input's, but at least 32 if the method adds to it.
        to: key names in the output: universal, diffusers, kohya, original, fastvideo or same-as-input.
        dtype: number format of the output: same (as the input), float32, bfloat16 or float16.
        options: how to use the machine: device, workers, memory, cache.
        on_event: called with every `loraport.engine.events.Event`.

    Returns:
        The report: per-layer results, totals, warnings.

    Raises:
        LoraportError: see `loraport.errors`; the output is then left as it was.
    """
    check_arguments(transfer, locals(), besides=Recipe.model_fields)
    made = make_plan(Recipe.build(recipe_settings(locals())))
    from loraport.engine.run import run  # loads torch, after all refusals

    return run(made, output, options or RunOptions(), on_event)


def transfer_many(
    loras: PathLike | Iterable[PathLike],
    *,
    source: PathLike,
    target: PathLike | None = None,
    source_lora: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    target_lora: PathLike | AddedLora | Sequence[PathLike | AddedLora] = (),
    output: PathLike,
    recursive: bool = False,
    skip_existing: bool = False,
    nested_source: str | None = None,
    nested_target: str | None = None,
    architecture: str = "auto",
    force: bool = False,
    strength: float = 1.0,
    scale: float | None = None,
    expert: Literal["high", "low"] | None = None,
    adapter: str | None = None,
    drop: str | None = None,
    allow_partial: bool = False,
    method: str = DEFAULT,
    params: Mapping[str, Any] | None = None,
    amount: float = 1.0,
    layers: str | None = None,
    rank: str | int = "auto",
    to: str = "universal",
    dtype: Literal["same", "float32", "bfloat16", "float16"] = "same",
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> ManyReport:
    """Transfer many LoRAs in one job. Each layer of the two models is read and decomposed once.

    Each output is the one that `transfer` writes. A failure of one LoRA does not stop the others. What is not explained
    here is explained there and applies to each LoRA.

    Args:
        loras: LoRAs to transfer: files, folders that hold one or several, or zoo:NAME.
        output: folder to write to. Files from a folder of LoRAs keep their relative paths.
        recursive: also take LoRAs from subfolders.
        skip_existing: skip LoRAs whose output exists.

    Returns:
        The outcome of each LoRA, in the order given: its report or its error.

    Raises:
        LoraportError: the settings, the machine or the two models are wrong, which concerns all LoRAs. Outputs that
            were already finished stay; the others are left as they were.
    """
    check_arguments(transfer_many, locals(), besides=Recipe.model_fields)
    settings = recipe_settings(locals())

    def recipe(lora: str) -> Recipe:
        return Recipe.build(settings | {"lora": lora})

    asked = find_loras(as_paths(loras), Path(output), recursive=recursive)
    options = options or RunOptions()
    return carry_many(asked, recipe, Path(output), options, on_event, skip_existing=skip_existing)


# End of what is written.


def plan(recipe: Recipe) -> TransferPlan:
    """Match the files of a recipe and list the work, reading headers only. Raises LoraportError."""
    check_arguments(plan, locals())
    return make_plan(recipe)


def plan_experts(recipe: Recipe, experts: Experts | None = None) -> ExpertsPlan:
    """Match the files of both experts of Wan2.2, reading headers only.

    Args:
        recipe: recipe of the high-noise expert; folders and files that hold both experts serve both.
        experts: separate files for the low-noise expert.

    Raises:
        LoraportError: see `loraport.errors`.
    """
    check_arguments(plan_experts, locals())
    return make_experts_plan(recipes_of(recipe, experts or Experts()))


def transfer_experts(
    recipe: Recipe,
    experts: Experts | None = None,
    *,
    output: PathLike | None = None,
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> ExpertsReport:
    """Transfer the LoRAs of both experts of Wan2.2 in one job: two files or none.

    Args:
        recipe: recipe of the high-noise expert; folders and files that hold both experts serve both.
        experts: separate files for the low-noise expert.
        output: names the two files: NAME.safetensors stands for NAME_high_noise.safetensors and
            NAME_low_noise.safetensors. None computes and reports only.
        options: how to use the machine: device, workers, memory, cache.
        on_event: called with every `loraport.engine.events.Event`.

    Returns:
        The reports of both, and the distance of each target from each source.

    Raises:
        LoraportError: see `loraport.errors`; both outputs are then left as they were.
    """
    check_arguments(transfer_experts, locals())
    outputs = None if output is None else outputs_of(Path(output))
    made = plan_experts(recipe, experts)
    from loraport.engine.experts.run import run_experts  # loads torch, after all refusals

    return run_experts(made, outputs, options or RunOptions(), on_event)


def list_methods() -> dict[str, str]:
    """Every method and preset with its one-line summary."""
    known = {name: registry.get(name).summary for name in registry.names()}
    return known | {name: preset.summary for name, preset in registry.presets().items() if name not in known}
