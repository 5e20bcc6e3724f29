"""`loraport.analyze`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from loraport.adapters.added_lora import AddedLora
from loraport.analysis.plan import make_analysis_plan
from loraport.analysis.results import PairAnalysis
from loraport.arguments import as_paths, check_arguments
from loraport.engine.events import Listener, ignore
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe, recipe_settings

PathLike = str | Path


def analyze(
    source: PathLike,
    target: PathLike | None = None,
    loras: PathLike | Iterable[PathLike] = (),
    *,
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
    allow_partial: bool = False,
    layers: str | None = None,
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> PairAnalysis:
    """Show what a distillation did to the weights of a model and what LoRAs do there, in its singular directions.

    Every figure stands beside null models: a random update of the same norm, and the rounding of the stored numbers.
    One layer is in memory at a time, and what is kept of it is small. The same call again takes finished layers from
    the cache, and the decompositions that a transfer with `casa` left there.

    Args:
        source: model that the LoRAs were trained on.
        target: another model of its family, such as a distilled one.
        loras: LoRAs of the source, one or several, to analyze the layers they change. Without any, all linear layers
            are analyzed.
        source_lora: LoRAs that are part of the source only, as for `transfer`.
        target_lora: distillation LoRAs that make the target, as for `transfer`.
        nested_source: part of the source to read, such as generator or generator_ema in a .pt file, or transformer_2 in
            a folder.
        nested_target: part of the target to read, chosen in the same way.
        architecture: family of the models, if it should not be detected.
        strength: strength at which to take the LoRAs.
        scale: the LoRAs' own scale (alpha / rank), if their files do not state it or state it wrongly.
        expert: Wan2.2 expert to use, for folders and LoRAs that hold both.
        adapter: name of the LoRA to use, for files that hold several.
        drop: regular expression; layers and keys of the LoRAs that match are left out.
        allow_partial: leave out what cannot be matched, instead of raising an error.
        layers: regular expression; analyze only layers whose names match.
        options: how to use the machine: device, workers, memory, cache.
        on_event: called with every `loraport.engine.events.Event`.

    Raises:
        LoraportError: see `loraport.errors`.
    """
    check_arguments(analyze, locals(), besides=Recipe.model_fields)
    plan = make_analysis_plan(as_paths(loras), recipe_settings(locals()))
    from loraport.analysis.run import run_analysis  # loads torch, after all refusals

    return run_analysis(plan, options or RunOptions(), on_event)
