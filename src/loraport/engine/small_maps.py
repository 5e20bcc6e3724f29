"""The maps of a layer as they travel: a byte a number, so that those of a large model fit into a log and a page."""

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from loraport.methods.maps import MapValues

_STEPS = 255
_MOST = 1 << 16  # numbers of one map


@dataclass(frozen=True, slots=True)  # a job on many LoRAs holds those of every layer of each
class SmallMap:
    """A matrix of which every number is one of 256 between the smallest and the largest.

    Attributes:
        rows, columns: its size.
        of: how many things the rows and the columns stand for, all of them for equally many but the last.
        low, high: the smallest and the largest number.
        levels: a byte a number, row by row: 0 is the smallest, 255 the largest.
    """

    rows: int
    columns: int
    of: tuple[int, int]
    low: float
    high: float
    levels: bytes

    @classmethod
    def packed(cls, given: MapValues) -> "SmallMap | None":
        """Of a method's numbers; None if one of them is none or there are none."""
        numbers = [value for row in given.values for value in row]
        if not numbers or not all(map(math.isfinite, numbers)):
            return None
        low, high = min(numbers), max(numbers)
        span = high - low or 1.0  # no quotient of 255 and it: that of a tiny one is infinite
        levels = bytes(round((value - low) / span * _STEPS) for value in numbers)
        columns = len(given.values[0])
        return cls(len(given.values), columns, given.of, _short(low), _short(high), levels)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON; the levels in base64."""
        return asdict(self) | {"of": list(self.of), "levels": base64.b64encode(self.levels).decode("ascii")}

    @classmethod
    def read(cls, told: Any) -> "SmallMap | None":
        """Of what `to_json` gave, by way of a file; None if that is none."""
        try:
            levels = base64.b64decode(told["levels"], validate=True)
            found = cls(**{**told, "of": (int(told["of"][0]), int(told["of"][1])), "levels": levels})
            sides = (found.rows, found.columns, *found.of)
            sound = all(isinstance(each, int) and each > 0 for each in sides)
            sound = sound and found.rows <= found.of[0] and found.columns <= found.of[1]
            sound = sound and found.rows * found.columns == len(levels) <= _MOST
            return found if sound and all(math.isfinite(each) for each in (found.low, found.high)) else None
        except (TypeError, ValueError, KeyError, IndexError):  # binascii.Error is a ValueError
            return None

    @classmethod
    def read_all(cls, told: Any) -> "dict[str, SmallMap]":
        """Those of a layer by their keys, of what `to_json` gave of each; what is no map is left out."""
        found = {key: cls.read(each) for key, each in told.items()} if isinstance(told, Mapping) else {}
        return {key: small for key, small in found.items() if small is not None}

    def first(self, side: int) -> tuple[int, ...]:
        """Of every row (side 0) or column (side 1) the first of the things that it stands for, from 0 on."""
        cells = (self.rows, self.columns)[side]
        width = -(-self.of[side] // cells)
        return tuple(width * at for at in range(cells))

    def values(self) -> tuple[tuple[float, ...], ...]:
        """The numbers, to within half a 255th of what lies between the smallest and the largest."""
        step = (self.high - self.low) / _STEPS
        numbers = [self.low + step * level for level in self.levels]
        return tuple(tuple(numbers[at : at + self.columns]) for at in range(0, len(numbers), self.columns))


def packed_maps(given: Mapping[str, MapValues]) -> dict[str, SmallMap]:
    """Those of a layer, by their keys."""
    found = {key: SmallMap.packed(values) for key, values in given.items()}
    return {key: small for key, small in found.items() if small is not None}


def _short(value: float) -> float:
    return float(f"{value:.5g}")
