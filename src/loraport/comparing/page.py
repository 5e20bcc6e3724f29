"""A comparison as its page shows it."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from loraport.comparing.report import CompareReport, said
from loraport.comparing.variants import Variant
from loraport.metrics import measures
from loraport.report import compare_page
from loraport.report.compare_page import ComparePage, Interval, Scene, Way
from loraport.report.comparison import Measure

ROLES = {"source": "the source", "target": "the target"}


def write_compare_page(report: CompareReport, clip: Callable[[str, int, int], UInt8[np.ndarray, "f h w 3"]]) -> None:
    """Write the page of a comparison.

    Args:
        report: what was found.
        clip: the frames of a variant, a prompt and a seed.

    Raises:
        FileError: it cannot be written.
    """
    shots = shots_of(report)
    scenes = (Scene(report.prompts[p], s, tuple(clip(v.key, p, s) for v in report.variants)) for p, s in shots)
    compare_page.write(report.page, page_of(report), scenes, count=len(shots))


def page_of(report: CompareReport) -> ComparePage:
    """Texts and numbers of the page."""
    lora = next(one.lora for one in report.variants if one.lora is not None)
    return ComparePage(
        title=f"{lora.name}, side by side",
        lead=f"{report.family}: what the LoRA does on the source it was trained on, and what of it arrives on the "
        "target.",
        ways=tuple(Way(one.label, _note(one), one.kind) for one in report.variants),
        measures=tuple(_column(one) for one in report.measures),
        scores=tuple(
            {key: Interval(score.mean, score.low, score.high) for key, score in report.scores[one.key].items()}
            for one in report.variants
        ),
        clips=len(shots_of(report)),
        warnings=report.warnings,
        facts=tuple(_facts(report)),
    )


def shots_of(report: CompareReport) -> list[tuple[int, int]]:
    """The clips of each variant, as (prompt, seed)."""
    return [(p, s) for p in range(len(report.prompts)) for s in range(report.seeds)]


def _note(variant: Variant) -> str:
    return "" if variant.lora is None else f"{variant.lora.name} at {variant.strength:g}"


def _column(measure: measures.Measure) -> Measure:
    return Measure(measure.key, measure.title, measure.help, measure.better, digits=measure.digits)


def _facts(report: CompareReport) -> list[tuple[str, str]]:
    facts = []
    for role, settings in report.sampling.items():
        words = [f"{name} {_written(value)}" for name, value in said(settings).items()]
        facts.append((f"sampling of {ROLES[role]}", ", ".join(words) or "as its pipeline does by default"))
    if report.known:
        facts.append(("known of the target", report.known))
    facts += [("prompts", str(len(report.prompts))), ("seeds a prompt", str(report.seeds))]
    return facts


def _written(value: object) -> str:
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)
