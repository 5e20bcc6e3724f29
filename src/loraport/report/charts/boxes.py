"""Where one value stands among others of its kind."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Box:
    """A value among others of its kind: least, quarter, middle, three quarters, most."""

    label: str
    value: float
    text: str
    spread: tuple[float, ...]

    def across(self) -> tuple[float, ...]:
        """Quarters, middle and value, from 0 (the least) to 100 (the most)."""
        low, *inner, high = self.spread
        return tuple(round(100 * (at - low) / (high - low), 1) if high > low else 50.0 for at in (*inner, self.value))


@dataclass(frozen=True)
class Boxes:
    """Where values of one thing stand among those of all others."""

    boxes: tuple[Box, ...]
    shape: str = field(default="boxes", init=False)


def spread_of(values: Sequence[float]) -> tuple[float, ...]:
    """Least, lower quarter, middle, upper quarter, most."""
    return tuple(np.quantile(values, (0.0, 0.25, 0.5, 0.75, 1.0)).tolist())
