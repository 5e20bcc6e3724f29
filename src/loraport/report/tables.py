"""Results as plain tables: columns, raw values, and one way to print each value."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraport.engine.results import COLUMNS, Column
from loraport.wording import share


def show(column: Column, value: Any) -> str:
    """The printed form of a value; a missing one is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float) or column.unit == "text":
        return str(value)
    if column.unit == "share":
        return share(float(value))
    return f"{value:,d}" if isinstance(value, int) else f"{value:,.3g}"


@dataclass(frozen=True)
class Table:
    """Columns and rows; a row maps column keys to raw values."""

    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]

    def cells(self) -> list[list[str]]:
        """Every value as printed, a list a row."""
        return [[show(column, row.get(column.key)) for column in self.columns] for row in self.rows]


_PLACE = (
    Column("name", "layer", "", "text"),
    Column("shape", "shape", "output × input features", "text"),
    Column("method", "method", "what was done to this layer", "text"),
)
_HIDDEN = {"method", "seconds", "cached", "exact_norm", "drift_is_rounding"}  # told elsewhere, or the same in every row


def layer_table(report: Mapping[str, Any]) -> Table:
    """The per-layer table of a `TransferReport.to_json()` dictionary.

    The report says what its figures mean; a figure that it does not explain (an old log) keeps its own name. Columns
    that no layer fills are left out.
    """
    rows = [_flat(layer) for layer in report.get("layers", [])]
    known = {column.key: column for column in (*_PLACE, *columns_of(report))}
    present = {key for row in rows for key in row}
    methods = {row.get("method") for row in rows}
    hidden = _HIDDEN - ({"method"} if len(methods) > 1 else set())
    columns = [column for key, column in known.items() if key in present and key not in hidden]
    for key in dict.fromkeys(key for row in rows for key in row if key not in known and key not in hidden):
        text = any(isinstance(row.get(key), str) for row in rows)
        columns.append(Column(key, key.replace("_", " "), "", "text" if text else "number"))
    return Table(tuple(columns), tuple(rows))


def columns_of(report: Mapping[str, Any]) -> tuple[Column, ...]:
    """What a report says its figures mean; of one that does not, the engine's own."""
    found = tuple(Column(**column) for column in report.get("columns", []))
    return found or COLUMNS


def block_and_module(name: str) -> tuple[str, str]:
    """Split a layer name for a map of the model: `blocks.3.self_attn.q` gives (`3`, `self_attn.q`)."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdigit():
            return part, ".".join(parts[at + 1 :]) or ".".join(parts[:at])
    return "–", name


@dataclass(frozen=True)
class LayerGrid:
    """A figure of every layer, modules down and blocks across; None where there is no such layer."""

    blocks: tuple[str, ...]
    modules: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def model_grid(found: Sequence[tuple[str, float]]) -> LayerGrid:
    """Layers by (name, value) as a grid. Where two kinds of blocks have modules of one name, their own names tell."""
    places = {name: block_and_module(name) for name, _ in found}
    owners: dict[tuple[str, str], list[str]] = {}
    for name, place in places.items():
        owners.setdefault(place, []).append(name)
    shared = {place[1] for place, names in owners.items() if len(names) > 1}

    def module(name: str) -> str:
        block, rest = places[name]
        return f"{name.split(f'.{block}.')[0]}.{rest}" if rest in shared else rest

    values = {(module(name), places[name][0]): float(value) for name, value in found}
    blocks = sorted(
        {block for _, block in values}, key=lambda block: (not block.isdigit(), int(block) if block.isdigit() else 0)
    )
    modules = tuple(dict.fromkeys(name for name, _ in values))
    rows = tuple(tuple(values.get((name, block)) for block in blocks) for name in modules)
    return LayerGrid(tuple(blocks), modules, rows)


def mean_by_block(found: Iterable[tuple[int, float]]) -> tuple[tuple[float, float], ...]:
    """Block and mean of what its layers have, by (block, value)."""
    blocks: dict[int, list[float]] = {}
    for block, value in found:
        blocks.setdefault(block, []).append(value)
    return tuple((float(block), sum(values) / len(values)) for block, values in sorted(blocks.items()))


def summary_table(report: Mapping[str, Any]) -> Table:
    """The totals of a report as (setting, value) rows; nested values are written out."""
    columns = (Column("setting", "setting", "", "text"), Column("value", "value", "", "text"))
    rows = tuple({"setting": key.replace("_", " "), "value": written(key, value)} for key, value in _facts(report))
    return Table(columns, rows)


def _facts(report: Mapping[str, Any]) -> list[tuple[str, Any]]:
    facts = [(key, value) for key, value in report.get("summary", {}).items() if value not in (None, [], {}, ())]
    return [*facts, *((key, len(report[key])) for key in ("passthrough", "dropped") if report.get(key))]


def written(key: str, value: Any) -> str:
    """A setting or a total as printed, nested values with their names."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={written(k, v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list | tuple):
        value = [_only(key, item) for item in value]
        return ", ".join(f"({written(key, item)})" if isinstance(item, Mapping) else str(item) for item in value)
    if isinstance(value, float) and key.startswith("energy_kept"):
        return share(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def _only(key: str, item: Any) -> Any:
    """An item that says nothing besides what its list is called, as what it says."""
    filled = {k: v for k, v in item.items() if v is not None} if isinstance(item, Mapping) else {}
    return filled[key] if filled.keys() == {key} else item


def _flat(layer: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: value for key, value in layer.items() if key not in ("stats", "maps")}
    if "shape" in row:
        row["shape"] = " × ".join(str(size) for size in row["shape"])
    return {**row, **layer.get("stats", {})}
