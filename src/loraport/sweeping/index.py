"""The index of a sweep: a row for each cell, on the disk from the beginning, so that a killed sweep can go on.

`sweep.json` has everything; `sweep.csv` is the table of it, for a spreadsheet, written when the sweep ends.
"""

import csv
import io
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from loraport.containers.references import file_identity
from loraport.engine.plan import TransferPlan
from loraport.engine.recipe import Recipe
from loraport.engine.results import TransferReport
from loraport.errors import FileError, LoraportError
from loraport.files import file_digest, read_text, write_json, write_text
from loraport.sweeping.cells import Cell
from loraport.sweeping.figures import FIGURES, figures_of
from loraport.sweeping.grid import Grid
from loraport.version import __version__

JSON, CSV = "sweep.json", "sweep.csv"
SCHEMA = 1
"""Of the index; raised when a name goes or changes its meaning."""
_LARGEST = 1 << 30
_PAUSE = 10.0  # the index is written again after so many times what writing it took, at the earliest

State = Literal["pending", "done", "failed"]


@dataclass(frozen=True)
class Row:
    """What is known of a cell.

    Attributes:
        name: of the cell.
        lora: the file.
        target: its name in this sweep.
        settings: those that differ between cells.
        output: path in the folder of the sweep.
        state: "pending" until it is done or failed.
        recipe: of the transfer, all settings.
        sha256: of the output.
        bytes: its size.
        seconds: work on its layers; the first of several cells at a layer pays for what they share.
        figures: by the keys of `FIGURES`.
        warnings: sentences for the user.
        inputs: what went in, with digests, as in the report of a transfer.
        files: every file that was read, with its state (`file_identity`) at the time.
        identity: the state of the output when it was written.
        error: why there is no output.
        version: of the program.
    """

    name: str
    lora: str
    target: str
    settings: Mapping[str, Any]
    output: str
    state: State = "pending"
    recipe: Mapping[str, Any] | None = field(default=None, repr=False)
    sha256: str | None = None
    bytes: int | None = None
    seconds: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    inputs: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    identity: str | None = None
    error: Mapping[str, Any] | None = None
    version: str = __version__

    @classmethod
    def of(cls, cell: Cell, folder: Path) -> "Row":
        """The row of a cell of which nothing is known yet."""
        recipe = recipe_json(cell.recipe) if isinstance(cell.recipe, Recipe) else None
        output = cell.output.relative_to(folder).as_posix()
        return cls(cell.name, cell.lora, cell.target, dict(cell.settings), output, recipe=recipe)

    def failed(self, error: LoraportError) -> "Row":
        """The same with what went wrong."""
        return replace(self, state="failed", error=error.to_json())

    def done(self, report: TransferReport, plan: TransferPlan, output: Path) -> "Row":
        """The same with what came out. Raises FileError where the output is gone already."""
        return replace(
            self,
            state="done",
            sha256=file_digest(output),
            bytes=output.stat().st_size,
            seconds=sum(layer.seconds for layer in report.layers),
            figures=figures_of(report),
            warnings=report.warnings,
            inputs=tuple(asdict(each) for each in report.inputs),
            files={os.path.abspath(path): identity for path, identity in plan.identities.items()},
            identity=file_identity(output),
        )


class _Document(BaseModel):
    """What is looked at of an index that was read."""

    cells: tuple[Row, ...]


class Index:
    """The rows of a sweep by the path of the output in its folder."""

    def __init__(self, folder: Path, grid: Grid):
        self.folder, self.grid = folder, grid
        self.rows: dict[str, Row] = {}
        self.earlier = {row.output: row for row in _read(folder / JSON)}
        self._next = 0.0

    def put(self, row: Row) -> None:
        """Take a row, in place of the one before it of this output, and write the index if that is not too dear."""
        self.rows[row.output] = row
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write the index. Raises FileError."""
        began = time.monotonic()
        write_json(self.folder / JSON, self.to_json())
        self._next = time.monotonic() + _PAUSE * (time.monotonic() - began)

    def write_all(self) -> None:
        """Write the index, and the table for spreadsheets. Raises FileError."""
        self.write()
        write_text(self.folder / CSV, _table(self.all))

    @property
    def all(self) -> list[Row]:
        """The rows of this sweep, then those of earlier ones in the folder whose output is still there."""
        others = (row for output, row in self.earlier.items() if output not in self.rows)
        return [*self.rows.values(), *(row for row in others if os.path.exists(self.folder / row.output))]

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "schema": SCHEMA,
            "version": __version__,
            "grid": self.grid.model_dump(mode="json", exclude_defaults=True),
            "columns": [asdict(column) for column in FIGURES],
            "cells": [asdict(row) for row in self.all],
        }


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values; whatever exists by its whole path, which is the same from every folder."""
    found: dict[str, Any] = json.loads(json.dumps(recipe.model_dump(mode="json")))
    for name in [name for name, setting in Recipe.described().items() if setting.path and found[name]]:
        if isinstance(found[name], str):
            found[name] = _whole_path(found[name])
        else:
            found[name] = [each | {"file": _whole_path(each["file"])} for each in found[name]]
    return found


def _whole_path(name: str) -> str:
    return os.path.abspath(name) if os.path.lexists(name) else name


def _read(path: Path) -> tuple[Row, ...]:
    if not path.is_file():
        return ()
    text = read_text(path, "index of the sweep", most=_LARGEST)
    try:
        return _Document.model_validate(json.loads(text)).cells  # names in it need not be valid Unicode
    except (ValueError, RecursionError) as error:
        raise FileError(
            "the index of the sweep cannot be understood",
            where=str(path),
            values=_said(error),
            fix="name another folder, or remove the index; existing outputs are then only replaced with --overwrite",
        ) from error


def _said(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _table(rows: Iterable[Row]) -> str:
    """Comma-separated: a line for each row, a column for each setting that differs and each figure."""
    rows = list(rows)
    settings = list(dict.fromkeys(name for row in rows for name in row.settings))
    figures = [column.key for column in FIGURES]
    head = ["lora", "target", *settings, "state", *figures, "seconds", "bytes", "output", "sha256", "warnings", "error"]
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(head)
    for row in rows:
        said = "" if row.error is None else " ".join(str(row.error.get("message", "")).split())
        line = [row.lora, row.target, *(row.settings.get(name) for name in settings), row.state]
        line += [row.figures.get(name) for name in figures]
        line += [row.seconds, row.bytes, row.output, row.sha256, " | ".join(row.warnings), said]
        table.writerow([_cell(value) for value in line])
    return out.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula is told not to be one."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value
