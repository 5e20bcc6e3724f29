"""The page of a check: the verdict and its reasons, every quantity beside its value by chance, layer by layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loraport.checking.results import CheckResult, Quantity, Reason
from loraport.engine.results import Column
from loraport.report.card import name_of
from loraport.report.charts import Bar, Bars, Colour, Lines, NumberUnit, Series, number
from loraport.report.content import (
    MEASURED_ON,
    Answer,
    Fact,
    Figure,
    Input,
    Layers,
    Listing,
    Page,
    Words,
    among,
    went_in,
)
from loraport.report.frame import render, write
from loraport.report.tables import Table
from loraport.report.using import how_to_sample, ways
from loraport.wording import count

TONES: Mapping[str, Any] = {
    "use as is": "good",
    "use at strength": "caution",
    "convert": "caution",
    "cannot help": "bad",
}
GROUPS: tuple[tuple[str, str, Colour, str], ...] = (
    (
        "pair",
        "The two models",
        "b",
        "A bar that ends at its mark shows only chance, or the rounding of the files.",
    ),
    (
        "lora",
        "The LoRA on them",
        "a",
        "An overlap far beyond its mark means that the distillation already holds some of the LoRA.",
    ),
    (
        "method",
        "What converting would change",
        "d",
        "If the first number is near zero, the method returns the LoRA almost unchanged.",
    ),
)
BY_DEPTH = (
    ("drift", "Where the drift is high, the target is farthest from the model the LoRA was trained on."),
    ("overlap", "Layers far above the grey dots already hold part of the LoRA; layers far below them work against it."),
    ("common", "Above 1, the distillation changed the directions that the LoRA uses more than others."),
)
FIGURES = (
    Column("figure", "figure", "what was measured", "text"),
    Column("value", "value", "over all layers looked at", "text"),
    Column("nulls", "by chance", "the value if there were nothing to see", "text"),
    Column("least", "smallest", "smallest value of a layer", "text"),
    Column("most", "largest", "largest value of a layer", "text"),
    Column("layers", "layers", "number of layers it was measured on", "count"),
    Column("help", "what it is", "", "text"),
)


def write_check_page(output: str | Path, result: CheckResult) -> Path:
    """Write the page of a check. Raises FileError if it cannot be written."""
    return write(output, _page(result))


def render_check_page(result: CheckResult) -> str:
    """The page of `write_check_page` as text."""
    return render(_page(result))


def _page(result: CheckResult) -> Page:
    table = _layers(result)
    strength = "" if result.strength is None else f" {result.strength:g}"
    if result.verdict != "use at strength":
        strength = "" if result.strength in (None, 1.0) else f", strength{strength}"
    target = name_of(result.target) if result.target else " + ".join(result.target_lora)
    known = None if result.target_known is None else asdict(result.target_known)
    return Page(
        words=Words(
            title=f"{name_of(result.lora)} on {target or 'the target'}",
            lead=_sentence(result.headline),
            remarks=tuple(_reason(each) for each in result.reasons),
            commands=result.command,
        ),
        remarks_title="Why",
        commands_title="What to run next",
        commands_first=True,
        verdict=Answer(result.verdict + strength, TONES[result.verdict]),
        warnings=result.warnings,
        use=ways(result.load, known),
        sampling=how_to_sample(known, result.target_usage) if result.load else "",
        inputs=_inputs(result),
        flags=result.flags,
        done=tuple(_done(result)),
        listings=tuple(_listings(result)),
        figures=(*_groups(result), *_by_depth(result)),
        tables=(
            ("All figures", "Each number stands beside the value that chance alone would give.", _quantities(result)),
        )
        if result.figures
        else (),
        layers=Layers(
            table,
            _own(result, table),
            f"{len(result.layers)} of {count(result.layers_of, 'layer', 'was/were')} looked at.",
        ),
    )


def _reason(reason: Reason) -> str:
    if not reason.threshold or reason.bound is None:
        return _sentence(reason.text)
    return _sentence(f"{reason.text.rstrip('.')} (threshold {reason.threshold}: {number(reason.bound)})")


def _sentence(text: str) -> str:
    """A reason or a headline as a sentence."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _listings(result: CheckResult) -> list[Listing]:
    dropped = () if result.coverage is None else result.coverage.dropped
    rests = [f"{each.threshold}: {each.measured}" for each in result.reasons if each.threshold and each.measured]
    found = {"Keys of the LoRA that match no layer": dropped, MEASURED_ON: tuple(rests)}
    return [Listing(title, items) for title, items in found.items() if items]


