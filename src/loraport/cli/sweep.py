"""`loraport sweep`: LoRAs, targets and settings against each other, in one job with one index."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraport.cli import options, text
from loraport.cli.console import Console
from loraport.cli.flags import Given, command, parse_setting
from loraport.cli.grid_file import merged, read_grid
from loraport.cli.options import option, required
from loraport.containers.names import named_path
from loraport.engine.options import RunOptions
from loraport.engine.recipe import METHOD, OUTPUT
from loraport.errors import LoraportError
from loraport.sweeping.cells import Cell, cells_of
from loraport.sweeping.grid import Grid
from loraport.wording import count, share, size
from loraport.writable import with_settings

if TYPE_CHECKING:
    from loraport.sweeping.index import Row
    from loraport.sweeping.run import SweepReport

EXAMPLE = """Try two ranks on two targets for every LoRA of a folder. The same command again makes what is missing:

    loraport sweep loras/ -s base.safetensors -t fast.safetensors -t turbo.pt --rank 16 --rank 32 -o swept/

Try methods and their settings on a target made of the source and a distillation LoRA; --plan prints what it would take:

    loraport sweep style.safetensors -s base.safetensors -t '+ few-step.safetensors:0.8' --method direct --method casa --set casa.q_dom=0.4 --set casa.q_dom=0.6 -o swept/ --plan

