"""One self-contained HTML page about a transfer: what was done, what it gave, layer by layer. No outside assets.

The page itself is `data/page.html.j2`; here is what it shows. Every text is escaped by the template engine.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from loraport.engine.results import Column
from loraport.files import write_text
from loraport.report import charts, figures, tables
from loraport.report.comparison import Comparison, Row
from loraport.version import __version__

MAPS = 3
ARROWS = {"higher": " ↑", "lower": " ↓"}


@dataclass(frozen=True)
class Words:
    """The sentences of a page; all of them optional.

    Attributes:
        title: heading.
        lead: the result in one or two sentences.
        remarks: what to notice, a bullet each.
        legend: how to read the clips.
        commands: shell or Python, to repeat the run.
    """

    title: str = ""
    lead: str = ""
    remarks: tuple[str, ...] = ()
    legend: str = ""
    commands: str = ""


def write_page(
    output: Path, report: Mapping[str, Any], *, comparison: Comparison | None = None, words: Words = Words()
) -> Path:
    """Write the page of a transfer.

    Args:
        output: the HTML file.
        report: `TransferReport.to_json()` or `report.read_run(...)`.
        comparison: clips and scores, where there are any.
        words: sentences; without them the page says what the report says.

    Raises:
        FileError: the file cannot be written.
    """
    write_text(Path(output), render_page(report, comparison=comparison, words=words))
    return Path(output)


def render_page(report: Mapping[str, Any], *, comparison: Comparison | None = None, words: Words = Words()) -> str:
    """The page of `write_page` as text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    engine = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    table = tables.layer_table(report)
    clips = _clips(comparison) if comparison is not None else {"strips": [], "frames": 0, "captions": ()}
    return engine.from_string(_asset("page.html.j2")).render(
        **clips,
        title=words.title or _title(report),
        lead=words.lead or _lead(report),
        warnings=report.get("warnings", []),
        load=report.get("load", []),
        words=words,
        comparison=comparison,
        arrows={None: "", **ARROWS},
        scored=[_scored(row, comparison) for row in comparison.rows if row.scores] if comparison is not None else [],
        chart=_chart(comparison),
        table=table,
        maps=[_map(table, column) for column in _mapped(table)],
        cells=_cells(table),
        align=_align,
        facts=tables.summary_table(report).rows,
        version=__version__,
        css=Markup(_asset("page.css")),  # ours, and not to be escaped
        script=Markup(_asset("page.js")),
    )


def _title(report: Mapping[str, Any]) -> str:
    output = report.get("output")
    return Path(output).name if output else "A LoRA carried over"


def _lead(report: Mapping[str, Any]) -> str:
    summary = report.get("summary", {})
    if "error" in report:
        return f"This run failed: {report['error']}"
    if not summary:
        return f"{len(report.get('layers', []))} layers so far; the run has not finished."
    kept = summary.get("energy_kept_total")
    words = f"{summary.get('layers', len(report.get('layers', [])))} layers by {summary.get('method', 'transfer')}"
    words += f", rank {summary.get('rank_in', '?')} to {summary.get('rank_out', '?')}"
    return words + (f"; the output rank holds {100 * kept:.1f} % of the exact update." if kept is not None else ".")


def _clips(comparison: Comparison) -> dict[str, Any]:
    """The strips of clips that the page plays."""
    strips, frames = [], 0
    for row in comparison.shown():
        assert row.clips is not None
        count, frames, high, wide, _ = row.clips.shape
        png = base64.b64encode(figures.strip(row.clips)).decode("ascii")
        strips.append({"row": row, "png": png, "aspect": f"{count * (wide + 1) - 1}/{high}"})
    return {"strips": strips, "frames": frames, "captions": comparison.captions}


def _scored(row: Row, comparison: Comparison) -> dict[str, Any]:
    cells = []
    for measure in comparison.measures:
        score = row.scores.get(measure.key)
        text = "" if score is None else f"{measure.show(score.mean)} ± {measure.show(score.error)}"
        cells.append(None if score is None else {"text": text, "bar": charts.bar(score, measure)})
    return {"row": row, "cells": cells}


def _chart(comparison: Comparison | None) -> charts.Chart | None:
    if comparison is None or not comparison.curves or comparison.curve_measure is None:
        return None
    return charts.chart(comparison.curves, comparison.curve_measure, comparison.curve_axis)


def _mapped(table: tables.Table) -> list[Column]:
    """The figures that are drawn as maps: how much the rank holds, and the first shares that the method declares."""
    fits = [column for column in table.columns if column.unit == "share" or column.key == "cosine"]
    return [column for column in fits if column.key not in ("update_rel", "drift_rel")][:MAPS]


def _map(table: tables.Table, column: Column) -> dict[str, Any]:
    """The model as a grid, blocks down and modules across, shaded by one figure."""
    found = {tables.block_and_module(row["name"]): row[column.key] for row in table.rows if column.key in row}
    blocks = list(dict.fromkeys(block for block, _ in found))
    modules = list(dict.fromkeys(module for _, module in found))
    rows = [(block, [_shade(found.get((block, module))) for module in modules]) for block in blocks]
    return {"column": column, "modules": modules, "rows": rows}


def _shade(value: float | None) -> dict[str, str]:
    depth = 0.0 if value is None else min(max(float(value), 0.0), 1.0)
    return {"depth": f"{depth:.3f}", "text": "" if value is None else f"{value:.2f}"}


def _cells(table: tables.Table) -> list[list[dict[str, Any]]]:
    return [
        [
            {"text": shown, "align": _align(column), "sort": row.get(column.key)}
            for column, shown in zip(table.columns, cells, strict=True)
        ]
        for row, cells in zip(table.rows, table.cells(), strict=True)
    ]


def _align(column: Column) -> str:
    return "layer" if column.key == "name" else "text" if column.unit == "text" else "number"


def _asset(name: str) -> str:
    return (resources.files("loraport.report") / "data" / name).read_text(encoding="utf-8")
