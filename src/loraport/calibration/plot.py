"""The diagnosis as a picture: share and direction per time step and per group of layers, before and after.

Matplotlib is imported when a picture is drawn, not before.
"""

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loraport.calibration.diagnosis import Diagnosis, Shown, Table
from loraport.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, AFTER, FAINT = "#b06026", "#167c80", "#b9bec7"
MEASURES = (
    ("share", "share of the source's change that is shown"),
    ("cosine", "direction: cosine to the source's change"),
)
MOST_LABELS = 16  # on the axis of time


def check_drawing() -> None:
    """Raises UsageError unless pictures can be drawn, which is better known before a long run than after."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("a plot needs matplotlib, which is not installed", fix="pip install 'loraport[report]'")


def diagnosis_png(diagnosis: Diagnosis) -> bytes:
    """A PNG: time steps above, groups of layers below (where they were measured), with the sentence on top.

    Both columns have a line at 1, where the target shows what the source shows.

    Raises:
        UsageError: matplotlib is not installed.
    """
    check_drawing()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(diagnosis.groups.before)
    above, below = 2.7, 0.24 * rows + 1.0 if rows else 0.0
    figure = Figure(figsize=(11, above + below + 1.0), layout="constrained")
    grid = figure.subplots(2 if rows else 1, 2, squeeze=False, height_ratios=[above, below] if rows else [1])
    for panel, (measure, title) in zip(grid[0], MEASURES, strict=True):
        _steps(panel, diagnosis.steps, measure)
        panel.set_title(title, fontsize=10, loc="left")
    if rows:
        for panel, (measure, title) in zip(grid[1], MEASURES, strict=True):
            _groups(panel, diagnosis.groups, measure)
            panel.set_xlabel(title, fontsize=9)
        grid[1][0].set_ylabel("group of layers, alone", fontsize=9)
        grid[1][1].tick_params(labelleft=False)
    figure.suptitle("\n".join(textwrap.wrap(diagnosis.sentence, 125)), fontsize=11, x=0.01, ha="left")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), frameon=False, fontsize=9)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": ""})  # the same numbers, the same bytes
    return buffer.getvalue()


def _steps(panel: "Axes", table: Table, measure: str) -> None:
    places = range(len(table.before))
    for rows, label, colour, shape in (
        (table.before, "the LoRA as it is", BEFORE, "o"),
        (table.after, "after calibration", AFTER, "s"),
    ):
        panel.plot(places, _values(rows, measure), marker=shape, color=colour, label=label, markersize=5)
    every = -(-len(table.before) // MOST_LABELS)
    panel.set_xticks(list(places)[::every], [row.where for row in table.before][::every])
    panel.set_xmargin(0.08)
    panel.set_xlabel("time step of the target, noise to clip", fontsize=9)
    panel.axhline(1, color=FAINT, linewidth=1, linestyle="--", zorder=0)
    panel.set_ylim(*_limits(table, measure))
    _plain(panel)


def _groups(panel: "Axes", table: Table, measure: str) -> None:
    before, after = _values(table.before, measure), _values(table.after, measure)
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        panel.plot([old, new], [place, place], color=FAINT, linewidth=2, zorder=1)
    panel.plot(before, range(len(before)), "o", color=BEFORE, markersize=5)
    panel.plot(after, range(len(after)), "s", color=AFTER, markersize=5)
    panel.set_yticks(range(len(before)), [row.where for row in table.before])
    panel.set_ylim(len(before) - 0.5, -0.5)
    panel.axvline(1, color=FAINT, linewidth=1, linestyle="--", zorder=0)
    panel.set_xlim(*_limits(table, measure))
    panel.grid(axis="y", color="#eceef1", linewidth=0.8)
    _plain(panel)


def _plain(panel: "Axes") -> None:
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8, length=3)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _values(rows: Sequence[Shown], measure: str) -> list[float]:
    return [getattr(row, measure) for row in rows]


def _limits(table: Table, measure: str) -> tuple[float, float]:
    """From 0 to 1 at least, so that two pictures can be held side by side, with room for the marks at the ends."""
    values = [*_values(table.before, measure), *_values(table.after, measure), 0.0, 1.0]
    low, high = min(values), max(values)
    return low - (0.04 if low < 0 else 0.0) * (high - low), high + 0.05 * (high - low)
