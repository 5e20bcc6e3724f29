"""Values as bars, each beside what chance would give."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraport.report.charts.axes import Colour, NumberUnit, number


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
    unit: NumberUnit = "number"
    kind: Colour = "a"


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


def _reach(bar: Bar) -> float:
    return max(abs(value) for value in (bar.value, *bar.nulls.values(), 0.0) if math.isfinite(value))
