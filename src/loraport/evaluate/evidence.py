"""`make evidence`: run the rows of the evidence and leave numbers, tables, plots and contact sheets in a folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport import files, writable
from loraport.calibration.plot import check_drawing
from loraport.engine.events import Step
from loraport.errors import UsageError
from loraport.evaluate import curves, drift, foretell, plots, tables, variants
from loraport.evaluate.clips import Scale
from loraport.evaluate.family import Family, Lora, Model
from loraport.evaluate.judge import Judge
from loraport.evaluate.run import Evidence, evaluate
from loraport.evaluate.variants import Variant
from loraport.wording import count

FULL = Scale(prompts=64, seeds=2)
QUICK = Scale(prompts=16, seeds=2)
SOME_TARGETS = ("dmd",)
TWO_TARGETS = ("dmd", "self-forcing")
FEW_LORAS = ("outline", "zigzag")
"""Where rows of a shorter reach are measured; a family that has none of these names uses its first."""


@dataclass(frozen=True)
class EvidenceFiles:
    """The files that were written, and the evidence."""

    folder: Path
    numbers: Path
    tables: Path
    pictures: tuple[Path, ...]
    evidence: Evidence


def make_evidence(
    family: Family,
    judge: Judge,
    rows: Sequence[Variant],
    output: Path,
    *,
    scale: Scale,
    held_out: bool = False,
    device: str = "cpu",
    on_event: Callable[[Step], None] | None = None,
) -> EvidenceFiles:
    """Evaluate and write. Running again with the same folder takes what was sampled before from its cache.

    Args:
        family: the models and LoRAs.
        judge: the classifier.
        rows: what is measured.
        output: the folder.
        scale: prompts and seeds.
        held_out: measure on pairs with a target or LoRA that is held out, instead of on all others.
        device: where clips are sampled, by torch's name.
        on_event: told about every finished cell.

    Raises:
        LoraportError: a transfer failed, the folder cannot be written, no pair is left to measure, or matplotlib is
            not installed.
    """
    check_drawing()
    if not any(
        held_out == (lora.held_out or target.card.held_out) for target in family.targets for lora in family.loras
    ):
        raise UsageError(
            f"what was named is {'not ' if held_out else ''}held out",
            fix="leave out --held-out" if held_out else "add --held-out",
        )
    writable.claim_folder(
        output, ("evidence.json", "tables.md", "*-against-*.png", "sheet-*.png", "work"), "evaluation"
    )
    if not held_out:
        family = family.for_choosing()
    names = [target.name for target in family.targets]
    some = _present(SOME_TARGETS, names)
    few = _present(FEW_LORAS, [lora.name for lora in family.loras])
    targets = {"all": names, "two": _present(TWO_TARGETS, names), "some": some, "few": some}

    def only(variant: Variant, lora: Lora, target: Model) -> bool:
        if held_out:
            return lora.held_out or target.card.held_out
        return target.name in targets[variant.reach] and (variant.reach != "few" or lora.name in few)

    work = output / "work"
    evidence = evaluate(family, rows, judge, scale=scale, folder=work, only=only, device=device, on_event=on_event)
    concentrations = {target.name: drift.summary(drift.concentrations(family, target)) for target in family.targets}
    numbers, text = output / "evidence.json", output / "tables.md"
    files.write_json(numbers, evidence.to_json() | {"drift": concentrations})
    files.write_text(text, _tables(evidence, concentrations))
    return EvidenceFiles(output, numbers, text, tuple(_pictures(evidence, output)), evidence)


def _present(wanted: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    return [name for name in names if name in wanted] or names[: len(wanted)]


def _tables(evidence: Evidence, concentrations: dict[str, Any]) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in evidence.prompts.items())
    calibrated = any(cell.label == "calibrated" for cell in evidence.cells)
    targets = _present(SOME_TARGETS, [target.name for target in evidence.family.targets])
    dials = [variant.label for variant in variants.DIALS if variant.label in curves.names(evidence)] + [
        "uniform-shrink"
    ]
    groups = [*(lora.name for lora in evidence.family.loras), *(target.name for target in evidence.family.targets)]
    parts = [
        f"{count(evidence.scale.seeds, 'seed')}, prompts: {counts}; {evidence.seconds:.0f} s.\n",
        "## Reuse of the LoRA as it is\n",
        tables.reuse_table(evidence),
        "## All rows\n",
        tables.main_table(evidence),
        "## Every method at the strength that brings it nearest to source + LoRA, against reuse at its own\n",
        curves.best_table(evidence),
        "The same, both by Frechet distance:\n",
        curves.best_table(evidence, by="frechet"),
        *(f"Only {name}:\n\n{curves.best_table(evidence, targets=(name,))}" for name in targets),
        "## Over strengths\n",
        *(curves.curve_table(evidence, measure) for measure in tables.TITLES),
        "## Distance to source + LoRA by both dials, less that of reuse at strength 1\n",
        *(curves.surface_table(evidence, name, target) for target in targets[:1] for name in dials),
        "## The strength of reuse, foretold from weights\n",
        foretell.table(evidence),
        "## Row against row\n",
        tables.contrast_table(evidence),
        *(f"Only {name}:\n\n{tables.contrast_table(evidence, (name,))}" for name in groups),
    ]
    if calibrated:
        parts += ["## Calibration: each choice against all defaults\n", tables.ablation_table(evidence)]
        parts += ["## Calibration: what was taken, and the cost\n", tables.cost_table(evidence)]
    parts += [
        "## The LoRA's gain on its own source\n",
        "\n".join(f"- {note}" for note in evidence.notes) + "\n",
        "## Drift\n",
        _drift_table(concentrations),
    ]
    for lora, target in evidence.pairs():
        parts += [f"## {lora} on {target}\n", tables.pair_table(evidence, lora, target)]
    return "\n".join(parts)


def _drift_table(concentrations: dict[str, Any]) -> str:
    names = list(dict.fromkeys(name for summary in concentrations.values() for name in summary))
    rows = [
        [target, *(f"{s['mean']:.4g} ± {s['error']:.2g}" if (s := summary.get(name)) else "–" for name in names)]
        for target, summary in concentrations.items()
    ]
    return tables.markdown(["target", *names], rows)


def _pictures(evidence: Evidence, output: Path) -> list[Path]:
    shown = [*variants.QUICK, variants.CALIBRATED[0].label]
    made = []
    for function, quality in (("taught", "faults"), ("statistic", "frechet")):
        file = output / f"{quality}-against-{function}.png"
        picture = plots.quality_against_function(evidence, function=function, quality=quality, labels=shown)
        files.write_bytes(file, picture)
        made.append(file)
    for lora, target in evidence.pairs():
        file = output / f"sheet-{lora}-{target}.png"
        files.write_bytes(file, plots.contact_sheet(evidence, lora, target, variants.SHEET))
        made.append(file)
    return made
