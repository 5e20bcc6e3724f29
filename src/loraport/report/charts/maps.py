"""A matrix as shaded cells."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from loraport.report.charts.axes import CHARACTER, WIDTH, NumberUnit, Tick, number, sparse, thinned

LEVELS = 6
"""Shades of a map: 0 to 6, or -3 to 3."""
MOST_CELLS = 64  # on a side of a map; larger ones are averaged


@dataclass(frozen=True)
class MapLayout:
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
    unit: NumberUnit = "number"
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
        if same := self._same():
            return f"{size}: {same}"
        least, most = min(found), max(found)
        ends = [f"{number(v, self.unit)} at {self._name(r, c)}" for v, r, c in (least, most)]
        return f"{size}: from {ends[0]} to {ends[1]}"

    def _name(self, row: int, column: int) -> str:
        return ", ".join(
            f"{axis} {names[at] if at < len(names) else at + 1}"
            for axis, names, at in ((self.y, self.rows, row), (self.x, self.columns, column))
        )

    def layout(self) -> MapLayout:
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
        same = self._same()
        column_names = self.columns if fits and self.columns else tuple(str(at + 1) for at in range(columns))
        names = row_names or [str(at + 1) for at in range(rows)]
        if not fits:  # averaged: only the ends are told, by their own numbers
            column_names, names = (), []
        across = [Tick(round(left + wide * (at + 0.5), 1), _short(text)) for at, text in enumerate(column_names)]
        down = [Tick(round(top + high * (at + 0.5), 1), text) for at, text in enumerate(names)]
        return MapLayout(
            left, top, round(wide, 3), round(high, 3), columns, rows,
            shades=tuple(self._shades(values, low, top_end)),
            x_ticks=tuple(thinned(across)),
            y_ticks=tuple(sparse(down)),
            key=() if same else tuple(_shade_names(self.diverging)),
            low=same or number(low, self.unit), middle="0" if self.diverging and not same else "",
            top_end="" if same else number(top_end, self.unit), height=bottom + 52,
        )  # fmt: skip

    def _found(self) -> list[float]:
        return [value for row in self.values for value in row if _is_number(value)] or [0.0]

    def _same(self) -> str:
        """What to say in place of a scale without a length; "" where the values, or the ends that are set, differ."""
        found = self._found()
        if self.high is not None or min(found) < max(found):
            return ""
        if found[0] == 0:
            return "nothing here"
        return f"{number(found[0], self.unit)} everywhere" if self.low is None and not self.diverging else ""

    def _ends(self) -> tuple[float, float]:
        found = self._found()
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


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


def _shade_names(diverging: bool) -> list[str]:
    half = LEVELS // 2
    below = [f"m{half - at}" for at in range(half)]
    return (
        [*below, "q0", *(f"p{at + 1}" for at in range(half))] if diverging else [f"q{at}" for at in range(LEVELS + 1)]
    )


def _level(value: float | None, low: float, high: float) -> int | None:
    if not _is_number(value):
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
    found = [value for value in values if _is_number(value)]
    return sum(found) / len(found) if found else None