Read the grid from a file, as docs/sweep.md explains:

    loraport sweep --grid sweep.yaml -o swept/"""  # noqa: E501


@command(Grid, RunOptions)
def sweep(
    given: Given,
    console: Console,
    loras: options.Loras = None,
    grid: Annotated[Path | None, option(
        "--grid", metavar="FILE",
        help="Read settings from a YAML file, where each may have a list of values. Flags override the file.",
    )] = None,
    preset: Annotated[list[str] | None, option(
        "--preset", metavar="NAME", panel=METHOD,
        help="Method with settings chosen for it, such as released-code. May be repeated.",
    )] = None,
    settings: Annotated[list[str] | None, option(
        "--set", metavar="NAME=VALUE", panel=METHOD,
        help="Parameter of the method, such as casa.q_dom=0.5. Repeat a name to try several values.",
    )] = None,
    output: Annotated[Path | None, option(
        "--output", "-o", metavar="FOLDER", panel=OUTPUT,
        help="Folder for TARGET/SETTINGS/LORA.safetensors, sweep.json and sweep.csv.",
    )] = None,
    recursive: options.Recursive = False,
    plan: Annotated[bool, option("--plan", help="Print what it would do and take; change nothing.")] = False,
) -> None:  # fmt: skip
    """Transfer LoRAs to several targets with several settings: one job, one folder, one index."""
    output = required(output, "output", "name the folder to write to: -o FOLDER")
    asked = Grid.model_validate(_settings_of(given, grid, preset, settings))
    cells = cells_of(loras or (), asked, output, recursive=recursive)
    run_options = given.make(RunOptions)
    if plan:
        _plan(cells, output, asked, run_options, console)
        return
    from loraport.cli.progress import Progress
    from loraport.sweeping.run import carry_sweep

    read = list(_read(cells, grid))
    with Progress(console) as progress:
        report = carry_sweep(cells, output, asked, run_options, progress, also=read)
    _tell(report, console)


def _settings_of(
    given: Given, file: Path | None, presets: Sequence[str] | None, settings: Sequence[str] | None
) -> dict[str, Any]:
    """What was asked for, by the fields of `Grid`: flags over the file."""
    values = {name: value for name, value in given.values.items() if name in Grid.model_fields}
    methods = [*values.get("method", ()), *(presets or ())]
    if methods:
        values["method"] = methods
    for name, value in map(parse_setting, settings or ()):
        values.setdefault("params", {}).setdefault(name, []).append(value)
    return values if file is None else merged(read_grid(file), values)


def _read(cells: Sequence[Cell], grid: Path | None) -> Iterator[tuple[str, Path]]:
    """What the command reads beside the models, as (role, path): no output may replace one of them."""
    if grid is not None:
        yield "grid", grid
    for lora in dict.fromkeys(cell.lora for cell in cells):
        yield from with_settings("input LoRA", named_path(lora))


def _plan(cells: Sequence[Cell], folder: Path, grid: Grid, run_options: RunOptions, console: Console) -> None:
    """A row for each cell, and what all take together."""
    import time

    from loraport.engine.estimate import estimate
    from loraport.sweeping.index import Index
    from loraport.sweeping.run import plan_sweep

    began = time.process_time()
    swept = plan_sweep(cells, Index(folder, grid), run_options)
    rows: list[list[str]] = []
    documents: list[dict[str, Any]] = []
    for number, cell in enumerate(cells):
        row = _named(cell.lora, cell.target, cell.settings)
        document: dict[str, Any] = {
            "name": cell.name,
            "lora": cell.lora,
            "target": cell.target,
            "settings": dict(cell.settings),
        }
        if number in swept.many.failures:
            error = swept.many.failures[number]
            rows.append([*row, "no", "", "", text.reason(error)])
            documents.append(document | {"error": error.to_json()})
        elif swept.standing[number] == "done":
            rows.append([*row, "done already", "", "", str(cell.output)])
            documents.append(document | {"output": str(cell.output), "done": True})
        else:
            made = swept.many.plans[number]
            rows.append([*row, "to do", str(made.rank_out), size(made.output_bytes), str(cell.output)])
            documents.append(document | {"output": str(cell.output), "output_bytes": made.output_bytes})
    console.errors(swept.many.failures.values())
    console.table(["LoRA", "target", "settings", "state", "rank", "size", "output, or why there will be none"], rows)
    console.warning(*dict.fromkeys(said for made in swept.many.plans.values() for said in made.warnings))
    cost: dict[str, Any] = {}
    if swept.many.plans:
        cost = asdict(estimate(list(swept.many.plans.values()), run_options, began))
        console.result(
            f"{count(len(swept.many.plans), 'cell')} to do in one job, "
            f"{sum(state == 'done' for state in swept.standing.values()) or 'none'} already done",
            *text.needs(cost, shared=True),
        )
    console.document({"cells": documents, "cost": cost, "failed": len(swept.many.failures)})
    _exit(swept.many.failures.values())


def _tell(report: "SweepReport", console: Console) -> None:
    """The table of what became of each cell, each error once in full, and the exit code."""
    rows = []
    for row in report.cells:
        cells = _named(row.lora, row.target, row.settings)
        if row.state == "done":
            cells += ["kept" if row.name in report.kept else "done", *_figures(row), row.output]
        else:
            error = report.errors.get(row.name)
            cells += ["failed", *_figures(row), "" if error is None else text.reason(error)]
        rows.append(cells)
    console.errors(report.errors.values())
    head = ["LoRA", "target", "settings", "outcome", "rank", "kept", "change", "drift", "time"]
    console.table([*head, "output, or why there is none"], rows)
    facts = report.to_json()
    console.result(
        f"{count(facts['done'], 'cell')} of {len(report.cells)} done, {facts['kept'] or 'none'} of them by "
        f"earlier runs; {facts['failed'] or 'none'} failed",
        f"  index     {facts['index']}",
        f"  table     {facts['table']}",
    )
    console.document(facts | {"cells": [asdict(row) for row in report.cells]})
    _exit(report.errors.values())


def _exit(errors: Iterable[LoraportError]) -> None:
    first = next(iter(errors), None)
    if first is not None:
        raise typer.Exit(first.exit_code)


def _named(lora: str, target: str, settings: Any) -> list[str]:
    told = ", ".join(str(value) if name == "method" else f"{name}={value}" for name, value in settings.items())
    return [Path(lora).name, target, told]


def _figures(row: "Row") -> list[str]:
    """Rank, share kept, change, drift and time; "" for what is not known."""
    facts = row.figures
    kept = share(facts["energy_kept"]) if "energy_kept" in facts else ""
    change = f"{facts['change']:.3f}" if "change" in facts else ""
    drift = f"{100 * facts['drift']:.2f} %" if "drift" in facts else ""
    time = "" if row.seconds is None else text.duration(row.seconds)
    return [f"{facts['rank_out']:.0f}" if "rank_out" in facts else "", kept, change, drift, time]
