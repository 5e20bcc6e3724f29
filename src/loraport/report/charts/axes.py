"""What drawings share: numbers as they are printed, round places on an axis, labels that do not run into each other."""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

NumberUnit = Literal["number", "share", "count"]
Colour = Literal["a", "b", "c", "d", "null", "reference", "baseline", "result"]
"""Colours and strokes; "null" is for what chance would give."""

WIDTH, HEIGHT = 340, 190
CHARACTER, LINE = 5.6, 10.0  # width and height of one at 10.5 px, about


@dataclass(frozen=True)
class Tick:
    """A place on an axis and its label."""

    at: float
    text: str


def number(value: float | None, unit: NumberUnit = "number") -> str:
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


def nice(low: float, high: float) -> list[float]:
    """About four round numbers from low to high."""
    if not high > low:
        return [low]
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * at, 12) for at in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Round numbers from low to high on a logarithmic axis: at least two, at most five."""
    ticks: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(ticks) >= 2:
            break
    return ticks[:: -(-len(ticks) // 5)] if ticks else [low, high]


def thinned(ticks: list[Tick]) -> list[Tick]:
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


def sparse(ticks: list[Tick]) -> list[Tick]:
    """Ticks down an even axis, so many that their lines of text do not touch."""
    if len(ticks) < 2:
        return ticks
    return ticks[:: max(1, math.ceil(LINE / (ticks[1].at - ticks[0].at)))]
