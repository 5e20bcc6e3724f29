"""Curves over a common axis."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loraport.report.charts.axes import (
    CHARACTER,
    HEIGHT,
    WIDTH,
    Colour,
    NumberUnit,
    Tick,
    decades,
    nice,
    number,
    thinned,
)

MOST_DOTS = 12  # points of a line that are marked

Axis = Callable[[float], float]


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: in the legend.
        points: (x, y), in order of x; what is not finite is left out.
        kind: colour and stroke; "null" is for what chance would give.
        errors: half the height of the band around it, a number a point, or none.
        dots: points without a line between them.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    kind: Colour = "a"
    errors: tuple[float, ...] = ()
    dots: bool = False


@dataclass(frozen=True)
class Path:
    """A curve in pixels: `points` and `band` as SVG writes them, `dots` as (x, y); the `nth` of its kind."""

    label: str
    kind: str
    nth: int
    points: str
    band: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class LinesLayout:
    """The sides of what is drawn in, in pixels, with its ticks and curves."""

    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    paths: tuple[Path, ...]
    level: float | None
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class Lines:
    """Curves over a common axis.

    Attributes:
        series: the curves.
        x: what the axis is.
        y: what is drawn over it.
        unit: of y.
        log: whether y is drawn by its logarithm.
        names: what stands at x = 0, 1, 2, ... instead of numbers.
        level: a value to hold the curves against, drawn across.
    """

    series: tuple[Series, ...]
    x: str
    y: str
    unit: NumberUnit = "number"
    log: bool = False
    names: tuple[str, ...] = ()
    level: float | None = None
    shape: str = field(default="lines", init=False)

    def alt(self) -> str:
        """The curves in words."""
        return f"{self.y} over {self.x}: " + "; ".join(
            f"{each.label} {self._range([y for _, y in _finite(each.points)])}" for each in self.series
        )

    def _range(self, values: Sequence[float]) -> str:
        if not values:
            return "has no values"
        first, last, low, high = (
            number(value, self.unit) for value in (values[0], values[-1], min(values), max(values))
        )
        return f"from {first} to {last}, between {low} and {high}"

    def layout(self) -> LinesLayout:
        """Where everything lies."""
        kept = [(each, self._kept(each)) for each in self.series]
        ys = [y for _, points in kept for _, y, _ in points]
        ys += [y + side * error for _, points in kept for _, y, error in points for side in (-1, 1) if not self.log]
        ys += [] if self.level is None else [self.level]
        xs = [x for _, points in kept for x, _, _ in points] or [0.0, 1.0]
        low, high = self._ends(ys)
        ticks = decades(low, high) if self.log else nice(low, high)
        labels = [number(value, self.unit) for value in ticks]
        left = 8 + CHARACTER * max((len(label) for label in labels), default=0)
        right, top, bottom = WIDTH - 8, 8, HEIGHT - 34
        first, last = min(xs), max(xs)
        scale = math.log10 if self.log else float

        def px(x: float) -> float:
            return round(left + (right - left) * ((x - first) / (last - first) if last > first else 0.5), 1)

        def py(y: float) -> float:
            share = (scale(high) - scale(y)) / ((scale(high) - scale(low)) or 1)
            return round(top + (bottom - top) * min(max(share, 0.0), 1.0), 1)

        return LinesLayout(
            left, right, top, bottom,
            x_ticks=tuple(thinned([Tick(px(x), text) for x, text in self._x_labels(xs)])),
            y_ticks=tuple(Tick(py(value), label) for value, label in zip(ticks, labels, strict=True)),
            paths=tuple(
                _path(each, [one.kind for one, _ in kept[:at]].count(each.kind), points, px, py, log=self.log)
                for at, (each, points) in enumerate(kept)
            ),
            level=None if self.level is None else py(self.level),
        )  # fmt: skip

    def _kept(self, series: Series) -> list[tuple[float, float, float]]:
        errors = series.errors or (0.0,) * len(series.points)
        kept = [(x, y, e) for (x, y), e in zip(series.points, errors, strict=True) if math.isfinite(x + y + e)]
        return [point for point in kept if point[1] > 0] if self.log else kept

    def _ends(self, ys: Sequence[float]) -> tuple[float, float]:
        if self.log:
            found = [y for y in ys if y > 0] or [1.0, 10.0]
            return min(found) * 0.9, max(found) * 1.1
        low, high = min([0.0, *ys]), max([0.0, *ys])
        return (low * 1.05, high * 1.05) if high > low else (0.0, 1.0)

    def _x_labels(self, xs: Sequence[float]) -> list[tuple[float, str]]:
        if self.names:
            return [(float(at), name) for at, name in enumerate(self.names) if min(xs) <= at <= max(xs)]
        places = sorted(set(xs))
        if len(places) > 8 or any(len(f"{x:g}") > 4 for x in places):
            places = [tick for tick in nice(places[0], places[-1]) if places[0] <= tick <= places[-1]]
        return [(x, number(x)) for x in places]


def _path(
    series: Series, nth: int, points: Sequence[tuple[float, float, float]], px: Axis, py: Axis, *, log: bool
) -> Path:
    dots = tuple((px(x), py(y)) for x, y, _ in points)
    band = ""
    if series.errors and not log:
        over = [(px(x), py(y + e)) for x, y, e in points]
        under = [(px(x), py(y - e)) for x, y, e in reversed(points)]
        band = _written([*over, *under])
    few = series.dots or len(dots) <= MOST_DOTS
    return Path(series.label, series.kind, nth, "" if series.dots else _written(dots), band, dots if few else ())


def _written(places: Sequence[tuple[float, float]]) -> str:
    digits = 1 if len(places) <= MOST_DOTS else 0  # of many points none is seen so exactly
    return " ".join(f"{round(x, digits):g},{round(y, digits):g}" for x, y in places)


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
