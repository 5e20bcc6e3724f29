"""Carrying a LoRA over as a row of the evidence says, by the engine and by calibration, as a user would."""

import hashlib
import json
import re
from pathlib import Path

from loraport import files
from loraport.calibration import CalibrationReport, Conditions, Settings
from loraport.calibration.api import calibrate
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe, RunOptions
from loraport.engine.run import run
from loraport.evaluate.family import Family, Lora, Model, digest, file_digest
from loraport.evaluate.tasks import Task
from loraport.evaluate.variants import CALIBRATE, Variant
from loraport.methods import registry
from loraport.sampling.prompts import tiny_prompts
from loraport.zoo import world

CALIBRATED = 2
"""Part of the key of kept calibrations: raised when what they compute changes."""


def carry_over(
    family: Family, lora: Lora, target: Model, variant: Variant, task: Task, folder: Path
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
    slug = re.sub(r"[^a-z0-9.=]+", "-", variant.label.lower())
    output = folder / "loras" / f"{lora.name}-{target.name}-{slug}.safetensors"
    recipe = Recipe(
        lora=str(lora.file),
        source=str(family.source.folder),
        target=None if target.distill else str(target.folder),
        target_lora=str(target.distill) if target.distill else None,
        method=variant.method,
        params=dict(variant.params),
        rank=variant.rank if variant.rank != "auto" else _preset_rank(variant.method),
        amount=variant.amount,
        force=True,
    )
    report = run(make_plan(recipe), output, RunOptions(cache=str(folder / "cache"), overwrite=True, log="off"))
    facts = {"rank": float(max(layer.rank_out for layer in report.layers))}
    facts["energy_kept"] = report.summary.energy_kept_total
    shared = set.intersection(*(set(layer.stats) for layer in report.layers))
    for name in sorted(shared):
        values = [layer.stats[name] for layer in report.layers]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            facts[name] = sum(map(float, values)) / len(values)
    return output, facts


def _preset_rank(name: str) -> str:
    """The output rank that a preset asks for, or "auto"."""
    preset = registry.PRESETS.get(name)
    return "auto" if preset is None or preset.rank is None else str(preset.rank)


def _calibrated(
    family: Family, lora: Lora, target: Model, variant: Variant, task: Task, folder: Path
) -> tuple[Path, dict[str, float]]:
    """Calibrate, on prompts that the LoRA's training may have shown; kept, since it takes most of a minute."""
    settings = Settings(**dict(variant.params))
    parts = [digest(family.source), digest(target), file_digest(lora.file), settings.to_json(), CALIBRATED]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    output, record = (folder / "calibrated" / f"{key}{suffix}" for suffix in (".safetensors", ".json"))
    if not (output.is_file() and record.is_file()):
        report = calibrate(
            lora.file,
            source=family.source.folder,
            target=target.folder,
            output=output,
            prompts=probe_prompts(task),
            settings=settings,
            overwrite=True,
            keep=folder / "calibrated" / "parts",  # rows of a pair share what was measured
        )
        files.write_json(record, _figures(report))
    return output, json.loads(record.read_text(encoding="utf-8"))


def probe_prompts(task: Task) -> Conditions:
    """Prompts with which the LoRA acts, in an order of its own; none of those that it is measured on."""
    known = world.draw_prompts(len(world.all_prompts()), seed=7_919)
    return tiny_prompts(prompts=[prompt for prompt in known if task.teaches(prompt)])


def _figures(report: CalibrationReport) -> dict[str, float]:
    chosen = report.choice.chosen
    figures = {
        "rank": float(report.rank),
        "energy_kept": report.energy_kept,
        "fitted": float(not chosen.candidate.plain),
        "distance": chosen.distance,
        "distance_best_plain": report.choice.best_plain.distance,
        "seconds": report.seconds["all"],
    }
    for name, table in (("share", report.diagnosis.whole), ("share_in_clips", report.diagnosis.clips)):
        figures |= {f"{name}_before": table.before[0].share, f"{name}_after": table.after[0].share}
    figures |= {f"passes_{role}": float(count) for role, count in report.passes.items()}
    for name in ("guidance", "penalty", "anchor"):
        if name in chosen.candidate.settings:
            figures[name] = float(chosen.candidate.settings[name])
    gains = list(report.coefficients.values())
    return figures | ({"least_gain": min(gains), "largest_gain": max(gains)} if gains else {})
