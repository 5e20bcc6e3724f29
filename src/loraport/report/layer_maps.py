"""A layer's own maps, as its method declares them and as they travel in a report or a run log."""

from collections.abc import Mapping
from typing import Any

from loraport.engine.results import LayerMap, SmallMap
from loraport.report.charts import Colour, Drawing, Lines, Map, NumberUnit, Series
from loraport.report.content import Figure

KINDS: tuple[Colour, ...] = ("b", "a", "d", "c")


def declared(report: Mapping[str, Any]) -> tuple[LayerMap, ...]:
    """What a report says that the maps of its layers show."""
    return tuple(LayerMap.read(each) for each in report.get("maps", ()))


def layer_maps(shown: tuple[LayerMap, ...], layer: Mapping[str, Any]) -> list[Figure]:
    """The figures of one layer, in the order in which they are declared.

    Args:
        shown: what the maps show.
        layer: of a report or a run log.
    """
    found = SmallMap.read_all(layer.get("maps"))
    return [Figure(each.title, each.look, _drawing(each, found[each.key])) for each in shown if each.key in found]


def _drawing(about: LayerMap, found: SmallMap) -> Drawing:
    unit: NumberUnit = "number" if about.unit == "text" else about.unit
    across = found.first(1)
    if about.lines:
        width = across[1] - across[0] if len(across) > 1 else 1
        places = [first + 1 + (min(width, found.of[1] - first) - 1) / 2 for first in across]
        series = tuple(
            Series(label, tuple(zip(places, row, strict=True)), KINDS[at % len(KINDS)])
            for at, (label, row) in enumerate(zip(about.lines, found.values(), strict=False))
        )
        return Lines(series, about.columns, about.rows, unit, level=about.level)
    names = [tuple(str(first + 1) for first in found.first(side)) for side in (0, 1)]
    axes = [
        f"{name} from" if found.of[side] > (found.rows, found.columns)[side] else name
        for side, name in enumerate((about.rows, about.columns))
    ]
    low, high = min(found.low, 0.0), found.high if about.high is None else max(found.high, about.high)
    return Map(found.values(), axes[1], axes[0], names[1], names[0], unit, low, high, square=True)
