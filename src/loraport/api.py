"""The public functions. Each does what the command of the same name does, and returns instead of printing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from loraport.adapters.convert import Conversion, convert_adapter
from loraport.adapters.describe import FileDescription, describe
from loraport.adapters.verify import Check, verify_adapter
from loraport.engine.events import Listener, ignore
from loraport.engine.plan import TransferPlan, make_plan
from loraport.engine.recipe import Recipe, RunOptions
from loraport.engine.results import TransferReport
from loraport.engine.run import run
from loraport.methods import DEFAULT, registry
from loraport.models.checkpoint import open_checkpoint

PathLike = str | Path


def transfer(
    lora: PathLike,
    *,
    source: PathLike,
    target: PathLike | None = None,
    output: PathLike | None = None,
    target_lora: str | None = None,
    method: str = DEFAULT,
    params: Mapping[str, Any] | None = None,
    rank: str | int = "auto",
    amount: float = 1.0,
    strength: float = 1.0,
    scale: float | None = None,
    layers: str | None = None,
    drop: str | None = None,
    to: str = "universal",
    dtype: str = "same",
    nested_source: str | None = None,
    nested_target: str | None = None,
    expert: Literal["high", "low"] | None = None,
    adapter: str | None = None,
    allow_partial: bool = False,
    force: bool = False,
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> TransferReport:
    """Carry a LoRA from its base model to a distilled variant of that model.

    Args:
        lora: the LoRA file. source: the model it was trained on. target: the distilled model.
        output: the file to write; None computes and reports only.
        target_lora: instead of `target`: the target is the source plus this LoRA, `FILE` or `FILE:STRENGTH`.
        method, params: a method or preset (`loraport.list_methods()`) and its settings, e.g. `{"q_dom": 0.6}`.
        rank: `auto` (the input's, at least 32 where the method adds to it), `same`, `full`, a number, or `energy=0.99`.
        amount: 0 is direct reuse, 1 the full method.
        strength: a factor on the whole LoRA, before any method.
        scale: the LoRA's own scale (alpha / rank), stated by hand; None takes what its file says.
        layers: regular expression; other layers keep the input's update. drop: layers to leave out.
        to: `universal`, `diffusers`, `kohya`, `original` or `same-as-input`. dtype: `same` or a torch name.
        nested_source, nested_target: part of a `.pt` file to read, such as `generator_ema`.
        expert: `high` or `low`, for a file that holds the LoRAs of both Wan2.2 experts.
        adapter: which adapter, for a file that names several.
        allow_partial: leave out what cannot be matched. force: accept a target that looks unrelated,
            or a LoRA that was transferred before.
        options: device, workers, memory, cache. on_event: called with every `loraport.engine.events.Event`.

    Returns:
        The report: per-layer results, totals, warnings.

    Raises:
        LoraportError: see `loraport.errors`; the output is then as it was before.
    """
    recipe = Recipe.build(
        {
            "lora": str(lora),
            "source": str(source),
            "target": None if target is None else str(target),
            "target_lora": target_lora,
            "method": method,
            "params": dict(params or {}),
            "rank": str(rank),
            "amount": amount,
            "strength": strength,
            "scale": scale,
            "layers": layers,
            "drop": drop,
            "to": to,
            "dtype": dtype,
            "nested_source": nested_source,
            "nested_target": nested_target,
            "expert": expert,
            "adapter": adapter,
            "allow_partial": allow_partial,
            "force": force,
        }
    )
    return run(make_plan(recipe), output, options or RunOptions(), on_event)


def plan(recipe: Recipe) -> TransferPlan:
    """Match the files of a recipe and list the work, reading headers only. Raises LoraportError."""
    return make_plan(recipe)


def inspect(path: PathLike) -> FileDescription:
    """Say what a file is, from its header: dialect, model, ranks, scales, and what is odd. Raises FileError."""
    return describe(path)


def convert(
    lora: PathLike,
    output: PathLike,
    *,
    to: str = "universal",
    model: PathLike | None = None,
    expert: Literal["high", "low"] | None = None,
    adapter: str | None = None,
    drop: str | None = None,
    allow_partial: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Write a LoRA in another dialect without changing what it does.

    Args:
        lora: the file to read. output: the file to write.
        to: `universal`, `diffusers`, `kohya`, `original` or `same-as-input`.
        model: the model it belongs to, to check the names and sizes against.
        expert: `high` or `low`, for a file that holds the LoRAs of both Wan2.2 experts.
        adapter: which adapter, for a file that names several.
        drop: regular expression; layers and keys that match are left out.
        allow_partial: leave out what cannot be matched.
        overwrite: replace an existing file.

    Raises:
        LoraportError: see `loraport.errors`; the output is then as it was before.
    """
    return convert_adapter(
        lora,
        output,
        to=to,
        model=None if model is None else open_checkpoint(model),
        expert=expert,
        adapter=adapter,
        drop=drop,
        allow_partial=allow_partial,
        overwrite=overwrite,
    )


def verify(
    path: PathLike,
    *,
    model: PathLike | None = None,
    load: bool = True,
    expert: Literal["high", "low"] | None = None,
    adapter: str | None = None,
) -> tuple[Check, ...]:
    """Check a LoRA: header against content, every number finite, every key known, and the loader of diffusers.

    Args:
        path: the file. model: also check that it fits this model.
        load: also hand the file to diffusers' own loader, if installed.
        expert: `high` or `low`, for a file that holds the LoRAs of both Wan2.2 experts.
        adapter: which adapter, for a file that names several.

    Returns:
        One check a line; `passed` is False where something is wrong and None for a remark.

    Raises:
        LoraportError: the file is damaged, no plain LoRA, or holds several LoRAs of which none was named.
    """
    fits = None if model is None else open_checkpoint(model)
    return verify_adapter(path, fits, load=load, expert=expert, adapter=adapter)


def list_methods() -> dict[str, str]:
    """Every method and preset with its one-line summary."""
    known = {name: registry.get(name).summary for name in registry.names()}
    return known | {name: preset.summary for name, preset in registry.PRESETS.items() if name not in known}
