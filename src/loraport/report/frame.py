"""The frame of every page: one HTML file without outside assets, in which nothing of what it tells about can run.

A page is data (`Page`); `data/page.html.j2` says in what order it is shown. Every text is escaped by the template
engine, and characters that would hide or turn round what stands beside them are shown by their numbers. The page's own
script is named by its digest in a policy that allows no other, and no network.
"""

import base64
import gzip
import hashlib
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraport.engine.results import Column
from loraport.files import write_text
from loraport.report import scenes
from loraport.report.charts import Drawing, Place, Places, spread_of
from loraport.report.comparison import Comparison
from loraport.report.player import base64_of, shown
from loraport.report.tables import Table, show, size
from loraport.report.using import Way
from loraport.version import __version__

if TYPE_CHECKING:
    from markupsafe import Markup

SENTENCES = ("help", "nulls")  # columns whose texts are broken into lines
BUDGET = 4_300_000  # bytes of all layers' own figures
WHOLE = 4_950_000  # bytes of a page with a table of layers, if leaving out figures makes it so
SAMPLE = 20  # layers by whose figures the size of all is guessed
LONG = 2000  # characters of one text; file names and headers may be of any length
MEASURED_ON = "What the thresholds were measured on"


@dataclass(frozen=True)
class Input:
    """A file that went in.

    Attributes:
        role: what it was to the run: "LoRA", "source", "target".
        name: the file, as it was named.
        facts: what it is, in a few words each: model, kind, size, strength.
        digest: of its content; "" where none is known.
        header: of what its header says; "" where a digest is known.
    """

    role: str
    name: str
    facts: tuple[str, ...] = ()
    digest: str = ""
    header: str = ""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Input":
        """Of the values of an `engine.results.InputFile`, by name."""
        facts = [told["title"], told["kind"], size(told["bytes"]) if told["bytes"] is not None else ""]
        facts += [f"strength {told['strength']:g}"] if told["strength"] is not None else []
        digest, header = told["digest"] or "", told.get("header") or ""
        return cls(told["role"], told["file"], tuple(fact for fact in facts if fact), digest, header)


@dataclass(frozen=True)
class Fact:
    """A setting or a total, with its value as printed."""

    name: str
    value: str


@dataclass(frozen=True)
class Listing:
    """A list that may be long, folded away under its title."""

    title: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A drawing with its title, and one sentence on what to look for."""

    title: str
    look: str
    drawing: Drawing


@dataclass(frozen=True)
class Verdict:
    """The answer in a word or two. `tone` decides the colour beside it."""

    words: str
    tone: Literal["good", "caution", "bad", "plain"] = "plain"


@dataclass(frozen=True)
class Layers:
    """The table of layers. Its first column names them.

    Attributes:
        table: columns and rows.
        figures: of one row: the layer's own figures. Drawn when the page is made, unpacked when the row is opened.
        look: what to look for.
        elsewhere: where figures are that did not fit.
    """

    table: Table
    figures: Callable[[Mapping[str, Any]], Sequence[Figure]] | None = None
    look: str = ""
    elsewhere: str = "a page about fewer layers has them"


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


@dataclass(frozen=True)
class Page:
    """What a page shows, in this order.

    Attributes:
        words: heading, lead, remarks, commands.
        verdict: the answer, where the page gives one.
        warnings: sentences.
        use: how to load the result; none where there is none.
        sampling: how the model that it is for is sampled.
        comparison: clips and scores.
        side_by_side: real clips of several makings, and their numbers.
        inputs: what went in.
        flags: what was asked for besides files, as flags.
        done: what was done to it.
        listings: keys that were carried over or left out, and the like.
        figures: of the whole.
        tables: further tables, each with a sentence: (title, sentence, table).
        layers: the table of layers.
        facts: every setting and total.
        remarks_title: heading of the remarks.
        commands_title: heading of the commands.
    """

    words: Words
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()
    use: tuple[Way, ...] = ()
    sampling: str = ""
    comparison: Comparison | None = None
    side_by_side: scenes.SideBySide | None = None
    inputs: tuple[Input, ...] = ()
    flags: tuple[str, ...] = ()
    done: tuple[Fact, ...] = ()
    listings: tuple[Listing, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[tuple[str, str, Table], ...] = ()
    layers: Layers | None = None
    facts: tuple[Fact, ...] = ()
    remarks_title: str = "What to see"
    commands_title: str = "To repeat it"


def write(output: str | Path, page: Page) -> Path:
    """Write a page. Raises FileError if it cannot be written."""
    write_text(Path(output), render(page))
    return Path(output)


def render(page: Page) -> str:
    """The page as HTML."""
    if page.layers is None:
        return _filled(page, None)
    drawn = [() if page.layers.figures is None else page.layers.figures(row) for row in page.layers.table.rows]
    rows = _rows(page.layers, drawn, BUDGET)
    found = _filled(page, rows)
    over = len(found.encode(errors="replace")) - WHOLE
    if over <= 0 or not rows["opens"]:
        return found
    return _filled(page, _rows(page.layers, drawn, rows["packed"] - over))


def _filled(page: Page, layers: dict[str, Any] | None) -> str:
    from markupsafe import Markup

    engine, side = _engine(), page.side_by_side
    script = _asset("page.js") + (_asset("scenes.js") if side is not None else "")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return engine.get_template("page.html.j2").render(
        page=page,
        clips=None if page.comparison is None else shown(page.comparison),
        scenes=None if side is None else scenes.shown(side),
        tables=[(title, look, _rows(Layers(table), [()] * len(table.rows))) for title, look, table in page.tables],
        layers=layers,
        digest=digest,
        version=__version__,
        css=Markup(
            _asset("page.css") + (_asset("scenes.css") if side is not None else "")
        ),  # ours, and not to be escaped
        script=Markup(script),
    )


def plain(value: Any) -> Any:
    """A text in which every character can be seen.

    Controls, marks that turn the direction of what follows, and halves of characters stand as their numbers; what is
    very long is cut. Values that are no text are left alone.
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    if len(value) > LONG:
        value = f"{value[:LONG]}… ({len(value):,d} characters)"
    if value.isascii() and value.isprintable():
        return value
    return "".join(_seen(character) for character in value)


