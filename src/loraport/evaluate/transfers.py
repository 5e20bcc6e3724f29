"""Carrying a LoRA over as a row of the evidence says, by the engine and by calibration, as a user would."""

import re
from pathlib import Path

from loraport.adapters.added_lora import AddedLora
from loraport.calibration import CalibrationReport, CalibrationSettings, Conditions
from loraport.calibration.api import calibrate
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe
from loraport.engine.run import run
from loraport.evaluate.family import Family, Lora, Model
from loraport.evaluate.tasks import LoraTask
from loraport.evaluate.variants import CALIBRATE, Variant
from loraport.methods import registry
from loraport.sampling.prompts import tiny_prompts
from loraport.zoo import world


def carry_over(
    family: Family, lora: Lora, target: Model, variant: Variant, task: LoraTask, folder: Path
) -> tuple[Path, dict[str, float]]:
    """The transferred LoRA's file, and figures of the transfer for the record.

    Raises:
        LoraportError: the transfer failed.
    """
    if variant.method == CALIBRATE:
        return _calibrated(family, lora, target, variant, task, folder)
    return _transferred(family, lora, target, variant, folder)


def _transferred(
    family: Family, lora: Lora, target: Model, variant: Variant, folder: Path
) -> tuple[Path, dict[str, float]]:
    output = _output(folder, lora, target, variant)
    recipe = Recipe(
        lora=str(lora.file),
        source=str(family.source.folder),
        target=None if target.distill else str(target.folder),
        target_lora=tuple(AddedLora(file=str(file)) for file in target.distill),
        method=variant.method,
        params=dict(variant.params),
        rank=variant.rank if variant.rank != "auto" else _preset_rank(variant.method),
        amount=variant.amount,
        strength=variant.strength,
        layers=variant.layers,
        force=True,
    )
    # On networks as small as these keeping a layer costs more than making it.
    report = run(make_plan(recipe), output, RunOptions(cache="off", overwrite=True, log="off"))
    facts = {"rank": float(max(layer.rank_out for layer in report.layers))}
    facts["energy_kept"] = report.summary.energy_kept_total
    shared = set.intersection(*(set(layer.stats) for layer in report.layers))
    for name in sorted(shared):
        values = [layer.stats[name] for layer in report.layers]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            facts[name] = sum(map(float, values)) / len(values)
    return output, facts


def _output(folder: Path, lora: Lora, target: Model, variant: Variant) -> Path:
    slug = re.sub(r"[^a-z0-9.=]+", "-", variant.label.lower())
    return folder / "loras" / f"{lora.name}-{target.name}-{slug}.safetensors"


def _preset_rank(name: str) -> str:
    """The output rank that a preset asks for, or "auto"."""
    preset = registry.preset_of(name)
    return "auto" if preset is None or preset.rank is None else str(preset.rank)


def _calibrated(
    family: Family, lora: Lora, target: Model, variant: Variant, task: LoraTask, folder: Path
) -> tuple[Path, dict[str, float]]:
    """Calibrate, on prompts that the LoRA's training may have shown; what the models said is kept in the cache."""
    report = calibrate(
        lora.file,
        source=family.source.folder,
        target=target.folder,
        output=_output(folder, lora, target, variant),
        prompts=training_prompts(task),
        settings=CalibrationSettings(**dict(variant.params)),
        options=RunOptions(cache=str(folder / "cache"), overwrite=True, log="off"),
    )
    return report.output or folder, _figures(report)


def training_prompts(task: LoraTask) -> Conditions:
    """Prompts with which the LoRA acts, in an order of its own; none of those that it is measured on."""
    known = world.draw_prompts(len(world.all_prompts()), seed=7_919)
    return tiny_prompts(prompts=[prompt for prompt in known if task.teaches(prompt)])


def _figures(report: CalibrationReport) -> dict[str, float]:
    choice = report.choice
    figures = {
        "rank": float(max(layer.rank_out for layer in report.transfer.layers)),
        "strength": report.recipe.strength,
        "reuse": float(report.recipe.method == "direct"),
        "gap": choice.chosen.gap.value,
        "gap_as_it_is": choice.as_it_is.gap.value,
        "share_in_clips_before": choice.as_it_is.effect.clips.share,
        "share_in_clips_after": choice.chosen.effect.clips.share,
    }
    return figures | {f"passes_{role}": float(count) for role, count in report.passes.items()}
