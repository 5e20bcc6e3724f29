"""The page of a transfer, or of a calibration and the transfer that it chose: what was done, what it gave, by layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraport.checking.expect import ENOUGH, Expectation, expect
from loraport.engine.results import Column
from loraport.report import calibration, tables
from loraport.report.charts import Colour, Lines, Map, Series
from loraport.report.comparison import Comparison
from loraport.report.content import (
    MEASURED_ON,
    Answer,
    Fact,
    Figure,
    Layers,
    Listing,
    Page,
    Words,
    among,
    is_number,
    went_in,
)
from loraport.report.frame import render, write
from loraport.report.layer_maps import declared, layer_maps
from loraport.report.tables import Table
from loraport.report.using import how_to_sample, ways
from loraport.wording import count, share

MAPS = 3
NO_WORDS = Words()
DEPTHS: tuple[tuple[str, str, Colour], ...] = (("update_rel", "update of the LoRA", "a"), ("drift_rel", "drift", "b"))
LAYERS = (
    "One row for each layer of the output. loraport analyze draws the spectra, rotations and null models of the pair."
)
ELSEWHERE = "the run log and the JSON document have the maps of all layers"
NO_MAPS = "the method draws none, or the update is zero"
TITLES = {
    "energy_kept": "Energy kept by the rank",
    "cosine": "Cosine of the new and the old update",
    "dominant_share": "Share in dominant rows and columns",
    "arbitrated_share": "Share of entries arbitrated",
    "drift_undone": "Share of the drift undone",
}
"""Titles of maps, by the key of the figure; others have that of their column."""
LOOKS = {
    "energy_kept": "Faint layers lose part of their update to the rank; a larger --rank keeps it.",
    "cosine": "In faint layers the update points away from that of the input: the method changed most there.",
    "dominant_share": "In strong layers much of the routing is in dominant rows and columns, left to the target.",
    "arbitrated_share": "In strong layers LoRA and distillation push the same directions the same way most often.",
    "drift_undone": "Strong layers move back towards the source: the distillation is weaker there.",
}
"""What to look for in the map of a figure, by its key; others get the help of their column."""


def write_page(
    output: Path, report: Mapping[str, Any], *, comparison: Comparison | None = None, words: Words = NO_WORDS
) -> Path:
    """Write the page of a transfer or of a calibration.

    Args:
        output: the HTML file.
        report: `TransferReport.to_json()`, `CalibrationReport.to_json()` or `report.read_run(...)`.
        comparison: clips and scores, where there are any.
        words: sentences; without them the page says what the report says.

    Raises:
        FileError: the file cannot be written.
    """
    return write(output, _page(report, comparison, words))


def render_page(report: Mapping[str, Any], *, comparison: Comparison | None = None, words: Words = NO_WORDS) -> str:
    """The page of `write_page` as text."""
    return render(_page(report, comparison, words))


def _page(report: Mapping[str, Any], comparison: Comparison | None, words: Words) -> Page:
    table, facts = tables.layer_table(report), report.get("summary", {})
    chosen = report.get("calibration")
    expected = expect(report) if chosen is None else None  # a calibration has measured it
    page = Page(
        words=replace(words, title=words.title or _title(report), lead=words.lead or _lead(report, expected)),
        verdict=None if expected is None else Answer(expected.words, expected.tone),
        warnings=tuple(report.get("warnings", ())),
        use=ways(report.get("load", ()), facts.get("target_known")),
        sampling=how_to_sample(facts.get("target_known"), _told(facts)) if report.get("load") else "",
        comparison=comparison,
        inputs=went_in(report.get("inputs", ())),
        flags=tuple(facts.get("flags", ())),
        done=tuple(_done(facts)),
        listings=(*_listings(report), *_rests_on(expected)),
        figures=tuple(_figures(table)),
        layers=_layers(report, table),
        facts=tuple(Fact(row["setting"], row["value"]) for row in tables.summary_table(report).rows),
    )
    return page if chosen is None else calibration.add(page, chosen)


def _told(facts: Mapping[str, Any]) -> str | None:
    """How the target is sampled, as its own files or the LoRAs that make it say."""
    loras = [each["usage"] for each in facts.get("target_lora") or () if each.get("usage")]
    return facts.get("target_usage") or "; ".join(loras) or None


def _title(report: Mapping[str, Any]) -> str:
    output = report.get("output")
    return Path(output).name if output else "A transferred LoRA"


def _lead(report: Mapping[str, Any], expected: Expectation | None) -> str:
    """What to expect, then what was done in numbers."""
    return " ".join((*(() if expected is None else expected.sentences), _done_in_numbers(report)))


def _done_in_numbers(report: Mapping[str, Any]) -> str:
    summary = report.get("summary", {})
    if "error" in report:
        return f"This run failed: {report['error']}"
    if not summary:
        return f"{count(len(report.get('layers', [])), 'layer')} so far; the run has not finished."
    kept = summary.get("energy_kept_total")
    layers = count(summary.get("layers", len(report.get("layers", []))), "layer")
    words = f"{layers}, method {summary.get('method', 'unknown')}"
    words += f", rank {summary.get('rank_in', '?')} to {summary.get('rank_out', '?')}"
    if summary.get("target_title"):
        words = f"A LoRA for {summary['target_title']}: {words}"
    if kept is None:
        return f"{words}."
    more = "" if kept >= ENOUGH else ", and a larger --rank would hold more"
    return f"{words}; the output rank holds {share(kept)} of the exact update{more}."


def _rests_on(expected: Expectation | None) -> list[Listing]:
    bound = None if expected is None else expected.bound
    return [] if bound is None else [Listing(MEASURED_ON, (f"{bound.name}: {bound.measured}",))]


def _done(facts: Mapping[str, Any]) -> list[Fact]:
    """What was asked for, in the order in which it acts."""
    if "method" not in facts:
        return []
    settings = [f"{name.replace('_', ' ')} {tables.written(name, at)}" for name, at in facts.get("params", {}).items()]
    written = {"method": facts["method"]} | ({"method settings": " · ".join(settings)} if settings else {})
    for name, title in (
        ("strength", "strength before the method"),
        ("amount", "amount of the method"),
        ("scale", "scale, as you gave it"),
    ):
        if facts.get(name) is not None:
            written[title] = f"{facts[name]:g}"
    if facts.get("rank_rule"):
        before, after = facts.get("rank_in", "?"), facts.get("rank_out", "?")
        written["rank"] = f"{facts['rank_rule']}: {before} in the input, {after} in the output"
    written |= {
        title: facts[name] for name, title in (("to", "names of keys"), ("dtype", "number format")) if facts.get(name)
    }
    return [Fact(name, str(value)) for name, value in written.items()]


def _listings(report: Mapping[str, Any]) -> list[Listing]:
    facts = report.get("summary", {})
    found = {
        "Passed through unchanged": report.get("passthrough", ()),
        "Left out": report.get("dropped", ()),
        "Weights that only the source has": facts.get("extra_source", ()),
        "Weights that only the target has": facts.get("extra_target", ()),
    }
    return [Listing(title, tuple(keys)) for title, keys in found.items() if keys]


def _figures(table: Table) -> list[Figure]:
    drawn = [_by_depth(table)] if {"update_rel", "drift_rel"} & {column.key for column in table.columns} else []
    drawn += [_map(table, column) for column in _mapped(table)]
    return [figure for figure in drawn if figure is not None]


def _mapped(table: Table) -> list[Column]:
    """The figures that are drawn as maps: how much the rank holds, and the first shares that the method declares."""
    fits = [column for column in table.columns if column.unit == "share" or column.key == "cosine"]
    return [column for column in fits if column.key not in ("update_rel", "drift_rel", "drift_rounding")][:MAPS]


def _by_depth(table: Table) -> Figure | None:
    """Means over the layers of a block."""
    series = []
    for key, label, kind in DEPTHS:
        within = [(_place_of(row["name"])[1], row[key]) for row in table.rows if row.get(key) is not None]
        points = tables.mean_by_block((block, float(value)) for block, value in within if block is not None)
        if len(points) > 1:
            series.append(Series(label, points, kind))
    if not series:
        return None
    look = "Where the drift is far above the update, the distillation changed the weights more than the LoRA does."
    return Figure(
        "Update and drift by depth", look, Lines(tuple(series), "block", "norm over the source weight's", unit="share")
    )


def _map(table: Table, column: Column) -> Figure:
    """The model as a map, modules down and blocks across, shaded by one figure."""
    grid = tables.model_grid([(row["name"], row[column.key]) for row in table.rows if column.key in row])
    values = [value for row in grid.values for value in row if value is not None]
    whole = column.key in ("energy_kept", "cosine")  # of which 1 is the whole, so that all below stands out
    low, high = (min(0.9, *values), 1.0) if whole else (0.0, max(0.01, *values))
    look = LOOKS.get(column.key, f"The map shows the {column.help}.")
    drawing = Map(
        grid.values,
        "block",
        "module",
        grid.blocks,
        grid.modules,
        "number" if column.unit == "text" else column.unit,
        low,
        high,
    )
    return Figure(TITLES.get(column.key, column.title[:1].upper() + column.title[1:]), look, drawing)


def _layers(report: Mapping[str, Any], table: Table) -> Layers:
    """The table, of which a row opens the layer's place among all, its maps, and its place along its type."""
    place, along, shown = among("{} among all layers", table), _along(table), declared(report)
    maps = {layer["name"]: layer_maps(shown, layer) for layer in report.get("layers", ())}

    def own(row: Mapping[str, Any]) -> Sequence[Figure]:
        return [each for each in (place(row), *maps[row["name"]], along(row)) if each is not None]

    without = sum(not each for each in maps.values())
    if not without:
        return Layers(table, own, LAYERS, ELSEWHERE)
    some = f"{without} of {len(maps)} layers have no maps of their own here"
    which = "No layer has maps of its own here" if without == len(maps) else some
    return Layers(table, own, f"{LAYERS} {which}: {NO_MAPS}.", ELSEWHERE)


