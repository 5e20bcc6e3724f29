"""The page of a sweep as a whole: a row for each cell, and what the settings come to beside each other."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from loraport.engine.results import Column
from loraport.errors import FileError
from loraport.files import read_text
from loraport.report.charts import Bar, Bars, Colour
from loraport.report.content import Answer, Fact, Figure, Layers, Listing, Page, Words, is_number
from loraport.report.frame import render, write
from loraport.report.tables import Table, written
from loraport.wording import count

DRAWN = {"energy_kept": "Share kept by the rank", "change": "Change by the method"}
MOST_BARS, MOST_TARGETS = 30, 12  # of a chart, and of targets that have charts
MOST_WORDS = 200  # characters of why a cell failed, in the table
_LARGEST = 1 << 30
_NAME = Column("name", "LoRA", "the LoRA, named as its outputs are; opens the page of the cell if there is one", "text")
_TARGET = Column("target", "target", "the model it was transferred to", "text")
_STATE = Column("state", "state", "done, failed, or pending (not done when the sweep last ran)", "text")
_WHY = Column("why", "why", "why there is no output; the full text is above", "text")
_WARNINGS = Column("warnings", "warnings", "number of warnings; their texts are above", "count")
_COST = (
    Column("seconds", "seconds", "work on its layers; work that several cells share counts for the first of them"),
    Column("size", "MB", "size of the output"),
)


class SweepCell(BaseModel):
    """What is looked at of a row of `sweep.json`."""

    name: str
    lora: str
    target: str
    settings: dict[str, Any]
    state: Literal["pending", "done", "failed"]
    seconds: float | None = None
    bytes: int | None = None
    figures: dict[str, int | float] = {}
    warnings: tuple[str, ...] = ()
    error: dict[str, Any] | None = None

    @property
    def place(self) -> tuple[str, str]:
        """What the settings that differ are called, "" where none do, and the LoRA: the rest of the cell's name."""
        rest = self.name.removeprefix(f"{self.target}/")
        label, _, lora = rest.partition("/") if self.settings else ("", "", rest)
        return (label, lora) if lora else ("", label)

    @property
    def why(self) -> str:
        """What went wrong, without what to do; "" where nothing did."""
        error = self.error or {}
        parts = [str(error[key]) for key in ("what", "where", "values") if error.get(key)]
        return " ".join(("; ".join(parts) or str(error.get("message", ""))).split())

    @property
    def page(self) -> str:
        """Where `loraport report` writes the page of the cell, in the folder of the sweep."""
        return f"{self.name}.html"


class Sweep(BaseModel):
    """What is looked at of `sweep.json`, and the name of its folder."""

    folder: str
    columns: tuple[Column, ...]
    cells: tuple[SweepCell, ...]
    grid: dict[str, Any] = {}


def read_sweep(path: Path) -> Sweep:
    """Read the index of a sweep (`sweep.json`). Raises FileError where it is none."""
    text = read_text(path, "index of the sweep", most=_LARGEST)
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("no object")
        return Sweep.model_validate({**found, "folder": path.absolute().parent.name})
    except (ValueError, RecursionError) as error:
        first = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        raise FileError(
            "the index of the sweep cannot be understood",
            where=str(path),
            values=str(error) if first is None else f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            fix="name the run logs themselves for their pages, or run the sweep again",
        ) from error


def write_sweep_page(output: Path, sweep: Sweep, pages: Collection[str] = ()) -> Path:
    """Write the page of a sweep.

    Args:
        output: the HTML file.
        sweep: what `read_sweep` gives.
        pages: those of cells (`SweepCell.page`) that lie beside it in the same folders as the outputs of the sweep.

    Raises:
        FileError: the file cannot be written.
    """
    return write(output, _page(sweep, pages))


def render_sweep_page(sweep: Sweep, pages: Collection[str] = ()) -> str:
    """The page of `write_sweep_page` as text."""
    return render(_page(sweep, pages))


def _page(sweep: Sweep, pages: Collection[str]) -> Page:
    states = Counter(cell.state for cell in sweep.cells)
    targets, loras = ({getattr(cell, name) for cell in sweep.cells} for name in ("target", "lora"))
    said = [f"{number} {state}" for state in ("done", "failed", "pending") if (number := states[state])]
    lead = f"{count(len(loras), 'LoRA')} on {count(len(targets), 'target')}: {count(len(sweep.cells), 'cell')}"
    listed = {
        "Why cells failed": Counter(cell.why for cell in sweep.cells if cell.why),
        "Warnings": Counter(warning for cell in sweep.cells for warning in cell.warnings),
    }
    again = "run the same sweep again to make what is missing"
    look = "One row for each cell: a LoRA, a target, and the settings that differ."
    if len(targets) > MOST_TARGETS:
        look += f" The figures above are for the first {MOST_TARGETS} of {len(targets)} targets."
    return Page(
        words=Words(title=sweep.folder, lead=f"{lead}, {', '.join(said)}." if said else f"{lead}."),
        verdict=Answer(f"{states['failed']} of {len(sweep.cells)} failed", "bad") if states["failed"] else None,
        warnings=(f"{count(states['pending'], 'cell', 'is/are')} pending: {again}.",) if states["pending"] else (),
        done_title="Settings that differ",
        done=tuple(Fact(name, ", ".join(values)) for name, values in _varied(sweep.cells).items()),
        listings=tuple(
            Listing(title, tuple(f"{text} ({count(number, 'cell')})" for text, number in found.items()))
            for title, found in listed.items()
            if found
        ),
        figures=tuple(_figures(sweep)),
        layers=Layers(
            _table(sweep),
            title="Cell by cell",
            look=look,
            link=lambda row: row["page"] if row["page"] in pages else "",
        ),
        facts=tuple(Fact(name.replace("_", " "), written(name, value)) for name, value in sweep.grid.items()),
    )


