"""Where the parts of small drawings lie: a bar with its error, and lines with bands over a dial.

Numbers only; the page's template draws them and its style sheet colours them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from loraport.report.comparison import Curve, Measure, Score


@dataclass(frozen=True)
class Bar:
    """A bar from zero to the mean, with a whisker of one standard error on each side; places from 0 to 100."""

    start: float
    width: float
    low: float
    high: float


@dataclass(frozen=True)
class Tick:
    """A place on an axis and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One curve: `points` and `band` as SVG writes them, `dots` as (x, y); its label stands at the right end."""

    label: str
    kind: str
    points: str
    band: str
    dots: tuple[tuple[float, float], ...]
    label_at: float


@dataclass(frozen=True)
class Chart:
    """Curves over a dial, in pixels; `left`, `right`, `top` and `bottom` are the sides of the field."""

    title: str
    axis: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def bar(score: Score, measure: Measure) -> Bar:
    """The bar of a score over the measure's range."""

    def place(value: float) -> float:
        return round(100 * min(max((value - measure.low) / (measure.high - measure.low), 0.0), 1.0), 2)

    start, end = sorted((place(0.0), place(score.mean)))
    return Bar(start, round(end - start, 2), place(score.mean - score.error), place(score.mean + score.error))


def chart(curves: Sequence[Curve], measure: Measure, axis: str) -> Chart:
    """Curves with bands of one standard error."""
    width, height, left, right, top, bottom = 430, 230, 40, 300, 12, 196
    xs = [x for curve in curves for x, _ in curve.points]
    tops = [score.mean + score.error for curve in curves for _, score in curve.points]
    bottoms = [score.mean - score.error for curve in curves for _, score in curve.points]
    low, high = min([*bottoms, measure.low]), max(tops) * 1.05
    first, last = min(xs), max(xs)

    def px(x: float) -> float:
        return round(left + (right - left) * (x - first) / ((last - first) or 1), 1)

    def py(y: float) -> float:
        return round(top + (bottom - top) * (high - y) / ((high - low) or 1), 1)

    places = _apart([py(curve.points[-1][1].mean) for curve in curves])
    lines = []
    for curve, at in zip(curves, places, strict=True):
        dots = tuple((px(x), py(score.mean)) for x, score in curve.points)
        over = [(px(x), py(score.mean + score.error)) for x, score in curve.points]
        under = [(px(x), py(score.mean - score.error)) for x, score in reversed(curve.points)]
        lines.append(Line(curve.label, curve.kind, _points(dots), _points([*over, *under]), dots, at))
    levels = [low + (high - low) * step / 4 for step in range(5)]
    return Chart(
        title=measure.title,
        axis=axis,
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=tuple(Tick(px(x), f"{x:g}") for x in dict.fromkeys(xs)),
        y_ticks=tuple(Tick(py(y), measure.show(y)) for y in levels),
        lines=tuple(lines),
    )


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)


def _apart(places: list[float], gap: float = 13.0) -> list[float]:
    """Push label positions apart so that none covers another, keeping their order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    return moved