def _along(table: Table) -> Callable[[Mapping[str, Any]], Figure | None]:
    """Draws a layer in the line of its type, from block to block."""
    types: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for row in table.rows:
        blocks, number, module = _place_of(row["name"])
        if number is not None:
            types.setdefault((blocks, module), {})[number] = row

    def drawn(row: Mapping[str, Any]) -> Figure | None:
        blocks, number, module = _place_of(row["name"])
        if number is None:
            return None
        line = sorted(types[blocks, module].items())
        series, here = [], []
        for key, label, kind in DEPTHS:
            points = tuple((float(at), float(each[key])) for at, each in line if is_number(each.get(key)))
            if len(points) > 1 and is_number(row.get(key)):
                series.append(Series(label, points, kind))
                here.append((float(number), float(row[key])))
        if not series:
            return None
        series.append(Series("this layer", tuple(here), "d", dots=True))
        look = "A jump at this block means that the layer is unlike its neighbours of the same type."
        drawing = Lines(tuple(series), "block", "norm over the source weight's", "share")
        return Figure(f"{module} from block to block", look, drawing)

    return drawn


def _place_of(name: str) -> tuple[str, int | None, str]:
    """Of a layer: what its blocks are called, the number of its own, and its name in it."""
    block, module = tables.block_and_module(name)
    return name.partition(f".{block}.")[0], int(block) if block.isdigit() else None, module
