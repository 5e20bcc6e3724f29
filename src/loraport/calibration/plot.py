"""A calibration as a picture: the gap of everything that was tried, and what the target shows at each time step.

Matplotlib is imported when a picture is drawn, not before.
"""

import io
import textwrap
from typing import TYPE_CHECKING

from loraport.calibration.choice import Choice, Scored
from loraport.calibration.diagnosis import Diagnosis
from loraport.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, AFTER, FAINT = "#b06026", "#167c80", "#b9bec7"
OTHERS = ("#5b6573", "#8a5fa8", "#3f7fbf")  # of weight-space methods
MEASURES = (("share", "share of the source's change"), ("cosine", "direction: cosine to it"))
MOST_LABELS = 12  # on the axis of time


def check_drawing() -> None:
    """Raises UsageError unless pictures can be drawn, which is better known before a long run than after."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("a plot needs matplotlib, which is not installed", fix="pip install 'loraport[report]'")


def calibration_png(choice: Choice, diagnosis: Diagnosis) -> bytes:
    """A PNG: the gap of every candidate with its standard error, then share and direction by time step if measured.

    The line at 1 is where the target shows what the source shows.

    Raises:
        UsageError: matplotlib is not installed.
    """
    check_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 3 if diagnosis.before.steps else 1
    figure = Figure(figsize=(4.4 * panels + 0.6, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, panels, squeeze=False)[0]
    _gaps(grid[0], choice)
    for panel, (measure, title) in zip(grid[1:], MEASURES, strict=False):
        _steps(panel, diagnosis, measure, title)
    if panels > 1:
        grid[1].legend(frameon=False, fontsize=8)
    figure.suptitle(
        "\n".join(textwrap.wrap(diagnosis.sentence, 42 * panels)), fontsize=10, x=0.01, horizontalalignment="left"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": ""})  # the same numbers, the same bytes
    return buffer.getvalue()


def _gaps(panel: "Axes", choice: Choice) -> None:
    """A line a method, over the strength of the LoRA."""
    methods: dict[str, list[Scored]] = {}
    for each in sorted(choice.ranking, key=_strength):
        methods.setdefault(each.candidate.plan.recipe.method, []).append(each)
    others = iter(OTHERS)
    for method, scored in methods.items():
        colour, label = (BEFORE, "the LoRA as it is") if method == "direct" else (next(others, FAINT), method)
        panel.errorbar(
            [_strength(each) for each in scored],
            [each.gap.value for each in scored],
            [each.gap.error for each in scored],
            color=colour, marker="o", markersize=4, linewidth=1.3, capsize=3, label=label,
        )  # fmt: skip
    taken = choice.chosen
    panel.plot(
        [_strength(taken)], [taken.gap.value], "s", color="none", markeredgecolor=AFTER, markeredgewidth=2.5,
        markersize=12, zorder=3, label=f"chosen: {taken.label}",
    )  # fmt: skip
    panel.legend(frameon=False, fontsize=8)
    panel.set_xlabel("strength of the LoRA", fontsize=9)
    panel.set_title("gap to source + LoRA (smaller is nearer)", fontsize=10, loc="left")
    panel.set_ylim(bottom=0)
    _plain(panel)


def _strength(scored: Scored) -> float:
    return scored.candidate.plan.recipe.strength


def _steps(panel: "Axes", diagnosis: Diagnosis, measure: str, title: str) -> None:
    places = range(len(diagnosis.before.steps))
    drawn = [0.0, 1.0]
    for rows, label, colour, shape in (
        (diagnosis.before.steps, "the LoRA as it is", BEFORE, "o"),
        (diagnosis.after.steps, "as chosen", AFTER, "s"),
    ):
        values = [getattr(row, measure) for row in rows]
        drawn += values
        panel.plot(places, values, marker=shape, color=colour, label=label, markersize=5)
    every = -(-len(places) // MOST_LABELS)
    panel.set_xticks(list(places)[::every], [row.where for row in diagnosis.before.steps][::every])
    panel.set_xmargin(0.08)
    panel.set_xlabel("time step of the target, noise to clip", fontsize=9)
    panel.set_title(title, fontsize=10, loc="left")
    panel.axhline(1, color=FAINT, linewidth=1, linestyle="--", zorder=0)
    low, high = min(drawn), max(drawn)  # from 0 to 1 at least, so that two pictures can be held side by side
    panel.set_ylim(low - (0.04 if low < 0 else 0.0) * (high - low), high + 0.05 * (high - low))
    _plain(panel)


def _plain(panel: "Axes") -> None:
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8, length=3)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
