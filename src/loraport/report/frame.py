"""The frame of every page: one HTML file without outside assets, in which nothing of what it tells about can run.

A page is data (`content.Page`); `data/page.html.j2` says in what order it is shown. Every text is escaped by the
template engine, and characters that would hide or turn round what stands beside them are shown by their numbers. The
page's own script is named by its digest in a policy that allows no other, and no network.
"""

import base64
import gzip
import hashlib
import os
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from loraport.files import write_text
from loraport.report import scenes
from loraport.report.content import Figure, Layers, Page, with_minus
from loraport.report.player import base64_of, shown
from loraport.version import __version__

if TYPE_CHECKING:
    from markupsafe import Markup

SENTENCES = ("help", "nulls")  # columns whose texts are broken into lines
BUDGET = 4_300_000  # bytes of all layers' own figures
WHOLE = 4_950_000  # bytes of a page with a table of layers, if leaving out figures makes it so
SAMPLE = 20  # layers by whose figures the size of all is guessed
LONG = 2000  # characters of one text; file names and headers may be of any length


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
            {"text": with_minus(column, text), "align": align(column), "sort": row.get(column.key)}
            for column, text in zip(table.columns, texts, strict=True)
        ]
        link = "" if layers.link is None else _address(layers.link(row))
        rows.append({"cells": cells, "figures": figures, "link": link})
    found = {"columns": table.columns, "rows": rows, "look": layers.look, "opens": any(packed), "left_out": left_out}
    links = any(row["link"] for row in rows)
    return found | {
        "packed": sum(map(len, packed)),
        "elsewhere": layers.elsewhere,
        "title": layers.title,
        "links": links,
    }


def _address(path: str) -> "Markup":
    """A path from one page to another as a link: no character is left that could make it anything else."""
    from markupsafe import Markup

    return Markup(quote(os.fsencode(path)))


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