def _varied(cells: Sequence[SweepCell]) -> dict[str, list[str]]:
    """The settings that differ, and the values that they have."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        for name, value in cell.settings.items():
            found.setdefault(name, {})[str(_value(name, value))] = None
    return {name: list(values) for name, values in found.items()}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, bool | list | Mapping):
        return written(name, value)
    return "none" if value is None else value


def _table(sweep: Sweep) -> Table:
    """Columns that no cell fills are left out."""
    rows = [_row(cell) for cell in sweep.cells]
    titles = {column.title for column in sweep.columns}
    settings = [
        Column(f"set {name}", f"{name} set" if name in titles else name, "as requested", "text")
        for name in _varied(sweep.cells)
    ]
    columns = (_NAME, _TARGET, *settings, _STATE, *sweep.columns, _WARNINGS, *_COST, _WHY)
    filled = {key for row in rows for key, value in row.items() if value is not None}
    return Table(tuple(column for column in columns if column.key in filled), tuple(rows))


def _row(cell: SweepCell) -> dict[str, Any]:
    return {
        **{key: value for key, value in cell.figures.items() if is_number(value)},
        **{f"set {name}": _value(name, value) for name, value in cell.settings.items()},
        "name": cell.place[1],
        "target": cell.target,
        "state": cell.state,
        "why": cell.why[:MOST_WORDS] or None,
        "warnings": len(cell.warnings) or None,
        "seconds": cell.seconds,
        "size": None if cell.bytes is None else cell.bytes / 1e6,
        "page": cell.page,
    }


def _figures(sweep: Sweep) -> list[Figure]:
    """Of each target the settings beside each other; where there is one setting for all, the targets."""
    done = [cell for cell in sweep.cells if cell.state == "done"]
    by_settings = len({cell.place[0] for cell in done}) > 1
    groups: dict[str, list[SweepCell]] = {}
    for cell in done:
        groups.setdefault(cell.target if by_settings else "", []).append(cell)
    columns = [column for column in sweep.columns if column.key in DRAWN]
    drawn = []
    for column in columns:
        for target, cells in list(groups.items())[:MOST_TARGETS]:
            bars: dict[str, dict[str, float]] = {}
            for cell in cells:
                if is_number(cell.figures.get(column.key)):
                    bar = cell.place[0] if by_settings else cell.target
                    bars.setdefault(bar, {})[cell.lora] = float(cell.figures[column.key])
            drawn.append(_beside_each_other(column, target, bars))
    return [each for each in drawn if each is not None]


def _beside_each_other(column: Column, target: str, bars: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """A bar for each, the mean over the LoRAs that all of them have: others would make them unlike."""
    loras = set.intersection(*map(set, bars.values())) if len(bars) > 1 else set()
    if not loras:
        return None
    found = {name: [values[lora] for lora in sorted(loras)] for name, values in bars.items()}
    means = {name: sum(values) / len(values) for name, values in found.items()}
    names = list(means) if len(means) <= MOST_BARS else sorted(means, key=lambda name: -means[name])[:MOST_BARS]
    look = f"The bars show the {column.help}."
    if len(loras) > 1:
        look += (
            f" They are means over the {len(loras)} LoRAs that every bar has; marks show the smallest and the largest."
        )
    if len(names) < len(means):
        look += f" Shown are the {len(names)} largest of {len(means)}; the table has all."
    unit = "number" if column.unit == "text" else column.unit
    colour: Colour = "a" if column.unit == "share" else "b"
    labels = {name: name.replace(",", ", ") or "as it is" for name in names}  # lines end between settings
    drawing = Bars(tuple(Bar(labels[name], means[name], _ends(found[name]), unit, colour) for name in names))
    title = DRAWN[column.key]
    return Figure(f"{title}: {target}" if target else title, look, drawing)


def _ends(values: Sequence[float]) -> dict[str, float]:
    return {"smallest": min(values), "largest": max(values)} if len(values) > 1 else {}
