"""How the program talks: results on stdout, everything else on stderr, one JSON document when asked.

The only place that prints. Names and texts come from files of strangers, so whatever is printed passes
`printable`: no escape sequence of a terminal, no line break and no change of writing direction gets through.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraport.errors import LoraportError, UsageError

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

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
        """Show rows to people; columns of numbers are aligned to the right."""
        if self.quiet or self.as_json or not rows:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        heading = None if title is None else Text(printable(title), style="table.title")
        table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            cells = [row[number] for row in rows]
            numbers = all(cell == "" or cell[0] in "0123456789-" for cell in cells) and any(cells)
            table.add_column(Text(printable(column)), justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        terminal(stderr=False, wide=True).print(table)

    def document(self, value: Mapping[str, Any]) -> None:
        """Print the one JSON document, if JSON was asked for."""
        if self.as_json:
            print(_json(value))

    def remark(self, text: str) -> None:
        """Say something that is not the result, on stderr."""
        if not self.quiet:
            print(printable(text), file=sys.stderr)

    def warning(self, text: str) -> None:
        """Say what the user should know, on stderr."""
        self.remark(f"warning: {text}")

    def error(self, error: LoraportError) -> None:
        """The one message of something that failed: on stderr for people, on stdout as JSON. Never quiet."""
        if self.as_json:
            print(_json({"error": error_document(error)}))
        else:
            first, *more = error.parts
            print(f"error: {printable(first)}", *(f"  {printable(part)}" for part in more), sep="\n", file=sys.stderr)


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


def error_document(error: LoraportError) -> dict[str, Any]:
    """An error as plain values."""
    return {
        "type": type(error).__name__,
        "exit_code": error.exit_code,
        "message": error.message,
        "what": error.what,
        "where": error.where,
        "values": error.values,
        "fix": error.fix,
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False, default=str)  # plain ASCII: any pipe on any system carries it
