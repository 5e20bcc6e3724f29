"""The report as a document: what docs/report.md says is what is there."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import loraport
import pico
from loraport.engine.results import SCHEMA, LayerReport, Summary, TransferReport, energy_kept_in_total
from loraport.report import read_run

PAGE = Path(__file__).parents[2] / "docs" / "report.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[TransferReport, Path]:
    files = pico.write(tmp_path_factory.mktemp("pico"))
    output = files.folder / "out.safetensors"
    options = loraport.RunOptions(cache="off", executor="serial")
    report = loraport.transfer(
        files.lora, source=files.source, target=files.target, output=output, method="casa", options=options
    )
    return report, output.with_name("out.run.jsonl")


def _names(heading: str) -> set[str]:
    """The names that the first table after a heading explains."""
    table = re.search(r"(?:\|.*\n)+", PAGE.read_text(encoding="utf-8").split(heading)[1])[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    return set(re.findall(r"`(\w+)`", " ".join(rows)))


def test_totals_are_the_same_in_every_version_of_python():
    """They stand in the header of the output; `sum` loses the small layers before Python 3.12."""
    norms = [(2.0**27, 0.0), *[(1.0, 1.0)] * 4]
    layers = tuple(LayerReport("a", (2, 2), "casa", 1, 1, kept, {"exact_norm": n}, 0.0, False) for n, kept in norms)
    assert energy_kept_in_total(layers) == 4 / (2**54 + 4) != 4 / 2**54


def test_the_page_explains_every_name(run):
    document = run[0].to_json()
    assert document["schema"] == SCHEMA
    assert _names("# The report") - {"calibration"} == document.keys()
    assert _names("`summary`:") == document["summary"].keys() == {field.name for field in fields(Summary)}
    line = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("A layer:"))
    assert {field.name for field in fields(LayerReport)} <= set(re.findall(r"`(\w+)`", line))


def test_the_document_is_plain_json(run):
    document = run[0].to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_every_figure_is_explained(run):
    report = run[0]
    explained = {column.key for column in report.columns} | {"exact_norm", "drift_is_rounding"}
    for layer in report.layers:
        assert layer.stats.keys() <= explained
    assert all(column.help for column in report.columns)


def test_the_run_log_holds_the_same(run):
    report, log = run
    found = read_run(log)
    order = [layer.name for layer in report.layers]
    found["layers"].sort(key=lambda layer: order.index(layer["name"]))  # they are logged as they end
    assert {name: found[name] for name in report.to_json()} == report.to_json()
