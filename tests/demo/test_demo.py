"""The demo from end to end at its smallest, and the sentences it makes of numbers."""

import json

import pytest
import torch

from loraport.calibration import CalibrationSettings
from loraport.demo import asked, clips, run, words
from loraport.engine.events import Step
from loraport.errors import UsageError
from loraport.zoo import catalogue


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    before = clips.STRENGTHS, run.CALIBRATION
    clips.STRENGTHS = (1.0, 1.5)
    run.CALIBRATION = CalibrationSettings(strengths=(1.0, 1.5), methods=(), samples=4, diagnosis=1)
    events = []
    try:
        done = run.run_demo(tmp_path_factory.mktemp("demo") / "demo-output", clips=8, on_event=events.append)
    finally:
        clips.STRENGTHS, run.CALIBRATION = before
    return done, events


@pytest.mark.slow
def test_every_promised_file_is_there(result):
    done, _ = result
    names = {file.name for file in done.output.iterdir()}
    assert names == {
        "outline-for-dmd.safetensors",
        "outline-for-dmd-calibrated.safetensors",
        "run.jsonl",
        "comparison.png",
        "comparison.gif",
        "comparison.json",
        "index.html",
        ".loraport",
    }
    for file in (done.lora, done.log, done.page, done.still, done.animation, done.numbers):
        assert file.stat().st_size > 0


@pytest.mark.slow
def test_the_rows_are_the_ones_promised_over_the_same_clips(result):
    done, _ = result
    rows = {row.key: row for row in done.comparison.rows}
    assert {"source+lora", "target", "direct", "transferred", "calibrated"} <= set(rows)
    assert all(row.clips.shape == (8, 6, 16, 16, 3) for row in rows.values() if row.clips is not None)
    assert rows["source+lora"].scores["style"].mean > rows["direct"].scores["style"].mean
    assert rows["direct"].scores["style"].mean > rows["target"].scores["style"].mean + 0.1


@pytest.mark.slow
def test_the_numbers_on_disk_are_those_of_the_run(result):
    done, _ = result
    numbers = json.loads(done.numbers.read_text(encoding="utf-8"))
    by_key = {row["key"]: row for row in numbers["rows"]}
    for row in done.comparison.rows:
        for key, score in row.scores.items():
            assert by_key[row.key]["scores"][key] == {"mean": score.mean, "standard_error": score.error}
    assert numbers["settings"]["lora"] == "outline"


@pytest.mark.slow
def test_the_page_shows_rows_layers_and_the_lead(result):
    done, _ = result
    page = done.page.read_text(encoding="utf-8")
    for row in done.comparison.rows:
        assert row.label in page
    assert done.report.layers[0].name in page
    assert done.lead in page
    assert "http:" not in page
    assert "https:" not in page


@pytest.mark.slow
def test_progress_is_told_in_order(result):
    _, events = result
    stages = [event.done for event in events if isinstance(event, Step)]
    assert stages == [1, 2, 3, 4, 5, 6]
    assert any(type(event).__name__ == "LayerDone" for event in events)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"lora": "outlin"}, "outline"),
        ({"target": "stp"}, "step"),
        ({"target": "source"}, "not made"),
        ({"clips": 3}, "clips"),
        ({"lora": "zigzag"}, "loraport evaluate --lora zigzag"),
        ({"seed": 10**12}, "seed"),
    ],
)
def test_bad_requests_are_refused_before_any_work(tmp_path, bad, says):
    with pytest.raises(UsageError, match=says):
        run.run_demo(tmp_path / "out", **bad)
    assert not (tmp_path / "out").exists()


def test_without_diffusers_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(asked, "NEEDED", ("diffusers", "no_such_module"))
    with pytest.raises(UsageError, match="pip install"):
        run.run_demo(tmp_path)


def _clip_set(key, distance, style=0.5, strength=1.0):
    scores = {"style": torch.full((20,), style), "to_aim": distance, "to_drawn": distance}
    return words.DemoRow(key, key, "", torch.zeros(20, 3, 1, 2, 2), scores, "baseline", True, strength)


@pytest.mark.parametrize(
    ("shift", "says"),
    [(-0.05, "The transfer helped:"), (-0.005, "helped a little"), (0.05, "hurt:"), (0.0, "no difference")],
)
def test_the_verdict_follows_the_numbers_either_way(shift, says):
    noise = torch.linspace(-0.01, 0.01, 20)
    direct = 0.2 + noise
    wobble = noise.flip(0) if shift == 0.0 else 0.1 * noise
    sets = [
        _clip_set("source+lora", torch.zeros(20)),
        _clip_set("direct", direct),
        _clip_set("transferred", direct + shift + wobble),
        _clip_set("calibrated", direct - 0.1),
    ]
    report = {
        "summary": {"energy_kept_total": 0.86, "rank_in": 8, "rank_out": 32},
        "layers": [{"stats": {"drift_rel": 0.3}}, {"stats": {"drift_rel": 0.4}}],
    }
    summary = words.summarise(
        sets, report, "It took “direct”.", lora="x", target=catalogue.model_card("step"), style="a look"
    )
    assert says in summary.lead
    assert any("86.0 %" in remark for remark in summary.remarks)
    assert any("moved by 35.0 % of their norm" in remark for remark in summary.remarks)
    assert sum("slider" in remark for remark in summary.remarks) == 2
    assert "Calibration helped" in summary.lead
    assert "It took “direct”." in summary.remarks


def test_the_commands_name_every_setting():
    settings = {"lora": "noir", "target": "step", "seed": 3, "clips": 9, "method": "direct"}
    text = words.commands(settings, "noir-for-step.safetensors", "noir-calibrated.safetensors")
    compile(text, "commands", "exec")
    assert 'lora="noir", target="step", seed=3, clips=9, method="direct"' in text
