"""One self-contained HTML page about a transfer: what was done, what it gave, layer by layer. No outside assets."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from loraport.engine.results import Column
from loraport.files import write_text
from loraport.report import charts, figures, tables
from loraport.report.comparison import Comparison, Measure, Score
from loraport.report.markup import Safe, element, join
from loraport.version import __version__

MAPS = 3


@dataclass(frozen=True)
class Words:
    """The sentences of a page; all of them optional.

    Attributes:
        title: heading. lead: the result in one or two sentences. remarks: what to notice, a bullet each.
        legend: how to read the clips. commands: shell or Python, to repeat the run.
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
    title = words.title or _title(report)
    body = [element("h1", None, title), element("p", {"class": "lead"}, words.lead or _lead(report))]
    body += [element("p", {"class": "warning"}, warning) for warning in report.get("warnings", [])]
    if comparison is not None:
        body += _pictures(comparison, words)
    if words.remarks:
        body += [
            element("h2", None, "What to see"),
            element("ul", None, *(element("li", None, r) for r in words.remarks)),
        ]
    if comparison is not None:
        body += _scores(comparison)
    body += _layers(report)
    body += _settings(report)
    if words.commands:
        body += [element("h2", None, "To repeat it"), element("pre", None, words.commands)]
    body.append(element("p", {"class": "faint"}, f"loraport {__version__}"))
    head = join(
        element("meta", {"charset": "utf-8"}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("title", None, title),
        element("style", None, _asset("page.css")),
    )
    script = element("script", None, _asset("page.js"))
    page = element("html", {"lang": "en"}, element("head", None, head), element("body", None, *body, script))
    return f"<!doctype html>\n{page}\n"


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


def _pictures(comparison: Comparison, words: Words) -> list[Safe]:
    rows = comparison.shown()
    first = rows[0].clips
    assert first is not None
    count, frames, high, wide, _ = first.shape
    captions = [element("li", None, join(*_with_breaks(caption))) for caption in comparison.captions]
    parts = [element("div", {"class": "captions"}, element("span"), element("ol", None, *captions))]
    for row in rows:
        assert row.clips is not None
        data = base64.b64encode(figures.strip(row.clips)).decode("ascii")
        style = f"background-image:url(data:image/png;base64,{data});aspect-ratio:{count * (wide + 1) - 1}/{high}"
        name = element("div", {"class": "name"}, row.label, *([element("small", None, row.note)] if row.note else []))
        picture = element("div", {"class": "strip", "style": style, "role": "img", "aria-label": f"clips: {row.label}"})
        parts.append(element("div", {"class": f"row {row.kind}"}, name, picture))
    dial = {"type": "range", "min": 0, "max": frames - 1, "step": 1, "value": frames // 2, "aria-label": "frame"}
    parts.append(
        element(
            "div",
            {"class": "bar"},
            element("button", {"type": "button"}, "pause"),
            element("input", dial),
            "frame by frame",
        )
    )
    player = {"class": "player", "data-frames": frames, "style": f"--frames:{frames};--frame:{frames // 2}"}
    legend = [element("p", {"class": "faint"}, words.legend)] if words.legend else []
    return [element("h2", None, "Same prompts, same noise"), element("div", player, *parts), *legend]


def _with_breaks(lines: Sequence[str]) -> list[str]:
    return [part for at, line in enumerate(lines) for part in ([element("br")] if at else []) + [line]]


def _scores(comparison: Comparison) -> list[Safe]:
    measures = comparison.measures
    head = [element("th", None, "")]
    for measure in measures:
        arrow = {"higher": " ↑", "lower": " ↓"}.get(measure.better or "", "")
        head.append(element("th", {"title": measure.help}, measure.title + arrow))
    body = []
    for row in (row for row in comparison.rows if row.scores):
        name = [row.label, *([element("small", None, row.note)] if row.note else [])]
        cells = [element("td", {"class": "name"}, *name)]
        for measure in measures:
            score = row.scores.get(measure.key)
            cells.append(
                element("td", None, _shown(score, measure), charts.meter(score, measure))
                if score is not None
                else element("td", None, "–")
            )
        body.append(element("tr", {"class": row.kind}, *cells))
    caption = f"Mean over {comparison.scored} clips ± its standard error, all measured in this run."
    table = element(
        "table",
        {"class": "scores"},
        element("caption", None, caption),
        element("thead", None, element("tr", None, *head)),
        element("tbody", None, *body),
    )
    parts = [element("h2", None, "In numbers"), element("div", {"class": "scroll"}, table)]
    meanings = [join(element("dt", None, m.title), element("dd", None, m.help)) for m in measures]
    parts.append(
        element("details", None, element("summary", None, "What the numbers mean"), element("dl", None, *meanings))
    )
    if comparison.curves and comparison.curve_measure is not None:
        chart = charts.lines(comparison.curves, comparison.curve_measure, comparison.curve_axis)
        parts.append(chart)
    return parts


def _shown(score: Score, measure: Measure) -> str:
    return f"{measure.show(score.mean)} ± {measure.show(score.error)}"


def _layers(report: Mapping[str, Any]) -> list[Safe]:
    if not report.get("layers"):
        return []
    table = tables.layer_table(report)
    parts = [element("h2", None, "Layer by layer")]
    maps = [_map(table, column) for column in _mapped(table)]
    parts.append(element("div", {"class": "scroll"}, *maps))
    head = [
        element(
            "th",
            {"class": _align(column), "title": column.help or None},
            element("button", {"type": "button"}, column.title),
        )
        for column in table.columns
    ]
    body = []
    for row, cells in zip(table.rows, table.cells(), strict=True):
        line = [
            element("td", {"class": _align(column), "data-value": _sort_value(row.get(column.key))}, shown)
            for column, shown in zip(table.columns, cells, strict=True)
        ]
        body.append(element("tr", None, *line))
    full = element(
        "table",
        {"class": "sortable"},
        element("thead", None, element("tr", None, *head)),
        element("tbody", None, *body),
    )
    summary = f"All {len(table.rows)} layers (click a heading to sort)"
    return [
        *parts,
        element("details", None, element("summary", None, summary), element("div", {"class": "scroll"}, full)),
    ]


def _mapped(table: tables.Table) -> list[Column]:
    """The figures that are drawn as maps: how much the rank holds, and the first shares that the method declares."""
    fits = [column for column in table.columns if column.unit == "share" or column.key == "cosine"]
    return [column for column in fits if column.key not in ("update_rel", "drift_rel")][:MAPS]


def _map(table: tables.Table, column: Column) -> Safe:
    """The model as a grid, blocks down and modules across, shaded by one measure."""
    key = column.key
    cells = {tables.block_and_module(row["name"]): row[key] for row in table.rows if key in row}
    blocks = list(dict.fromkeys(block for block, _ in cells))
    modules = list(dict.fromkeys(module for _, module in cells))
    head = [element("th", None, "block"), *(element("th", None, module) for module in modules)]
    lines = []
    for block in blocks:
        line = [element("th", None, block)]
        for module in modules:
            value = cells.get((block, module))
            depth = 0.0 if value is None else min(max(float(value), 0.0), 1.0)
            line.append(element("td", {"style": f"--depth:{depth:.3f}"}, "" if value is None else f"{value:.2f}"))
        lines.append(element("tr", None, *line))
    caption = element("caption", None, f"{column.title}: {column.help}")
    grid = {"class": "map"}
    return element(
        "table", grid, caption, element("thead", None, element("tr", None, *head)), element("tbody", None, *lines)
    )


def _settings(report: Mapping[str, Any]) -> list[Safe]:
    rows = tables.summary_table(report).rows
    if not rows:
        return []
    pairs = [join(element("dt", None, row["setting"]), element("dd", None, row["value"])) for row in rows]
    return [element("h2", None, "Settings and totals"), element("dl", None, *pairs)]


def _align(column: Column) -> str:
    return "layer" if column.key == "name" else "text" if column.unit == "text" else "number"


def _sort_value(value: Any) -> str | None:
    return None if value is None else str(value)


def _asset(name: str) -> Safe:
    return Safe((resources.files("loraport.report") / "data" / name).read_text(encoding="utf-8"))
