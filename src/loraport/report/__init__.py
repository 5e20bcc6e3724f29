"""Results made visible: tables, pictures and one self-contained page. Reads reports and pixels, never weights."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraport.report.card import write_card
    from loraport.report.comparison import Comparison, Curve, Measure, Row, Score
    from loraport.report.content import Words
    from loraport.report.page import render_page, write_page
    from loraport.report.runlog import read_run
    from loraport.report.tables import Table, layer_table, summary_table

_HOMES = {
    "Comparison": "loraport.report.comparison",
    "Curve": "loraport.report.comparison",
    "Measure": "loraport.report.comparison",
    "Row": "loraport.report.comparison",
    "Score": "loraport.report.comparison",
    "Table": "loraport.report.tables",
    "Words": "loraport.report.content",
    "layer_table": "loraport.report.tables",
    "read_run": "loraport.report.runlog",
    "render_page": "loraport.report.page",
    "summary_table": "loraport.report.tables",
    "write_card": "loraport.report.card",
    "write_page": "loraport.report.page",
}

__all__ = [
    "Comparison",
    "Curve",
    "Measure",
    "Row",
    "Score",
    "Table",
    "Words",
    "layer_table",
    "read_run",
    "render_page",
    "summary_table",
    "write_card",
    "write_page",
]


def __getattr__(name: str) -> object:
    """Loaded on first use: a transfer without a page has need of the table's numbers alone."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
