"""Small drawings, described by their data: lines, a map, bars, and where one value stands among others.

Here is where things lie, in numbers, and what is said to those who cannot see them. `data/drawings.html.j2` writes them
as SVG without colours; the style sheet colours them, by light and by dark. A page of a large model holds thousands of
them, one set a layer, so they are small: matplotlib takes a tenth of a second and 20 kB for each.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Unit = Literal["number", "share", "count"]
Kind = Literal["a", "b", "c", "d", "null", "reference", "baseline", "result"]

_Axis = Callable[[float], float]

WIDTH, HEIGHT = 340, 190
LEVELS = 6
"""Shades of a map: 0 to 6, or -3 to 3."""
CHARACTER = 5.6  # width of one at 10.5 px, about
MOST_DOTS = 12  # points of a line that are marked
MOST_CELLS = 64  # on a side of a map; larger ones are averaged


@dataclass(frozen=True)
class Tick:
    """A place on an axis and its label."""

    at: float
    text: str


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
    kind: Kind = "a"
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
class Field:
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
    unit: Unit = "number"
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

    def layout(self) -> Field:
        """Where everything lies."""
        kept = [(each, self._kept(each)) for each in self.series]
        ys = [y for _, points in kept for _, y, _ in points]
        ys += [y + side * error for _, points in kept for _, y, error in points for side in (-1, 1) if not self.log]
        ys += [] if self.level is None else [self.level]
        xs = [x for _, points in kept for x, _, _ in points] or [0.0, 1.0]
        low, high = self._ends(ys)
        ticks = _decades(low, high) if self.log else _nice(low, high)
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

        return Field(
            left, right, top, bottom,
            x_ticks=tuple(_thinned([Tick(px(x), text) for x, text in self._x_labels(xs)])),
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
        if len(places) > 8 or any(len(number(x)) > 4 for x in places):
            places = [tick for tick in _nice(places[0], places[-1]) if places[0] <= tick <= places[-1]]
        return [(x, number(x)) for x in places]


@dataclass(frozen=True)
class Cells:
    """The parts of a drawn map: a path a shade, as strokes one cell high, moved and scaled, and its ticks in pixels."""

    left: float
    top: float
    wide: float
    high: float
    columns: int
    rows: int
    shades: tuple[tuple[str, str], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    key: tuple[str, ...]
    low: str
    middle: str
    top_end: str
    height: float
    width: int = WIDTH


@dataclass(frozen=True)
class Map:
    """A matrix as shaded cells, first row on top.

    Attributes:
        values: rows of numbers; None or what is not finite stays blank.
        x, y: what columns and rows are.
        columns, rows: their names; none for their numbers.
        unit: of the values.
        low, high: what the ends of the shades stand for; None for the smallest and largest value.
        diverging: shades on both sides of zero.
        square: cells as high as wide.
    """

    values: tuple[tuple[float | None, ...], ...]
    x: str
    y: str
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    unit: Unit = "number"
    low: float | None = None
    high: float | None = None
    diverging: bool = False
    square: bool = False
    shape: str = field(default="map", init=False)

    def alt(self) -> str:
        """The map in words."""
        found = [(value, r, c) for r, row in enumerate(self.values) for c, value in enumerate(row) if _is_number(value)]
        size = f"Map of {len(self.values)} by {len(self.values[0]) if self.values else 0}, {self.y} by {self.x}"
        if not found:
            return f"{size}, empty"
        least, most = min(found), max(found)
        ends = [f"{number(v, self.unit)} at {self._name(r, c)}" for v, r, c in (least, most)]
        return f"{size}: from {ends[0]} to {ends[1]}"

    def _name(self, row: int, column: int) -> str:
        return ", ".join(
            f"{axis} {names[at] if at < len(names) else at + 1}"
            for axis, names, at in ((self.y, self.rows, row), (self.x, self.columns, column))
        )

    def layout(self) -> Cells:
        """Where everything lies."""
        values = _averaged(self.values)
        rows, columns = len(values), max((len(row) for row in values), default=0)
        fits = rows == len(self.values) and columns == len(self.values[0]) if self.values else True
        row_names = [_short(name) for name in self.rows] if fits else []
        left = 10 + CHARACTER * max((len(name) for name in row_names), default=2)
        wide = (WIDTH - left - 8) / max(columns, 1)
        high = min(wide, 210 / max(rows, 1)) if self.square else min(max(15.0, 60 / max(rows, 1)), 300 / max(rows, 1))
        wide = high if self.square else min(wide, 40.0)
        top, bottom = 4.0, 4.0 + high * rows
        low, top_end = self._ends()
        column_names = self.columns if fits and self.columns else tuple(str(at + 1) for at in range(columns))
        names = row_names or [str(at + 1) for at in range(rows)]
        if not fits:  # averaged: only the ends are told, by their own numbers
            column_names, names = (), []
        across = [Tick(round(left + wide * (at + 0.5), 1), _short(text)) for at, text in enumerate(column_names)]
        down = [Tick(round(top + high * (at + 0.5), 1), text) for at, text in enumerate(names)]
        return Cells(
            left, top, round(wide, 3), round(high, 3), columns, rows,
            shades=tuple(self._shades(values, low, top_end)),
            x_ticks=tuple(_thinned(across)),
            y_ticks=tuple(_sparse(down, 10.0)),
            key=tuple(_shade_names(self.diverging)),
            low=number(low, self.unit), middle="0" if self.diverging else "", top_end=number(top_end, self.unit),
            height=bottom + 52,
        )  # fmt: skip

    def _ends(self) -> tuple[float, float]:
        found = [value for row in self.values for value in row if value is not None and math.isfinite(value)] or [0.0]
        low = min(found) if self.low is None else self.low
        high = max(found) if self.high is None else self.high
        if self.diverging:
            high = max(abs(low), abs(high)) or 1.0
            low = -high
        return low, high

    def _shades(self, values: Sequence[Sequence[float | None]], low: float, high: float) -> Iterator[tuple[str, str]]:
        names = _shade_names(self.diverging)
        paths: dict[str, list[str]] = {}
        for at, row in enumerate(values):
            start = 0
            levels = [_level(value, low, high) for value in row]
            for end in range(1, len(levels) + 1):
                if end < len(levels) and levels[end] == levels[start]:
                    continue
                level = levels[start]
                if level is not None and names[level] != "q0":  # which is as blank
                    paths.setdefault(names[level], []).append(f"M{start} {at}h{end - start}")
                start = end
        yield from ((name, "".join(parts)) for name, parts in paths.items())


@dataclass(frozen=True)
class Bar:
    """A value as a bar.

    Attributes:
        label: what it is of.
        value: how long the bar is, whichever its sign.
        nulls: name -> what chance alone would give, as marks across.
        unit: of the value.
        kind: its colour.
    """

    label: str
    value: float
    nulls: Mapping[str, float] = field(default_factory=dict)
    unit: Unit = "number"
    kind: Kind = "a"


@dataclass(frozen=True)
class Bars:
    """Values beside each other, from zero.

    Attributes:
        bars: from top to bottom.
        each: whether every bar has a scale of its own, because they measure different things.
    """

    bars: tuple[Bar, ...]
    each: bool = False
    shape: str = field(default="bars", init=False)

    def alt(self) -> str:
        """The bars in words."""
        told = []
        for bar in self.bars:
            nulls = ", ".join(f"{name} {number(value, bar.unit)}" for name, value in bar.nulls.items())
            told.append(f"{bar.label} {number(bar.value, bar.unit)}" + (f" ({nulls})" if nulls else ""))
        return "Bars: " + "; ".join(told)

    @property
    def names(self) -> list[str]:
        """The null models, each once."""
        return list(dict.fromkeys(name for bar in self.bars for name in bar.nulls))

    def layout(self) -> list[dict[str, Any]]:
        """A row a bar, lengths from 0 to 100."""
        whole = max((_reach(bar) for bar in self.bars), default=0.0)
        rows = []
        for bar in self.bars:
            scale = 100 / ((_reach(bar) if self.each else whole) or 1.0)
            marks = [
                {"at": round(abs(value) * scale, 1), "nth": self.names.index(name)}
                for name, value in bar.nulls.items()
                if math.isfinite(value)
            ]
            length: float | None = round(abs(bar.value) * scale, 1) if math.isfinite(bar.value) else 0.0
            if self.each and not marks:
                length = None  # there is nothing to hold it against
            rows.append({"bar": bar, "text": number(bar.value, bar.unit), "length": length, "marks": marks})
        return rows


@dataclass(frozen=True)
class Place:
    """A value among others of its kind: least, quarter, middle, three quarters, most."""

    label: str
    value: float
    text: str
    spread: tuple[float, float, float, float, float]

    def across(self) -> tuple[float, ...]:
        """Quarters, middle and value, from 0 (the least) to 100 (the most)."""
        low, *inner, high = self.spread
        return tuple(round(100 * (at - low) / (high - low), 1) if high > low else 50.0 for at in (*inner, self.value))


@dataclass(frozen=True)
class Places:
    """Where values of one thing stand among those of all others."""

    places: tuple[Place, ...]
    shape: str = field(default="places", init=False)

    def alt(self) -> str:
        """The places in words."""
        return "; ".join(f"{each.label}: {each.text}" for each in self.places)


Drawing = Lines | Map | Bars | Places


def number(value: float | None, unit: Unit = "number") -> str:
    """A number as printed on an axis, with a true minus sign."""
    if value is None or not math.isfinite(value):
        return "–"
    if unit == "share":
        text = f"{100 * value:.3g} %"
    elif value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    else:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return text.replace("-", "−")


def spread_of(values: Sequence[float]) -> tuple[float, float, float, float, float]:
    """Least, lower quarter, middle, upper quarter, most."""
    found = sorted(values)

    def at(share: float) -> float:
        place = share * (len(found) - 1)
        below = int(place)
        above = min(below + 1, len(found) - 1)
        return found[below] + (found[above] - found[below]) * (place - below)

    return at(0.0), at(0.25), at(0.5), at(0.75), at(1.0)


def _path(
    series: Series, nth: int, points: Sequence[tuple[float, float, float]], px: _Axis, py: _Axis, *, log: bool
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


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _reach(bar: Bar) -> float:
    return max(abs(value) for value in (bar.value, *bar.nulls.values(), 0.0) if math.isfinite(value))


def _nice(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers from low to high."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * at, 12) for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Round numbers from low to high on a logarithmic axis: at least two, at most five."""
    ticks: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(ticks) >= 2:
            break
    return ticks[:: -(-len(ticks) // 5)] if ticks else [low, high]


def _thinned(ticks: list[Tick]) -> list[Tick]:
    """Ticks whose labels do not run into each other: evenly left out, where they lie evenly."""
    if len(ticks) < 2:
        return ticks
    wide = CHARACTER * max(len(tick.text) for tick in ticks) + 6
    room = min(after.at - before.at for before, after in itertools.pairwise(ticks))
    even = max(after.at - before.at for before, after in itertools.pairwise(ticks)) < 1.1 * room
    if even and room > 0:
        return ticks[:: max(1, math.ceil(wide / room))]
    kept = ticks[:1]
    for tick in ticks[1:]:
        kept += [tick] if tick.at - kept[-1].at >= wide else []
    return kept


def _sparse(ticks: list[Tick], gap: float) -> list[Tick]:
    if len(ticks) < 2:
        return ticks
    return ticks[:: max(1, math.ceil(gap / (ticks[1].at - ticks[0].at)))]


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


def _shade_names(diverging: bool) -> list[str]:
    half = LEVELS // 2
    below = [f"m{half - at}" for at in range(half)]
    return (
        [*below, "q0", *(f"p{at + 1}" for at in range(half))] if diverging else [f"q{at}" for at in range(LEVELS + 1)]
    )


def _level(value: float | None, low: float, high: float) -> int | None:
    if value is None or not math.isfinite(value):
        return None
    return round(LEVELS * min(max((value - low) / ((high - low) or 1), 0.0), 1.0))


def _averaged(values: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """A matrix of at most MOST_CELLS on a side."""
    rows, columns = len(values), max((len(row) for row in values), default=0)
    down, right = -(-rows // MOST_CELLS), -(-columns // MOST_CELLS)
    if down <= 1 and right <= 1:
        return [list(row) for row in values]
    return [
        [_mean([v for row in values[r : r + down] for v in row[c : c + right]]) for c in range(0, columns, right)]
        for r in range(0, rows, down)
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None and math.isfinite(value)]
    return sum(found) / len(found) if found else None
