"""How the program talks: results on stdout, everything else on stderr, one JSON document when asked.

The only place that prints. Names and texts come from files of strangers, so whatever is printed passes
`printable`: no escape sequence of a terminal, no line break and no change of writing direction gets through.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loraport.cli import text
from loraport.errors import LoraportError, UsageError

_GAP = 3  # between two columns

if TYPE_CHECKING:
    from rich.console import Console as RichConsole


@dataclass(frozen=True)
class Console:
    """What the user wants to hear.

    Args:
        verbose: 0 normal, 1 with a table of all layers.
        quiet: errors only.
        as_json: one JSON document on stdout instead of text for people.
    """

    verbose: int = 0
    quiet: bool = False
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise UsageError("-q and -v contradict each other")

    def result(self, *lines: str) -> None:
        """Print a result for people, line by line. Quiet and JSON runs say nothing here."""
        if not self.quiet and not self.as_json:
            for line in lines:
                print(printable(line))

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        title: str | None = None,
        fixed: int | None = None,
    ) -> None:
        """Show rows to people; columns of numbers are aligned to the right.

        Args:
            columns: the heads.
            rows: the cells.
            title: a line above.
            fixed: the first so many columns are always shown, and of the others those that fit side by side; None
                shows all, and breaks long cells into lines.
        """
        if self.quiet or self.as_json or not rows:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        screen = terminal(stderr=False, wide=True)
        heads = [printable(column) for column in columns]
        cells = [[printable(cell) for cell in row] for row in rows]
        left_out: list[str] = []
        if fixed is not None:
            shown = _that_fit(heads, cells, fixed, screen.width)
            left_out = [head for number, head in enumerate(heads) if number not in shown]
            heads = [heads[number].replace(" ", "\n") for number in shown]
            cells = [[row[number] for number in shown] for row in cells]
        heading = None if title is None else Text(printable(title), style="table.title")
        table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, head in enumerate(heads):
            column = [row[number] for row in cells]
            numbers = all(cell == "" or cell[0] in "0123456789-<" for cell in column) and any(column)
            justify: Literal["left", "right"] = "right" if numbers else "left"
            table.add_column(Text(head), justify=justify, overflow="fold", no_wrap=fixed is not None)
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        screen.print(table)
        if left_out:
            self.result(f"no room for {', '.join(left_out)}; the run log and --json have all columns", "")

    def document(self, value: Mapping[str, Any]) -> None:
        """Print the one JSON document, if JSON was asked for."""
        if self.as_json:
            print(_json(value))

    def remark(self, message: str) -> None:
        """Say something that is not the result, on stderr."""
        if not self.quiet:
            print(printable(message), file=sys.stderr)

    def warning(self, *messages: str) -> None:
        """Say what the user should know, on stderr."""
        for message in messages:
            self.remark(f"warning: {message}")

    def warnings_of(self, said: Mapping[str, Iterable[str]]) -> None:
        """What is to be said of each of several things, by name: once, and without names where it is true of all."""
        whose: dict[str, list[str]] = {}
        for name, messages in said.items():
            for message in messages:
                whose.setdefault(message, []).append(name)
        for message, names in whose.items():
            self.warning(message if len(names) == len(said) else f"{text.listing(names)}: {message}")

    def errors(self, errors: Iterable[LoraportError]) -> None:
        """Every message of a job on many once, with the places it is about. With --json they are in the document."""
        alike: dict[object, list[LoraportError]] = {}
        for error in errors if not self.as_json else ():
            alike.setdefault((error.what, error.fix), []).append(error)
        for same in alike.values():
            places = list(dict.fromkeys(error.where for error in same if error.where is not None))
            values = same[0].values
            if any(error.values != values for error in same):
                values = f"{values} (in the first)"
            self.error(LoraportError(same[0].what, where=text.listing(places) or None, values=values, fix=same[0].fix))

    def error(self, error: LoraportError) -> None:
        """The one message of something that failed: on stderr for people, on stdout as JSON. Never quiet."""
        if self.as_json:
            print(_json({"error": error.to_json()}))
        else:
            first, *more = error.parts
            print(f"error: {printable(first)}", *(f"  {printable(part)}" for part in more), sep="\n", file=sys.stderr)


def _that_fit(heads: Sequence[str], cells: Sequence[Sequence[str]], fixed: int, width: int) -> list[int]:
    """The first `fixed` columns, and as many of the others as there is room for."""
    chosen, room = [], width
    for number, head in enumerate(heads):
        wide = max(len(part) for part in (*head.split(" "), *(row[number] for row in cells)))
        if number < fixed or wide + _GAP <= room:
            chosen.append(number)
            room -= wide + _GAP
    return chosen


def printable(text: str) -> str:
    """`text` on one line, with everything that is no visible character or plain space written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def terminal(*, stderr: bool, wide: bool = False) -> "RichConsole":
    """A rich console on a stream as it is now. A pipe or a file gets lines as long as they need to be."""
    from rich.console import Console as RichConsole

    made = RichConsole(stderr=stderr, highlight=False, soft_wrap=False)
    if wide and not made.is_terminal:
        return RichConsole(stderr=stderr, highlight=False, width=200)
    return made


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False, default=str)  # plain ASCII: any pipe on any system carries it
