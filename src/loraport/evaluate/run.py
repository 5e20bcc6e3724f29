"""The evaluation: methods x LoRAs x targets, four anchors each, everything on the same prompts and noise.

    A  source            B  source + LoRA
    C  target            D  target + transferred LoRA

A and B depend on the LoRA, C on the target: they are sampled once. Another method costs only its D. Two more rows say
what restoration could cost: S and T are the source, without and with the LoRA, sampled as the target is, in its few
steps without guidance. Where they are good, whatever turns the target back towards the source looks good.
"""

import itertools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from loraport.core.bootstrap import Bootstrap, Estimate
from loraport.engine.events import Step
from loraport.evaluate import tasks
from loraport.evaluate.clips import ClipSampler, ClipSet, Networks, Scale
from loraport.evaluate.estimates import Reference, frechet_estimate, gain_ratio
from loraport.evaluate.family import Family, Lora, Model
from loraport.evaluate.judge import FEATURES, Judge
from loraport.evaluate.transfers import carry_over
from loraport.evaluate.variants import DISTILLATION_LORA, Variant
from loraport.store.store import Store
from loraport.version import __version__

FUNCTION = ("taught", "statistic")
"""Scores of what the LoRA was to teach: by the judge, and by a statistic that needs no learning."""
HIGHER_IS_BETTER = {
    "taught": True,
    "statistic": True,
    "accuracy": True,
    "faults": False,
    "frechet": False,
    "to_aim": False,
}
SHOWN = 8
DRAWS = 400
"""Of the bootstrap."""
ANCHORS = {
    "A": "source",
    "B": "source + LoRA",
    "C": "target",
    "S": "source in the target's steps",
    "T": "source + LoRA in the target's steps",
}


