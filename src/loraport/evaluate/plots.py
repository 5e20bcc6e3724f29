"""Pictures of the evidence: quality against function with intervals, and contact sheets. Matplotlib loads late."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from loraport.core.bootstrap import Estimate
from loraport.evaluate.run import ANCHORS, HIGHER_IS_BETTER, SHOWN, Evidence, ScoredCell
from loraport.report import Comparison, Measure, Row, Score, figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "direct": "#b06026",
    "paper": "#167c80",
    "control": "#7a7f8a",
    "rival": "#8a5fb0",
    "sweep": "#9bb7b8",
    "ours": "#c2185b",
}
_MARKERS = "osD^v<>PX*hd8p"
_ANCHORED, _DARK = {"B": "x", "C": "+"}, "#444444"


def quality_against_function(evidence: Evidence, *, function: str, quality: str, labels: Sequence[str]) -> bytes:
    """A PNG with one panel a (LoRA, target): every method as a point with 95 % intervals on both axes.

    Better is always up. The dark cross is source + LoRA (B), the dark plus the target without the LoRA (C); the line
    joins the strengths of direct reuse.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [lora.name for lora in evidence.family.loras]
    columns = [target.name for target in evidence.family.targets]
    figure = Figure(figsize=(4.1 * len(columns) + 2.2, 3.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    marks: dict[str, tuple[str, str]] = {}
    for panel in axes.flat:
        panel.set_axis_off()
    for lora, target in evidence.pairs():
        panel = axes[rows.index(lora)][columns.index(target)]
        panel.set_axis_on()
        _panel(evidence, panel, lora, target, function, quality, labels, marks)
    anchors = {ANCHORS[name]: (marker, _DARK) for name, marker in _ANCHORED.items()}
    handles = [
        axes.flat[0].plot([], [], marker=marker, color=colour, linestyle="", label=label)[0]
        for label, (marker, colour) in (anchors | marks).items()
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=7, frameon=False)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": ""})
    return buffer.getvalue()


def _panel(
    evidence: Evidence,
    panel: "Axes",
    lora: str,
    target: str,
    function: str,
    quality: str,
    labels: Sequence[str],
    marks: dict[str, tuple[str, str]],
) -> None:
    cells = [cell for cell in evidence.of_pair(lora, target) if cell.label in labels]
    for cell in (evidence.cell(lora, "", "B"), evidence.cell(lora, target, "C")):
        x, y = cell.estimates[function], cell.estimates[quality]
        panel.plot([x.value], [y.value], _ANCHORED[cell.label], color=_DARK, markersize=9, markeredgewidth=2)
    reuse = [cell for cell in evidence.curve(lora, target).values() if cell in cells]
    path = [(cell.estimates[function].value, cell.estimates[quality].value) for cell in reuse]
    panel.plot(*zip(*path, strict=True), color=_COLOURS["direct"], linewidth=0.8, alpha=0.6)
    for cell in cells:
        assert cell.variant is not None
        marks.setdefault(cell.label, (_MARKERS[len(marks) % len(_MARKERS)], _COLOURS[cell.variant.role]))
        marker, colour = marks[cell.label]
        x, y = cell.estimates[function], cell.estimates[quality]
        panel.errorbar(
            [x.value],
            [y.value],
            xerr=_bars(x),
            yerr=_bars(y),
            marker=marker,
            color=colour,
            markersize=5,
            elinewidth=0.7,
            alpha=0.85,
        )
    panel.set_title(f"{lora} on {target}", fontsize=9)
    panel.set_xlabel(f"function: {function}", fontsize=8)
    panel.set_ylabel(f"quality: {quality}", fontsize=8)
    panel.tick_params(labelsize=7)
    if not HIGHER_IS_BETTER[quality]:
        panel.invert_yaxis()


def _bars(estimate: Estimate) -> list[list[float]]:
    low, high = estimate.interval()
    return [[max(estimate.value - low, 0.0)], [max(high - estimate.value, 0.0)]]


def contact_sheet(evidence: Evidence, lora: str, target: str, labels: Sequence[str]) -> bytes:
    """A PNG: the first eight prompts (not the best), the anchors and some methods, with two scores a row."""
    rows = [
        _row(evidence.cell(lora, "", "A"), "source", "baseline"),
        _row(evidence.cell(lora, "", "B"), "source + LoRA", "reference"),
        _row(evidence.cell(lora, target, "T"), "the same in the target's steps", "baseline"),
        _row(evidence.cell(lora, target, "C"), f"target {target}", "baseline"),
    ]
    best = evidence.best(lora, target).label
    for cell in evidence.of_pair(lora, target):
        if cell.label in labels or cell.label == best:
            assert cell.variant is not None
            label = cell.label + (" (its best)" if cell.label == best else "")
            rows.append(_row(cell, label, "baseline" if cell.variant.role == "direct" else "result"))
    comparison = Comparison(
        captions=tuple(("",) for _ in range(SHOWN)),
        rows=tuple(rows),
        measures=(
            Measure("taught", "P(taught)", "probability of what the LoRA was to teach", "higher"),
            Measure("faults", "faults a clip", "no shape or two, ghosts, blur", "lower", high=2.0),
        ),
        scored=evidence.prompts[lora] * evidence.scale.seeds,
    )
    return figures.still(comparison, scores=("taught", "faults"), cell=64)


def _row(cell: ScoredCell, label: str, kind: str) -> Row:
    clips = cell.shown.permute(0, 2, 3, 4, 1).contiguous().numpy().astype(np.uint8)
    scores = {name: Score(cell.estimates[name].value, cell.estimates[name].error) for name in ("taught", "faults")}
    return Row(cell.label, label, "", clips, scores, kind)
