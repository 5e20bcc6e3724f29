"""How the program talks: results on stdout, everything else on stderr, one JSON document when asked."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraport.errors import LoraportError, UsageError


@dataclass(frozen=True)
class Voice:
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

    def result(self, text: str) -> None:
        """Say a result to people. Quiet and JSON runs say nothing here."""
        if not self.quiet and not self.as_json:
            print(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
        """Show rows to people; columns of numbers are aligned to the right."""
        if self.quiet or self.as_json:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            cells = [row[number] for row in rows]
            numbers = all(cell == "" or cell[0] in "0123456789-" for cell in cells) and any(cells)
            table.add_column(column, justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console(stderr=False, wide=True).print(table)

    def document(self, value: Mapping[str, Any]) -> None:
        """Print the one JSON document, if JSON was asked for."""
        if self.as_json:
            # plain ASCII: any pipe on any system can carry it
            print(json.dumps(value, indent=2, allow_nan=False, default=str))

    def remark(self, text: str) -> None:
        """Say something that is not the result, on stderr."""
        if not self.quiet:
            print(text, file=sys.stderr)

    def warning(self, text: str) -> None:
        """Say what the user should know, on stderr."""
        self.remark(f"warning: {text}")


def console(*, stderr: bool, wide: bool = False):
    """A rich console on a stream as it is now. A pipe or a file gets lines as long as they need to be."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if wide and not made.is_terminal:
        return Console(stderr=stderr, highlight=False, width=200)
    return made


def say_error(error: LoraportError, *, as_json: bool) -> None:
    """The one message of a failed run: on stderr for people, on stdout as JSON."""
    if as_json:
        print(json.dumps({"error": error_document(error)}, indent=2, default=str))
    else:
        print(f"error: {error.message}", file=sys.stderr)


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