@dataclass(frozen=True, eq=False)
class ScoredCell:
    """One way of making the clips of one LoRA (on one target, unless it is A or B), scored.

    Attributes:
        lora, target: names; target is empty for A and B. label: of the variant, one of `ANCHORS`, or "real".
        variant: None for anchors.
        estimates: by measure: those of `HIGHER_IS_BETTER`, single attributes and faults, and the motion, more of
            which is neither better nor worse.
        gain_ratios: FGR by function score; None where the LoRA's gain on the source is within its noise.
        transfer: figures of the transfer (share of energy kept, rank, norm ratio, cosine...).
        shown: the first eight clips of the first seed, for contact sheets.
    """

    lora: str
    target: str
    label: str
    variant: Variant | None
    estimates: Mapping[str, Estimate]
    gain_ratios: Mapping[str, Estimate | None]
    transfer: Mapping[str, float]
    shown: UInt8[Tensor, "n 3 f h w"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """The outcome. Cells in the order: anchors of a LoRA, then its targets with their variants.

    `seconds` is the wall time, `sampling_seconds` the part that was spent sampling; what the cache holds costs none.
    """

    family: Family
    scale: Scale
    cells: tuple[ScoredCell, ...]
    prompts: Mapping[str, int]
    notes: tuple[str, ...]
    seconds: float
    sampling_seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    def cell(self, lora: str, target: str, label: str) -> ScoredCell:
        """The cell of this name. Raises KeyError."""
        for cell in self.cells:
            if (cell.lora, cell.target, cell.label) == (lora, target, label):
                return cell
        raise KeyError((lora, target, label))

    def pairs(self) -> list[tuple[str, str]]:
        """Every (LoRA, target) that was measured."""
        return list(dict.fromkeys((cell.lora, cell.target) for cell in self.cells if cell.variant))

    def of_pair(self, lora: str, target: str) -> list[ScoredCell]:
        """The variants on one target, in order."""
        return [cell for cell in self.cells if (cell.lora, cell.target) == (lora, target) and cell.variant]

    def curve(self, lora: str, target: str, name: str = "direct") -> dict[float, ScoredCell]:
        """A method on one target by its strengths, the weakest first; empty where it was not measured."""
        rows = [(cell.variant, cell) for cell in self.of_pair(lora, target)]
        found = {variant.strength: cell for variant, cell in rows if variant and variant.curve == name}
        return dict(sorted(found.items()))

    def best(self, lora: str, target: str, curve: str = "direct", by: str = "to_aim") -> ScoredCell:
        """A method at the strength that suits it best: nearest to source + LoRA, or by another measure.

        The strength is chosen on the same clips that are reported, which favours the method. Raises ValueError where it
        was not measured.
        """
        return min(self.curve(lora, target, curve).values(), key=lambda cell: cell.estimates[by].value)

    def to_json(self) -> dict[str, Any]:
        """Numbers only."""
        return {
            "loraport": __version__,
            "settings": dict(self.settings),
            "scale": {"prompts": dict(self.prompts), "seeds": self.scale.seeds, "seed": self.scale.seed},
            "machine": {"torch": torch.__version__, "python": platform.python_version(), "cpu": platform.machine()},
            "seconds": round(self.seconds, 1),
            "sampling_seconds": round(self.sampling_seconds, 1),
            "notes": list(self.notes),
            "best_direct": {f"{a} on {b}": self.best(a, b).label for a, b in self.pairs()},
            "cells": [_plain(cell) for cell in self.cells],
        }


def evaluate(
    family: Family,
    variants: Sequence[Variant],
    judge: Judge,
    *,
    scale: Scale,
    folder: Path,
    only: Callable[[Variant, Lora, Model], bool] | None = None,
    device: str = "cpu",
    on_event: Callable[[Step], None] | None = None,
) -> Evidence:
    """Run every variant for every LoRA and target of the family.

    Args:
        family: what is evaluated. variants: the methods. judge: the classifier.
        scale: prompts and seeds.
        folder: where transferred LoRAs and cached scores are kept; running again with the same folder only adds.
        only: leave out what it says no to.
        device: where clips are sampled, by torch's name.
        on_event: told about every finished cell.

    Raises:
        LoraportError: a transfer failed, or the settings do not fit.
    """
    began = time.perf_counter()
    tell = on_event or (lambda step: None)
    wanted = {
        (lora.name, target.name): [v for v in variants if only is None or only(v, lora, target)]
        for lora, target in itertools.product(family.loras, family.targets)
    }
    total = sum(len(rows) + 3 for rows in wanted.values() if rows) + 2 * len(family.loras)
    store, networks = Store(folder / "cache"), Networks()
    samplers = {
        lora.name: ClipSampler(family, tasks.get(lora.style), judge, scale, store, device, networks)
        for lora in family.loras
    }
    cells: list[ScoredCell] = []
    notes: list[str] = []
    for lora in family.loras:
        sampler = samplers[lora.name]
        bench = _Bench(sampler, lora, Bootstrap.of(len(sampler.prompts), draws=DRAWS), sampler.real())
        cells.append(bench.cell("real", "", sampler.ceiling()))
        whole = (lora.file, 1.0)
        for label, parts in (("A", ()), ("B", (whole,))):
            cells.append(bench.cell(label, "", sampler.clips(family.source, *parts)))
            tell(Step(f"{lora.name}: {ANCHORS[label]}", _done(cells), total))
        bench.anchors |= {cell.label: cell for cell in cells[-2:]}
        notes += bench.notes()
        for target in family.targets:
            if not wanted[lora.name, target.name]:
                continue
            alone = bench.cell("C", target.name, sampler.clips(target))
            bench.anchors["C"] = alone
            cells.append(alone)
            hurried = family.source.sampled_as(target)
            for label, parts in (("S", ()), ("T", (whole,))):
                cells.append(bench.cell(label, target.name, sampler.clips(hurried, *parts)))
                tell(Step(f"{lora.name}: {ANCHORS[label]}", _done(cells), total))
            for variant in wanted[lora.name, target.name]:
                clips, facts = _carried(sampler, lora, target, variant, folder)
                cells.append(bench.cell(variant.label, target.name, clips, variant, facts))
                tell(Step(f"{lora.name} on {target.name}: {variant.label}", _done(cells), total))
    return Evidence(
        family=family,
        scale=scale,
        cells=tuple(cells),
        prompts={name: len(sampler.prompts) for name, sampler in samplers.items()},
        notes=tuple(notes),
        seconds=time.perf_counter() - began,
        sampling_seconds=sum(sampler.seconds for sampler in samplers.values()),
        settings={"bootstrap_draws": DRAWS, "judge_features": FEATURES},
    )


def _carried(
    sampler: ClipSampler, lora: Lora, target: Model, variant: Variant, folder: Path
) -> tuple[ClipSet, Mapping[str, float]]:
    """The clips of a row, and figures of the transfer."""
    if variant.method == DISTILLATION_LORA:
        model = replace(target, drift_rank=variant.params["rank"])
        return sampler.clips(model, (lora.file, variant.strength)), {}
    file, facts = carry_over(sampler.family, lora, target, variant, sampler.task, folder)
    parts = [(file, strength) for strength in variant.by_step] or [(file, 1.0)]
    if variant.half:
        parts = [*parts, (lora.file, variant.strength)]
    return sampler.clips(target, *(reversed(parts) if variant.half == "second" else parts)), facts


def _done(cells: Sequence[ScoredCell]) -> int:
    """How many of the cells had to be sampled."""
    return sum(cell.label != "real" for cell in cells)


@dataclass(eq=False)
class _Bench:
    """Scores clip sets of one LoRA against its anchors."""

    sampler: ClipSampler
    lora: Lora
    bootstrap: Bootstrap
    reference: Reference
    anchors: dict[str, ScoredCell] = field(default_factory=dict)
    aim: ClipSet | None = None

    def cell(
        self,
        label: str,
        target: str,
        clips: ClipSet,
        variant: Variant | None = None,
        transfer: Mapping[str, float] | None = None,
    ) -> ScoredCell:
        estimates = {name: self.bootstrap.mean(values) for name, values in clips.scores.items()}
        estimates["frechet"] = frechet_estimate(self.bootstrap, clips.features, self.reference)
        if label == "B":
            self.aim = clips
        if self.aim is not None:
            estimates["to_aim"] = self.bootstrap.mean(clips.distance_to(self.aim))
        ratios = {} if variant is None else {name: self.gain(name, estimates[name]) for name in FUNCTION}
        return ScoredCell(
            self.lora.name, target, label, variant, estimates, ratios, transfer or {}, clips.clips[0, :SHOWN].clone()
        )

    def gain(self, name: str, D: Estimate) -> Estimate | None:
        A, B, C = (self.anchors[key].estimates[name] for key in "ABC")
        return gain_ratio(A, B, C, D)

    def notes(self) -> list[str]:
        A, B = self.anchors["A"].estimates, self.anchors["B"].estimates
        found = []
        for name in FUNCTION:
            gain = B[name] - A[name]
            text = f"{self.lora.name}: gain of '{name}' on the source {gain.value:.3f} ± {gain.error:.3f}"
            found.append(text + ("" if gain_ratio(A[name], B[name], A[name], B[name]) else ", within noise: no FGR"))
        return found


def _plain(cell: ScoredCell) -> dict[str, Any]:
    made: dict[str, Any] = {"lora": cell.lora, "target": cell.target, "label": cell.label}
    if cell.variant is not None:
        made |= {"method": cell.variant.method, "role": cell.variant.role, "params": dict(cell.variant.params)}
        made |= {"rank": cell.variant.rank, "amount": cell.variant.amount, "strength": cell.variant.strength}
        made |= {"by_step": list(cell.variant.by_step)} if cell.variant.by_step else {}
        made |= {"half": cell.variant.half} if cell.variant.half else {}
        made |= {"layers": cell.variant.layers} if cell.variant.layers else {}
    made["estimates"] = {name: plain_estimate(value) for name, value in cell.estimates.items()}
    made["gain_ratio"] = {name: value and plain_estimate(value) for name, value in cell.gain_ratios.items()}
    made["transfer"] = {name: float(f"{value:.5g}") for name, value in cell.transfer.items()}
    return made


def plain_estimate(estimate: Estimate) -> dict[str, float]:
    """Value, standard error and 95 % interval."""
    low, high = estimate.interval()
    facts = {"value": estimate.value, "error": estimate.error, "low": low, "high": high}
    return {name: float(f"{value:.5g}") for name, value in facts.items()}