def _inputs(result: CheckResult) -> tuple[Input, ...]:
    if result.inputs:
        return went_in(result.inputs)
    found = [Input("LoRA", result.lora)]
    found.append(Input("source", result.source, (result.source_title,) if result.source_title else ()))
    if result.target is not None:
        found.append(Input("target", result.target, (result.target_title,) if result.target_title else ()))
    return (*found, *(Input("distillation LoRA", each) for each in result.target_lora))


def _done(result: CheckResult) -> list[Fact]:
    facts = [Fact("looked at", f"{result.stage}, in {result.seconds:.1f} s")]
    covered = result.coverage
    if covered is not None:
        met = f"{covered.met or 'none'} of them in source and target"
        facts.append(Fact("LoRA", f"{count(covered.layers, 'layer')}, {met}"))
        facts.append(Fact("model", f"{count(covered.of_model, 'layer')}; those without the LoRA stay as they are"))
        if covered.kept:
            facts.append(Fact("passed through", f"{count(covered.kept, 'key')} that are no update of a layer"))
    if result.kind is not None:
        facts.append(
            Fact("the target was made by", f"{result.kind.name} (judged by {result.kind.by}): {result.kind.sentence}")
        )
    told = str(result.target_known) if result.load else ""  # how it is sampled is said under how to use it
    return [*facts, *(Fact("known", each) for each in result.known if not told or told not in each)]


def _unit(unit: str) -> NumberUnit:
    return "share" if unit == "share" else "number"


def _groups(result: CheckResult) -> list[Figure]:
    drawn = []
    for of, title, kind, look in GROUPS:
        bars = tuple(_bar(each, kind) for each in result.figures if each.of == of)
        drawn += [Figure(title, look, Bars(bars, each=True))] if bars else []
    return drawn


def _bar(quantity: Quantity, kind: Colour) -> Bar:
    nulls = {null.name: null.value for null in quantity.nulls}
    return Bar(quantity.title, quantity.value, nulls, _unit(quantity.unit), kind)


def _by_depth(result: CheckResult) -> list[Figure]:
    """A dot a layer, beside its null."""
    drawn = []
    for key, look in BY_DEPTH:
        quantity = result.figure(key)
        here = [layer for layer in result.layers if key in layer.figures]
        if quantity is None or len({layer.depth for layer in here}) < 2:
            continue
        points = tuple((layer.depth, layer.figures[key]) for layer in sorted(here, key=lambda each: each.depth))
        series = [Series(quantity.title, points, "a", dots=True)]
        for name in dict.fromkeys(name for layer in here for name in layer.nulls.get(key, {})):
            nulls = tuple((layer.depth, layer.nulls[key][name]) for layer in here if name in layer.nulls.get(key, {}))
            series.append(Series(name, tuple(sorted(nulls)), "null", dots=True))
        drawing = Lines(tuple(series), "depth, first block to last", quantity.title, _unit(quantity.unit))
        drawn.append(Figure(f"{quantity.title[:1].upper()}{quantity.title[1:]} by depth", look, drawing))
    return drawn


def _quantities(result: CheckResult) -> Table:
    rows = []
    for each in result.figures:
        unit = _unit(each.unit)
        rows.append(
            {
                "figure": each.title,
                "value": number(each.value, unit),
                "nulls": ", ".join(f"{number(null.value, unit)} ({null.name})" for null in each.nulls) or None,
                "least": number(each.low, unit),
                "most": number(each.high, unit),
                "layers": each.layers,
                "help": each.help,
            }
        )
    return Table(FIGURES, tuple(rows))


def _layers(result: CheckResult) -> Table:
    """A row a layer that was looked at, a column a figure."""
    columns = [Column("name", "layer", "", "text"), Column("shape", "shape", "output × input features", "text")]
    for each in result.figures:
        columns.append(Column(each.key, each.title, each.help, _unit(each.unit)))
    rows = [
        {**layer.figures, "name": layer.name, "shape": " × ".join(map(str, layer.shape))} for layer in result.layers
    ]
    present = {key for row in rows for key in row}
    return Table(tuple(column for column in columns if column.key in present), tuple(rows))


def _own(result: CheckResult, table: Table) -> Callable[[Mapping[str, Any]], Sequence[Figure]]:
    """Draws one layer's own figures: beside their nulls, and among the other layers."""
    layers, quantities = {layer.name: layer for layer in result.layers}, {each.key: each for each in result.figures}
    place = among("{} among the layers looked at", table)
    look = "A bar that ends at its mark shows only what chance would show."

    def drawn(row: Mapping[str, Any]) -> Sequence[Figure]:
        layer = layers[row["name"]]
        bars = tuple(
            Bar(quantities[key].title, value, layer.nulls.get(key, {}), _unit(quantities[key].unit))
            for key, value in layer.figures.items()
        )
        beside = Figure(f"{layer.name} beside chance", look, Bars(bars, each=True))
        return [each for each in (beside, place(row)) if each is not None]

    return drawn
