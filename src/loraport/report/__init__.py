"""Results made visible: tables, pictures and one self-contained page. Reads reports and pixels, never weights."""

from loraport.report.card import write_card
from loraport.report.comparison import Comparison, Curve, Measure, Row, Score
from loraport.report.frame import Words
from loraport.report.page import render_page, write_page
from loraport.report.runlog import read_run
from loraport.report.tables import Table, layer_table, summary_table

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
