"""Tables: which columns, and how values print."""

import pytest

from loraport.engine.results import Column
from loraport.report import layer_table, summary_table
from loraport.report.tables import block_and_module, show

LAYER = {
    "name": "blocks.0.self_attn.q",
    "shape": [8, 4],
    "method": "casa",
    "rank_in": 2,
    "rank_out": 4,
    "energy_kept": 0.5,
    "stats": {"clusters": 3, "drift_rel": 0.0001, "svd_driver": "gram", "extra": 1.25},
    "seconds": 1.0,
    "cached": True,
}


def test_layer_table_flattens_and_keeps_unknown_measures():
    table = layer_table({"layers": [LAYER]})
    cells = dict(zip((column.title for column in table.columns), table.cells()[0], strict=True))
    assert cells["shape"] == "8 × 4"
    assert cells["energy kept"] == "50.0 %"
    assert cells["drift"] == "< 0.1 %"
    assert cells["extra"] == "1.25"
    assert cells["svd driver"] == "gram"
    assert "seconds" not in cells
    assert "method" not in cells


def test_the_method_is_shown_when_layers_differ():
    table = layer_table({"layers": [LAYER, {**LAYER, "method": "direct", "stats": {}}]})
    assert "method" in [column.title for column in table.columns]
    assert table.cells()[1][-1] == "–"


def test_no_layers_no_columns():
    assert layer_table({}).columns == ()


def test_summary_counts_what_was_carried_and_leaves_out_the_empty():
    summary = {"params": {"tau": 0.5, "on": True}, "extra": [], "energy_kept_min": 1.0, "files": ["a", "b"]}
    table = summary_table({"summary": summary, "passthrough": ["x", "y"]})
    values = {row["setting"]: row["value"] for row in table.rows}
    assert values == {"params": "tau=0.5, on=yes", "energy kept min": "100 %", "files": "a, b", "passthrough": "2"}


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("count", 12345, "12,345"),
        ("share", 0.12345, "12.3 %"),
        ("share", 0.0, "0.0 %"),
        ("number", 0.123456, "0.123"),
        ("number", None, "–"),
        ("number", True, "yes"),
        ("text", 3, "3"),
    ],
)
def test_printing(kind, value, shown):
    assert show(Column("k", "t", "", kind), value) == shown


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("blocks.3.self_attn.q", ("3", "self_attn.q")),
        ("head.head", ("–", "head.head")),
        ("text_embedding.0", ("0", "text_embedding")),
    ],
)
def test_layer_names_split_for_the_map(name, parts):
    assert block_and_module(name) == parts
