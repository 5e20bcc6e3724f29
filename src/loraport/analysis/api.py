"""`loraport.analyze`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from loraport.adapters.added_lora import AddedLora
from loraport.analysis.plan import make_analysis_plan
from loraport.analysis.results import PairAnalysis
from loraport.engine.events import Listener, ignore
from loraport.engine.options import RunOptions

PathLike = str | Path


def analyze(
    source: PathLike,
    target: PathLike | None = None,
    loras: PathLike | Sequence[PathLike] = (),
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
    """What a distillation did to the weights of a model, and what LoRAs do there, in its singular directions.

    Every figure stands beside null models: a random update of the same norm, and the rounding of the stored numbers.
    A layer is in memory at a time; what is kept of it is small. The same call again takes finished layers from the
    cache, and the decompositions that a transfer with `casa` left there.

    Args:
        source: the model that the LoRAs were trained on.
        target: another of its family, such as a distilled one.
        loras: LoRAs of the source, one or several. Without any all linear layers are looked at, else those that one
            of them changes.
        source_lora: LoRAs that are a part of the source alone, as for `transfer`.
        target_lora: distillation LoRAs that make the target, as for `transfer`.
        nested_source: part of the source to read: generator or generator_ema of a .pt file, transformer_2 of a folder.
        nested_target: part of the target to read, in the same way.
        architecture: family of the models, where that is not to be recognised.
        strength: take the LoRAs this strong.
        scale: the LoRAs' own scale, alpha / rank, where their files do not say it or say it wrong.
        expert: which expert of Wan2.2, of folders and LoRAs that hold two.
        adapter: which LoRA, of files that hold several by name.
        drop: regular expression; layers and keys of the LoRAs that match are left out.
        allow_partial: leave out what cannot be matched, instead of refusing.
        layers: regular expression; look at layers alone whose names match.
        options: how to use the machine: device, workers, memory, cache.
        on_event: called with every `loraport.engine.events.Event`.

    Raises:
        LoraportError: see `loraport.errors`.
    """
    named = [loras] if isinstance(loras, str | Path) else loras
    settings = {
        "source": source,
        "target": target,
        "source_lora": source_lora,
        "target_lora": target_lora,
        "nested_source": nested_source,
        "nested_target": nested_target,
        "architecture": architecture,
        "strength": strength,
        "scale": scale,
        "expert": expert,
        "adapter": adapter,
        "drop": drop,
        "allow_partial": allow_partial,
        "layers": layers,
    }
    plan = make_analysis_plan([str(lora) for lora in named], settings)
    from loraport.analysis.run import run_analysis  # loads torch, after all refusals

    return run_analysis(plan, options, on_event)
