"""The whole evaluation, very small, on the bundled models."""

import json

import pytest
import torch
from safetensors.torch import save_file

from loraport.calibration import CalibrationSettings
from loraport.errors import FileError, UsageError
from loraport.evaluate import tables
from loraport.evaluate.clips import Scale
from loraport.evaluate.evidence import make_evidence
from loraport.evaluate.family import open_family
from loraport.evaluate.judge import ClipClassifier, Judge, open_judge
from loraport.evaluate.run import evaluate
from loraport.evaluate.tasks import TASKS, draw_prompts
from loraport.evaluate.transfers import training_prompts
from loraport.evaluate.variants import (
    BY_STEP,
    CALIBRATE,
    CALIBRATED,
    DISTILLATION_LORA,
    MAIN,
    SWEEPS,
    Variant,
    chosen,
    direct,
)
from loraport.methods import registry
from loraport.zoo import world

ROWS = (direct(1.0), Variant("identity", "identity", "control"), direct(1.5))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def family():
    return open_family().pick(("dmd",), ("outline",))


@pytest.fixture(scope="module")
def judge():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Judge(ClipClassifier(cells=((world.FRAMES + 1) // 2) * 4).eval())


@pytest.fixture(scope="module")
def done(family, judge, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    return make_evidence(family, judge, ROWS, folder, scale=Scale(prompts=3, seeds=1)), folder


@pytest.mark.slow
def test_every_row_is_measured_against_the_same_anchors(done):
    evidence = done[0].evidence
    assert [cell.label for cell in evidence.cells] == [
        "real",
        "A",
        "B",
        "C",
        "S",
        "T",
        "direct",
        "identity",
        "direct x1.5",
    ]
    assert evidence.cell("outline", "", "B").estimates["to_aim"].value == 0
    assert evidence.cell("outline", "dmd", "direct").estimates["to_aim"].value > 0
    with pytest.raises(KeyError):
        evidence.cell("outline", "dmd", "nothing")


@pytest.mark.slow
def test_the_identity_conversion_scores_like_direct_reuse(done):
    evidence = done[0].evidence
    direct_, identity = (evidence.cell("outline", "dmd", label).estimates for label in ("direct", "identity"))
    for name in ("statistic", "to_aim", "motion"):
        assert identity[name].value == pytest.approx(direct_[name].value, abs=0.02)


@pytest.mark.slow
def test_a_difference_to_itself_is_nothing_and_counts_as_no_win(done):
    evidence = done[0].evidence
    for difference in tables.differences(evidence, "direct", "to_aim"):
        assert difference.value == difference.error == 0
        assert tables.verdict("to_aim", difference) == 0


@pytest.mark.slow
def test_files_are_written_and_the_numbers_are_json(done):
    written, _ = done
    numbers = json.loads(written.numbers.read_text(encoding="utf-8"))
    assert {"cells", "scale", "notes", "drift", "best_direct"} <= set(numbers)
    assert "outline on dmd" in written.tables.read_text(encoding="utf-8")
    for picture in written.pictures:
        assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_rows_by_steps_and_from_the_other_side_that_must_equal_reuse(done, family, judge):
    """The same strength in every step, reuse in either half of the steps, a drift that is cut to its full rank."""
    _, folder = done
    rows = (
        direct(1.0),
        Variant("1 then 1", "direct", "sweep", by_step=(1.0, 1.0)),
        Variant("half", "direct", "sweep", half="second"),
        Variant("whole drift", DISTILLATION_LORA, "rival", {"rank": 128}),
        Variant("1 then 1.5", "direct", "sweep", by_step=(1.0, 1.5)),
        Variant("drift of rank 1", DISTILLATION_LORA, "rival", {"rank": 1}),
    )
    found = evaluate(family, rows, judge, scale=Scale(prompts=3, seeds=1), folder=folder / "work")
    reuse, *others = (found.cell("outline", "dmd", row.label).shown.float() for row in rows)
    for row, shown in zip(rows[1:], others, strict=True):
        equal = bool((shown - reuse).abs().max() <= 1)  # one level of 255
        assert equal == (row in rows[1:4]), row.label


@pytest.mark.slow
def test_running_again_samples_nothing_and_gives_the_same_numbers(done, family, judge):
    written, folder = done
    again = evaluate(family, ROWS, judge, scale=Scale(prompts=3, seeds=1), folder=folder / "work")
    assert again.sampling_seconds == 0
    assert again.to_json()["cells"] == written.evidence.to_json()["cells"]


@pytest.mark.slow
def test_a_seed_gives_the_same_numbers_in_another_folder(done, family, judge, tmp_path):
    again = evaluate(family, ROWS[:1], judge, scale=Scale(prompts=3, seeds=1), folder=tmp_path)
    first = {cell.label: cell for cell in done[0].evidence.cells}
    for cell in again.cells:
        for name, estimate in cell.estimates.items():
            assert estimate.value == pytest.approx(first[cell.label].estimates[name].value, abs=1e-6)
    other = evaluate(family, ROWS[:1], judge, scale=Scale(prompts=3, seeds=1, seed=7), folder=tmp_path)
    assert other.cells[2].estimates["statistic"].value != again.cells[2].estimates["statistic"].value


@pytest.mark.slow
def test_a_calibrated_row_is_made_once_and_measured_like_the_others(family, judge, tmp_path, monkeypatch):
    few = {"samples": 2, "diagnosis": 0, "methods": (), "strengths": (1.0, 1.5), "rounds": 1}
    rows = (direct(1.0), Variant("calibrated", CALIBRATE, "ours", few))
    first = evaluate(family, rows, judge, scale=Scale(prompts=3, seeds=1), folder=tmp_path)
    cell = first.cell("outline", "dmd", "calibrated")
    assert cell.transfer["passes_source"] > 0
    assert cell.transfer["gap"] <= cell.transfer["gap_as_it_is"]
    with monkeypatch.context() as patched:
        patched.setattr("loraport.sampling.runner.ModelRunner.open", None)  # any call would fail
        again = evaluate(family, rows, judge, scale=Scale(prompts=3, seeds=1), folder=tmp_path)
    assert again.to_json()["cells"] == first.to_json()["cells"]
    assert "outline | dmd" in tables.cost_table(first)
    assert "outline | dmd" in tables.reuse_table(first)


def test_calibration_never_shows_the_prompts_that_are_measured():
    for task in TASKS.values():
        asked = {prompt.text for prompt in draw_prompts(task, 64, seed=0)}
        assert asked
        assert not asked & set(training_prompts(task).texts)


def test_all_rows_of_the_evidence_exist():
    for variant in (*MAIN, *BY_STEP, *SWEEPS):
        if variant.method != DISTILLATION_LORA:
            registry.resolve(variant.method, variant.params)
    for variant in CALIBRATED:
        CalibrationSettings(**variant.params)
    labels = [variant.label for variant in (*MAIN, *BY_STEP, *SWEEPS, *CALIBRATED)]
    assert len(labels) == len(set(labels))


def test_rows_are_chosen_by_name_with_direct_reuse_beside_them():
    labels = [variant.label for variant in chosen(["casa", "revert"], quick=False)]
    assert labels[-2:] == ["casa", "revert"]
    assert "direct x1.5" in labels
    with pytest.raises(UsageError, match="no method or row"):
        chosen(["cassa"], quick=False)


def test_held_out_pairs_get_the_rows_of_all_pairs_and_those_that_were_named():
    rows = chosen([], quick=False, held_out=True)
    assert {row.reach for row in rows} == {"all"}
    assert {"direct", "casa", "random-mask", "casa, first half of the blocks"} <= {row.label for row in rows}
    assert "prolora" in {row.label for row in chosen(["prolora"], quick=False, held_out=True)}


@pytest.mark.parametrize(("target", "held_out"), [("dmd-2", False), ("dmd", True)])
def test_pairs_of_which_none_is_to_be_measured_are_refused(judge, tmp_path, target, held_out):
    family = open_family().pick((target,), ("outline",))
    with pytest.raises(UsageError, match="held out"):
        make_evidence(family, judge, ROWS, tmp_path, scale=Scale(prompts=2, seeds=1), held_out=held_out)
    assert not list(tmp_path.iterdir())


def test_that_nothing_can_be_drawn_is_said_before_the_work(judge, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="matplotlib"):
        make_evidence(open_family(), judge, ROWS, tmp_path / "out", scale=Scale(prompts=2, seeds=1))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_judge_is_refused(tmp_path):
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.txt").write_text("a cat sits")
    for file in tmp_path.iterdir():
        with pytest.raises(FileError, match="no classifier"):
            open_judge(file)
