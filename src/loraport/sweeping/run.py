"""A sweep carried out: what is finished is left alone, the rest is one job, the index says what became of each cell.

All cells are one job (`engine.many.run`): a weight of the source is read and decomposed once for all of them, and
those of one target, method and settings of it share every matrix. Each output is the file that a transfer of the
cell's recipe alone writes.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from loraport.engine.events import Event, Finished, Listener
from loraport.engine.many.asked import check_options
from loraport.engine.many.plan import ManyPlan, plan_recipes
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe
from loraport.errors import FileError, LoraportError
from loraport.files import reason_of
from loraport.partial import alone_in
from loraport.sweeping.cells import Cell
from loraport.sweeping.grid import Grid
from loraport.sweeping.index import CSV, JSON, Index, Row
from loraport.sweeping.standing import Standing, standing_of, state_now
from loraport.writable import check_claim, claim_folder


@dataclass(frozen=True)
class SweepReport:
    """The outcome of a sweep.

    Attributes:
        folder: where the outputs and the index are.
        cells: a row for each cell of this sweep, in order.
        kept: names of the cells finished by earlier runs.
        errors: the error of each failed cell, by its name.
    """

    folder: Path
    cells: tuple[Row, ...]
    kept: frozenset[str]
    errors: Mapping[str, LoraportError]

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON: how many of what, and where the index is."""
        return {
            "index": str(self.folder / JSON),
            "table": str(self.folder / CSV),
            "done": sum(row.state == "done" for row in self.cells),
            "kept": len(self.kept),
            "failed": len(self.errors),
        }


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep will do.

    Attributes:
        cells: all of them.
        standing: what is there of each, by its number; those with an error are left out.
        many: the work, by the same numbers, and why some cells have none.
    """

    cells: tuple[Cell, ...]
    standing: Mapping[int, Standing]
    many: ManyPlan


def plan_sweep(cells: Sequence[Cell], index: Index, options: RunOptions) -> SweepPlan:
    """Look at what is there and match the files of the rest, by headers alone.

    Args:
        cells: of `cells_of`.
        index: that of the folder.
        options: whether outputs may be replaced.

    Raises:
        FileError: the folder cannot be written, or holds an index of somebody else.
    """
    check_claim(index.folder, (JSON, CSV), "sweep")
    errors: dict[int, LoraportError] = {}
    standing: dict[int, Standing] = {}
    recipes: dict[int, Recipe] = {}
    state_of = cache(state_now)
    for number, cell in enumerate(cells):
        if isinstance(cell.recipe, LoraportError):
            errors[number] = cell.recipe
            continue
        row = index.earlier.get(cell.output.relative_to(index.folder).as_posix())
        try:
            standing[number] = standing_of(cell.output, cell.recipe, row, state_of)
        except FileError as error:
            if not options.overwrite:
                errors[number] = error
                continue
            standing[number] = "begun"
        if standing[number] != "done":
            recipes[number] = cell.recipe
    return SweepPlan(tuple(cells), standing, plan_recipes(recipes).without(errors))


def carry_sweep(
    cells: Sequence[Cell],
    folder: Path,
    grid: Grid,
    options: RunOptions,
    on_event: Listener,
    *,
    also: Iterable[tuple[str, Path]] = (),
) -> SweepReport:
    """Make what is missing of a sweep.

    Args:
        cells: of `cells_of`.
        folder: where outputs and index go.
        grid: what was asked for, for the index.
        options: how to use the machine.
        on_event: told about every step, from this thread.
        also: further files that the command reads, as (role, path): no output may replace one of them.

    Raises:
        LoraportError: what is wrong with the settings, the machine or the folder, and so with every cell; or with each
            cell in the same way. Outputs that were finished before stay, and so does the index.
    """
    check_options(options)
    read = list(also)
    with contextlib.ExitStack() as held:
        new = not folder.is_dir()
        if not new:
            _hold(folder, held)
        index = Index(folder, grid)
        plan = plan_sweep(cells, index, options)
        _refuse_if_all_fail(plan)
        claim_folder(folder, (JSON, CSV), "sweep")
        if new:  # before that nothing is made, not even the folder
            _hold(folder, held)
        rows = [Row.of(cell, folder) for cell in cells]
        index.rows = {row.output: row for row in rows}
        for number, state in plan.standing.items():
            if state == "done":
                row, cell = index.earlier[rows[number].output], rows[number]
                index.rows[row.output] = replace(row, name=cell.name, target=cell.target, settings=cell.settings)
        errors: dict[int, LoraportError] = {}

        def fail(number: int, error: LoraportError) -> None:
            """Note it. What is there of an earlier sweep keeps its row: the index tells of the files in the folder."""
            errors[number] = error
            row = index.earlier.get(rows[number].output)
            if row is None or not _is_still_there(row, cells[number].output):
                row = rows[number].failed(error)
            index.rows[row.output] = row

        for number, error in plan.many.failures.items():
            fail(number, error)
        by_output = {cell.output: number for number, cell in enumerate(cells)}

        def listen(event: Event) -> None:
            if isinstance(event, Finished) and event.report.output in by_output:
                number = by_output[event.report.output]
                try:
                    row = rows[number].done(event.report, plan.many.plans[number], cells[number].output)
                except LoraportError as error:
                    fail(number, error)
                else:
                    index.put(row)
            on_event(event)

        begun = {number for number, state in plan.standing.items() if state == "begun"}
        outputs = {number: cell.output for number, cell in enumerate(cells)}
        index.write()
        try:
            if plan.many.plans:
                from loraport.engine.many.run import run_many  # loads torch, after all refusals

                found = run_many(plan.many, outputs, folder, options, listen, also=read, replaced=begun)
                for number, outcome in found.items():
                    if isinstance(outcome, LoraportError):
                        fail(number, outcome)
        except BaseException:
            with contextlib.suppress(FileError):  # a full disk must not hide what went wrong first
                index.write_all()
            raise
        index.write_all()
        return SweepReport(
            folder,
            tuple(row.failed(errors[n]) if n in errors else index.rows[row.output] for n, row in enumerate(rows)),
            frozenset(cells[number].name for number, state in plan.standing.items() if state == "done"),
            {cells[number].name: error for number, error in sorted(errors.items())},
        )


def _hold(folder: Path, held: contextlib.ExitStack) -> None:
    """Two sweeps of one folder would each call the outputs of the other somebody else's, and write that down."""
    try:
        alone = held.enter_context(alone_in(folder))
    except OSError as error:
        raise FileError("the folder cannot be opened", where=str(folder), values=reason_of(error)) from error
    if not alone:
        raise FileError(
            "another sweep is running in the folder",
            where=str(folder),
            fix="wait until it has finished, or name another folder: -o FOLDER",
        )


def _is_still_there(row: Row, output: Path) -> bool:
    """Whether the output is there that an earlier sweep told of, as far as its size says."""
    return row.state == "done" and output.is_file() and output.stat().st_size == row.bytes


def _refuse_if_all_fail(plan: SweepPlan) -> None:
    """A model that is not there is wrong with all cells in one way: it is said once, and nothing is written."""
    alike = {(error.what, error.values, error.fix) for error in plan.many.failures.values()}
    if len(plan.many.failures) == len(plan.cells) and len(alike) == 1:
        raise next(iter(plan.many.failures.values()))
