"""What a method can draw of a layer: small matrices of what it has at hand, whatever the layer's size.

Light, as `columns.py`: pages need no tensors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from loraport.methods.columns import Unit

BANDS = 16
"""Most bands of a side; a band is some directions that follow each other, strongest first."""


@dataclass(frozen=True)
class LayerMap:
    """A drawing of a layer, as a page shows it where the layer is opened.

    Args:
        key: its name in `LayerOutput.maps`, the run log and the JSON.
        title: what it shows, in a few words.
        look: what to look for, in a sentence.
        rows: what the rows are, one of them; with `lines` what the values are.
        columns: what the columns are, one of them.
        unit: of the values, as of a `Column`.
        lines: where rows are drawn as lines over the columns: what each of them is.
        high: what the strongest shade stands for if no value is larger; None for the largest value.
        level: a value to hold lines against.
    """

    key: str
    title: str
    look: str
    rows: str
    columns: str
    unit: Unit = "number"
    lines: tuple[str, ...] = ()
    high: float | None = None
    level: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"lines": list(self.lines)}

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "LayerMap":
        """Of what `to_json` gave, of this version of the program or another."""
        known = {field.name: told[field.name] for field in fields(cls) if field.name in told}
        return cls(**known | {"lines": tuple(known.get("lines", ()))})


@dataclass(frozen=True)
class MapValues:
    """The numbers of a drawing, on the host.

    Args:
        values: rows of numbers.
        of: how many things the rows and the columns stand for; bands of `band_width` of them where there are more
            than rows or columns.
    """

    values: tuple[tuple[float, ...], ...]
    of: tuple[int, int]

    @classmethod
    def of_rows(cls, rows: Iterable[Iterable[float]], of: tuple[int, int]) -> "MapValues":
        """Of any rows of numbers."""
        return cls(tuple(tuple(row) for row in rows), of)

    @property
    def T(self) -> "MapValues":
        """Rows and columns exchanged."""
        return MapValues(tuple(zip(*self.values, strict=True)), self.of[::-1])


def band_width(count: int) -> int:
    """How many of `count` directions make a band; the last band may have fewer."""
    return max(-(-count // BANDS), 1)


def bands(count: int) -> int:
    """How many bands `count` directions make."""
    return -(-count // band_width(count))
