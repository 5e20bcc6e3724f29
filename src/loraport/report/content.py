"""What a page shows, as data: the same parts for every page. `frame.py` makes HTML of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from loraport.engine.results import Column
from loraport.report import scenes
from loraport.report.charts import Box, Boxes, Drawing, spread_of
from loraport.report.comparison import Comparison
from loraport.report.tables import Table, show
from loraport.report.using import Way
from loraport.wording import size

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
class Answer:
    """The answer in a word or two. `tone` decides the colour beside it."""

    words: str
    tone: Literal["good", "caution", "bad", "plain"] = "plain"


@dataclass(frozen=True)
class Layers:
    """The table of layers, or of what else the page is about. Its first column names them.

    Attributes:
        table: columns and rows.
        figures: of one row: the layer's own figures. Drawn when the page is made, unpacked when the row is opened.
        look: what to look for.
        elsewhere: where figures are that did not fit.
        title: heading.
        link: of one row: the page of its own, as a path from this one; "" for none.
    """

    table: Table
    figures: Callable[[Mapping[str, Any]], Sequence[Figure]] | None = None
    look: str = ""
    elsewhere: str = "a page about fewer layers has them"
    title: str = "Layer by layer"
    link: Callable[[Mapping[str, Any]], str] | None = None


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
        listings: keys that were passed through or left out, and the like.
        figures: of the whole.
        tables: further tables, each with a sentence: (title, sentence, table).
        layers: the table of layers.
        facts: every setting and total.
        remarks_title: heading of the remarks.
        done_title: heading of what was done.
        commands_title: heading of the commands.
        commands_first: whether they stand above everything else, since they are the answer.
    """

    words: Words
    verdict: Answer | None = None
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
    remarks_title: str = "What to notice"
    done_title: str = "What was done"
    commands_title: str = "How to repeat it"
    commands_first: bool = False


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
            Box(each.title, float(row[each.key]), with_minus(each, show(each, row[each.key])), spreads[each.key])
            for each in columns
            if each.key in spreads and is_number(row.get(each.key))
        )
        look = "A mark far outside the middle half shows what is unusual about this layer."
        return Figure(title.format(row["name"]), look, Boxes(places)) if places else None

    return drawn


def is_number(value: Any) -> bool:
    """Whether a value of a row is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def with_minus(column: Column, text: str) -> str:
    """A printed number with a true minus sign, as in the figures."""
    return text if column.unit == "text" else text.replace("-", "−")
