"""The tables of the pages on LoRA files: docs/formats.md and those it sends a reader on to."""

import re
from pathlib import Path

NAMES = ("formats", "kinds", "keys", "distillation-loras", "output")
PAGES = {name: (Path(__file__).parents[1] / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in NAMES}


def rows(head: str) -> list[list[str]]:
    """The rows of the table whose head begins so, their cells stripped."""
    page = next(page for page in PAGES.values() if f"\n| {head} |" in page)
    table = page[page.index(f"\n| {head} |") :].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)
