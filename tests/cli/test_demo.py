"""`loraport demo`, with the sampling left out: what it says and passes on. The zoo tests the demo itself."""

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from loraport.cli.main import app
from loraport.engine.events import Step
from loraport.engine.results import Summary, TransferReport

_FIGURES = {
    **dict.fromkeys(("method", "rank_rule", "dtype", "to", "lora", "source", "source_title", "target_title"), ""),
    "target_usage": None,
    **dict.fromkeys(("layers", "rank_in", "rank_out", "cached_layers"), 0),
    **dict.fromkeys(("amount", "strength", "energy_kept_min", "energy_kept_mean", "energy_kept_total", "seconds"), 1.0),
    "params": {},
    "training": {},
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    made = []

    def run_demo(output: Path, **settings: object) -> SimpleNamespace:
        made.append({"output": output, **settings})
        settings["on_event"](Step("sampling", 1, 2))
        names = ("page", "still", "animation", "numbers", "lora", "log")
        nothing = {field.name: () if "tuple" in str(field.type) else None for field in fields(Summary)}
        report = TransferReport(None, Summary(**(nothing | _FIGURES)), (), (), (), (), (), ())
        files = {name: output / name for name in names}
        return SimpleNamespace(lead="It helped.", remarks=("A little.",), seconds=61.0, report=report, **files)

    monkeypatch.setattr("loraport.demo.run.run_demo", run_demo)
    return made


def test_the_demo_tells_where_to_look(calls: list[dict], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "out"), "--seed", "3"])
    assert done.exit_code == 0, done.output
    assert (calls[0]["output"], calls[0]["seed"]) == (tmp_path / "out", 3)
    for text in ("It helped.", "- A little.", "1 min 1 s", str(tmp_path / "out" / "page")):
        assert text in done.stdout
    assert "[1/2] sampling" in done.stderr


def test_the_demo_as_json(calls: list[dict], tmp_path: Path) -> None:
    facts = json.loads(CliRunner().invoke(app, ["demo", "-o", str(tmp_path), "--json"]).stdout)
    assert facts["lead"] == "It helped."
    assert facts["files"]["page"] == str(tmp_path / "page")
