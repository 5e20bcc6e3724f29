"""A comparison as its page shows it."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from loraport.comparing.images import FirstFrame
from loraport.comparing.report import CompareReport, said
from loraport.comparing.variants import REFERENCE, Variant
from loraport.metrics import measures
from loraport.report import frame
from loraport.report.comparison import Measure
from loraport.report.content import Fact, Input, Page, Words
from loraport.report.scenes import Given, Interval, Making, Scene, SideBySide
from loraport.wording import count

ROLES = {"source": "the source", "target": "the target"}
Clips = Callable[[str, int, int], UInt8[np.ndarray, "f h w 3"]]
"""The frames of a variant, a prompt and a seed."""


def write_compare_page(report: CompareReport, clip: Clips) -> None:
    """Write the page of a comparison.

    Args:
        report: what was found.
        clip: the frames of a variant, a prompt and a seed.

    Raises:
        FileError: it cannot be written.
    """
    frame.write(report.page, page_of(report, clip))


def page_of(report: CompareReport, clip: Clips) -> Page:
    """Texts, numbers and clips of the page."""
    lora = next(one.lora for one in report.variants if one.lora is not None).named
    given = [_given(report, prompt.image) for prompt in report.prompts]
    shots = [(p, s) for p in range(len(report.prompts)) for s in range(report.seeds)]
    side = SideBySide(
        makings=tuple(Making(one.label, _note(one), one.kind) for one in report.variants),
        measures=tuple(_column(one) for one in report.measures),
        scores=tuple(
            {measure.key: _cell(report, one, measure) for measure in report.measures} for one in report.variants
        ),
        scenes=(
            Scene(report.prompts[p].text, s, tuple(clip(v.key, p, s) for v in report.variants), given[p])
            for p, s in shots
        ),
        count=len(shots),
        prompts=len(report.prompts),
    )
    return Page(
        words=Words(
            title=f"{lora.name}, side by side",
            lead=f"{report.family}: what the LoRA does on the source it was trained on, and how much of it arrives on "
            "the target.",
        ),
        warnings=report.warnings,
        side_by_side=side,
        inputs=tuple(_inputs(report)),
        done=tuple(_done(report)),
    )


def _given(report: CompareReport, image: FirstFrame | None) -> Given | None:
    """The image that clips begin with, under a name that no other one has."""
    if image is None:
        return None
    others = {one.image.file for one in report.prompts if one.image is not None} - {image.file}
    alone = all(file.name != image.file.name for file in others)
    return Given(image.file.name if alone else str(image.file), lambda: np.asarray(image.open()))


def _note(variant: Variant) -> str:
    names = dict.fromkeys(one.file.name for one in variant.placed)
    return f"{', '.join(names)} at {variant.strength:g}" if names else ""


def _column(measure: measures.ClipMeasure) -> Measure:
    return Measure(measure.key, measure.title, measure.help, measure.better, digits=measure.digits)


def _cell(report: CompareReport, variant: Variant, measure: measures.ClipMeasure) -> Interval:
    """What one variant has of one measure, with a word where not all of its clips have it."""
    score = report.scores[variant.key].get(measure.key)
    if score is None:
        return Interval(None, note="" if measure.pair and variant.key == REFERENCE else measure.absent)
    whole = len(report.prompts) * report.seeds
    note = "" if score.clips == whole else f"in {score.clips} of {whole} clips"
    return Interval(score.mean, score.low, score.high, note)


def _inputs(report: CompareReport) -> list[Input]:
    own = {placed.file for one in report.variants if one.key == REFERENCE for placed in one.placed}
    roles = [(file, "LoRA" if file in own else "transferred LoRA") for file in report.files]
    models = [Input(role, name, (report.family,)) for role, name in report.models.items()]
    images = dict.fromkeys(prompt.image for prompt in report.prompts if prompt.image is not None)
    return [
        *(Input(role, str(file), (), report.files[file]) for file, role in roles),
        *models,
        *(Input("image", str(one.file), (f"{one.width} x {one.height}",), one.digest) for one in images),
    ]


def _done(report: CompareReport) -> list[Fact]:
    facts = []
    for role, settings in report.sampling.items():
        words = [f"{name} {_written(value)}" for name, value in said(settings).items()]
        facts.append(Fact(f"sampling of {ROLES[role]}", ", ".join(words) or "as its pipeline does by default"))
    if report.known:
        facts.append(Fact("known of the target", report.known))
    facts += [Fact("prompts", str(len(report.prompts))), Fact("seeds a prompt", str(report.seeds))]
    if report.negative is not None:
        facts.append(Fact("negative prompt", report.negative))
    frames, height, width = report.size
    facts.append(Fact("size", f"{width} x {height}" + (f", {count(frames, 'frame')}" if frames > 1 else "")))
    facts.append(Fact("rendered", f"on {report.device}, weights in {report.precision}"))
    if any(measure.video for measure in report.measures):
        facts.append(Fact("frames a second", f"{report.fps:g}, as measured"))
    if report.not_measured:
        wanted = [f"{titles(name)}: {words}" for name, words in report.not_measured.items()]
        facts.append(Fact("not measured", "; ".join(wanted)))
    return facts


def titles(needs: str) -> str:
    """The heads of the columns that need this."""
    return ", ".join(measure.title for measure in measures.MEASURES if measure.needs == needs)


def _written(value: object) -> str:
    return ", ".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)