def _seen(character: str) -> str:
    kind = unicodedata.category(character)
    hidden = kind in ("Cf", "Cs", "Zl", "Zp") or (kind == "Cc" and character not in "\n\t")
    return f"⟨U+{ord(character):04X}⟩" if hidden else character


def _rows(layers: Layers, drawn: Sequence[Sequence[Figure]], budget: int = 0) -> dict[str, Any]:
    """The table as the template writes it: a row's cells, and its figures packed into so many bytes for all rows."""
    table = layers.table
    packed, left_out = _fitting(drawn, budget)
    rows = []
    for row, texts, figures in zip(table.rows, table.cells(), packed, strict=True):
        cells = [
            {"text": _with_minus(column, text), "align": align(column), "sort": row.get(column.key)}
            for column, text in zip(table.columns, texts, strict=True)
        ]
        rows.append({"cells": cells, "figures": figures})
    found = {"columns": table.columns, "rows": rows, "look": layers.look, "opens": any(packed), "left_out": left_out}
    return found | {"packed": sum(map(len, packed)), "elsewhere": layers.elsewhere}


def _fitting(drawn: Sequence[Sequence[Figure]], budget: int) -> "tuple[list[str | Markup], int]":
    """Figures packed, the first so many of each row that all together fit, and how many were left out of a row."""
    most = whole = max(map(len, drawn), default=0)
    sample = drawn[:: max(1, len(drawn) // SAMPLE)]
    while most > 0 and sum(map(len, _cut(sample, most))) * len(drawn) / len(sample) > budget:
        most -= 1
    while True:
        packed = _cut(drawn, most)
        if most <= 0 or sum(map(len, packed)) <= budget:
            return packed, whole - most
        most -= 1  # the sample had the small ones


def _cut(drawn: Sequence[Sequence[Figure]], most: int) -> "list[str | Markup]":
    return [_packed(figures[:most]) if figures[:most] else "" for figures in drawn]


def _packed(figures: Sequence[Figure]) -> "Markup":
    """Figures as HTML, compressed: those of all layers of a large model would be five times as much as they are."""
    html = str(_engine().get_template("drawings.html.j2").module.figures(figures))
    return base64_of(gzip.compress(html.encode(), mtime=0))


def went_in(told: Iterable[Any]) -> tuple[Input, ...]:
    """What went in, of any page: the files that an engine names.

    Args:
        told: `engine.results.InputFile`s, or their values by name.
    """
    return tuple(Input.of(each if isinstance(each, Mapping) else asdict(each)) for each in told)


def among(title: str, table: Table) -> Callable[[Mapping[str, Any]], Figure | None]:
    """Draws where a row of a table stands among all rows, in each of its numbers.

    Args:
        title: of the drawing; "{}" is the row's name.
        table: all rows.
    """
    columns = [column for column in table.columns if column.unit != "text"]
    values = {
        each.key: [float(row[each.key]) for row in table.rows if is_number(row.get(each.key))] for each in columns
    }
    spreads = {key: spread_of(found) for key, found in values.items() if found and min(found) < max(found)}

    def drawn(row: Mapping[str, Any]) -> Figure | None:
        places = tuple(
            Place(each.title, float(row[each.key]), _with_minus(each, show(each, row[each.key])), spreads[each.key])
            for each in columns
            if each.key in spreads and is_number(row.get(each.key))
        )
        look = "A mark far outside the middle half is what sets this layer apart."
        return Figure(title.format(row["name"]), look, Places(places)) if places else None

    return drawn


def _with_minus(column: Column, text: str) -> str:
    """A printed number with a true minus sign, as in the figures."""
    return text if column.unit == "text" else text.replace("-", "−")


def is_number(value: Any) -> bool:
    """Whether a value of a row is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def align(column: Any) -> str:
    """The class of a column's cells."""
    if column.key in SENTENCES:
        return "words"
    return "layer" if column.key == "name" else "text" if column.unit == "text" else "number"


@cache
def _engine() -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    engine = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=plain,
    )
    engine.globals["align"] = align
    return engine


def _asset(name: str) -> str:
    return (resources.files("loraport.report") / "data" / name).read_text(encoding="utf-8")
