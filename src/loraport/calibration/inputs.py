"""Everything that a calibration starts from: the LoRA taken apart, its rival from weights alone, prompts, noise."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.parse import open_adapter
from loraport.calibration.directions import Directions, gains, restores
from loraport.calibration.progress import Teller
from loraport.calibration.settings import Settings
from loraport.core.lowrank import LowRank
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe, RunOptions
from loraport.engine.run import compute
from loraport.errors import UsageError
from loraport.models.checkpoint import open_checkpoint
from loraport.sampling.denoiser import Runnable
from loraport.sampling.rollout import Conditions, draw_noise

PROBES, HELD_OUT = 7_000_000_000, 7_000_500_000
"""Seeds of noise begin here, far from those of anybody who scores the result on noise of his own."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What everything below works on."""

    adapter: LoraAdapter
    update: dict[str, LowRank]
    moved: dict[str, dict[str, LowRank]]
    directions: Directions
    probes: Conditions
    probe_noise: Float[Tensor, "n ..."]
    heldout: Conditions
    heldout_noise: Float[Tensor, "m ..."]


def open_inputs(
    lora: Path, source: Runnable, target: Runnable, conditions: Conditions, settings: Settings, tell: Teller
) -> Inputs:
    checkpoint = None if source.checkpoint is None else open_checkpoint(source.checkpoint)
    adapter = open_adapter(lora, checkpoint)
    if not adapter.layers:
        raise UsageError("the LoRA changes no linear layer", where=str(lora))
    update = {name: layer.load() for name, layer in adapter.layers.items()}
    if adapter.carried:
        tell.warn(
            f"{len(adapter.carried)} tensors of the LoRA change other things than linear layers; "
            "they are written unchanged and were off while measuring"
        )
    if len(conditions.prompts) < settings.probes + settings.heldout:
        tell.warn(
            f"{len(conditions.prompts)} prompts for {settings.probes} probes and {settings.heldout} held out: "
            "some are used twice, with other noise"
        )
    moved = _moved(lora, source, target, settings, tell)
    directions = gains(update, settings.groups)
    if moved and settings.restore:
        by = "layer" if settings.groups == "component" else settings.groups
        directions += restores(update, moved[settings.transfers[0]], by)
    first = settings.seed * 1_000_000
    return Inputs(
        adapter,
        update,
        moved,
        Directions(tuple(directions)),
        conditions.take(0, settings.probes),
        draw_noise(target.latents, range(first + PROBES, first + PROBES + settings.probes)),
        conditions.take(settings.probes, settings.heldout),
        draw_noise(target.latents, range(first + HELD_OUT, first + HELD_OUT + settings.heldout)),
    )


def _moved(
    lora: Path, source: Runnable, target: Runnable, settings: Settings, tell: Teller
) -> dict[str, dict[str, LowRank]]:
    """The weight-space transfers, by the engine, as a user would get them."""
    if not settings.transfers:
        return {}
    if source.checkpoint is None or (target.checkpoint is None and target.distill is None):
        tell.warn(f"no checkpoint on disk, so {', '.join(settings.transfers)} cannot be among the candidates")
        return {}
    options = RunOptions(cache="off" if source.small else None)
    made = {}
    for method in settings.transfers:
        recipe = Recipe(
            lora=str(lora),
            source=str(source.checkpoint),
            target=None if target.checkpoint is None else str(target.checkpoint),
            target_lora=None if target.distill is None else str(target.distill),
            method=method,
            dtype="float32",
        )
        made[method] = compute(make_plan(recipe), options)
    return made
