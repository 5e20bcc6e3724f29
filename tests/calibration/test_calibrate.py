"""`loraport.calibrate` from end to end on toys: the file, the header, the choice, resuming, refusals."""

import dataclasses
import json

import pytest
import torch

import loraport
from loraport.adapters.parse import open_adapter
from loraport.calibration import Conditions, Schedule, Settings
from loraport.errors import FileError, MismatchError, NumericalError, UsageError

from .conftest import toy

SMALL = Settings(transfers=(), probes=4, heldout=6, batch=8, guidances=(1.0, 1.5), penalties=(0.1, 1.0), group_probes=2)


def _updates(path):
    return {name: layer.load().dense() for name, layer in open_adapter(path).layers.items()}


@pytest.fixture
def run(lora, source, target, prompts, tmp_path):
    def calibrate(**changes):
        given = {
            "source": source,
            "target": target,
            "prompts": prompts,
            "settings": SMALL,
            "output": tmp_path / "out.safetensors",
        }
        return loraport.calibrate(lora, **(given | changes))

    return calibrate


def test_the_result_is_an_ordinary_lora_with_its_gains_folded_in(run, lora):
    events = []
    report = run(on_event=events.append)
    assert report.choice.chosen.candidate.kind == "calibrated"
    before, after = _updates(lora), _updates(report.output)
    assert set(after) == set(before)
    by_group = report.coefficients
    for name, update in before.items():
        block = name.split(".")[1]
        kind = {"self_attn.v": "self v", "self_attn.o": "self out", "cross_attn.v": "cross v", "ffn.0": "ffn in"}
        gain = by_group[f"block {block} {kind.get(name.split('.', 2)[2], 'ffn out')}"]
        assert torch.allclose(after[name], gain * update, atol=1e-5)
    adapter = open_adapter(report.output)
    assert adapter.max_rank == 2
    recipe = json.loads(adapter.metadata["loraport.recipe"])
    assert recipe["method"] == "calibrate"
    assert recipe["coefficients"] == pytest.approx(by_group, abs=1e-5)
    assert recipe["chosen"]["guidance"] == report.choice.chosen.candidate.settings["guidance"]
    assert adapter.metadata["ss_tag_frequency"] == "{}"
    assert all(check.passed for check in loraport.verify(report.output, load=False))
    stages = [event.done for event in events if hasattr(event, "done")]
    assert stages == sorted(stages)
    assert stages[-1] == 6
    json.dumps(report.to_json(), allow_nan=False)


def test_it_is_never_worse_than_the_plain_candidates_by_its_measure(run):
    choice = run(output=None).choice
    assert choice.chosen.distance <= min(each.distance for each in choice.ranking if each.candidate.plain)
    assert {"direct", "direct x0.75", "direct x1.25", "direct x1.5", "direct x2"} <= {
        each.candidate.label for each in choice.ranking
    }


def test_the_same_call_gives_the_same_bytes(run, tmp_path):
    first = run().output.read_bytes()
    assert run(output=tmp_path / "again.safetensors").output.read_bytes() == first


def test_a_target_equal_to_the_source_keeps_the_lora_as_it_is(run, source, lora):
    report = run(target=source)
    assert report.chosen == "direct"
    for name, update in _updates(lora).items():
        assert torch.equal(_updates(report.output)[name], update)
    assert report.diagnosis.clips.before[0].share == pytest.approx(1.0, abs=1e-3)


def test_diagnosis_says_what_is_shown_before_and_after(run):
    report = run(output=None)
    whole = report.diagnosis.whole
    assert abs(1 - whole.after[0].share) < abs(1 - whole.before[0].share)
    assert [row.where for row in report.diagnosis.steps.before] == ["t = 1", "t = 0.667"]
    assert len(report.diagnosis.groups.before) == 10
    assert f"{100 * whole.before[0].share:.0f} %" in report.diagnosis.sentence


def test_an_interrupted_run_goes_on(run, source, target, tmp_path):
    whole = run(keep=tmp_path / "keep").to_json()
    opened = []

    def note(model):
        return dataclasses.replace(model, open=lambda: opened.append(model.name) or model.open())

    again = run(keep=tmp_path / "keep", overwrite=True, source=note(source), target=note(target))
    assert opened[0] == "toy source"  # the target's states are there; what is left is the choice
    assert again.passes["target"] < whole["passes"]["target"]
    assert again.to_json()["coefficients"] == whole["coefficients"]
    assert {"states", "responses", "aim", "alone", "groups"} <= set(again.resumed)


@pytest.mark.parametrize("part", ["states", "responses", "aim", "alone", "moments"])
def test_a_damaged_part_is_measured_again(run, tmp_path, part):
    whole = run(keep=tmp_path / "keep", output=None).to_json()
    (victim,) = (tmp_path / "keep").glob(f"*-{part}*.safetensors")
    victim.write_bytes(victim.read_bytes()[:40])
    again = run(keep=tmp_path / "keep", output=None)
    assert not any(name.startswith(part) for name in again.resumed)
    assert len(set(again.resumed)) == len(again.resumed)
    assert again.to_json()["coefficients"] == whole["coefficients"]
    assert again.to_json()["chosen"] == whole["chosen"]


def test_the_models_are_never_in_memory_together(run, source, target):
    alive = set()

    def counted(model):
        def load():
            denoiser = model.open()
            import weakref

            alive.add(model.name)
            assert len(alive) == 1
            weakref.finalize(denoiser.network, alive.discard, model.name)
            return denoiser

        return dataclasses.replace(model, open=load)

    run(output=None, source=counted(source), target=counted(target))


@pytest.mark.parametrize(
    "changes",
    [{"groups": "component"}, {"groups": "layer"}, {"groups": "global"}, {"rounds": 2}, {"solver": "gradient"}],
)
def test_other_coefficients_and_solvers(run, changes):
    settings = dataclasses.replace(SMALL, **changes, guidances=(1.5,), penalties=(0.3,), group_probes=0)
    report = run(settings=settings)
    assert report.choice.chosen.distance <= report.choice.best_plain.distance
    assert report.diagnosis.groups.before == ()


def test_one_prompt_can_be_used_again_with_a_warning(run, prompts):
    report = run(output=None, prompts=Conditions(prompts.prompts[:1], prompts.empty))
    assert any("used twice" in text for text in report.warnings)


def test_refusals(run, source, target, prompts, lora, tmp_path):
    with pytest.raises(MismatchError, match="different latents"):
        run(target=dataclasses.replace(target, latents=(16, 2, 3, 3)))
    with pytest.raises(UsageError, match="no prompts"):
        run(prompts=None)
    with pytest.raises(NumericalError, match="not finite"):
        run(target=toy("broken", broken=True))
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(FileError, match="replace the input"):
        run(output=lora, overwrite=True)
    run()
    with pytest.raises(FileError, match="exists already"):
        run()
    with pytest.raises(UsageError, match="grouping"):
        Settings(groups="colour")
    with pytest.raises(UsageError, match="few probes"):
        Settings(heldout=1)


def test_a_renoising_target_is_calibrated_too(run, target):
    schedule = Schedule((1.0, 0.757, 0.522, 0.0), 1.0, "renoise")
    report = run(output=None, target=dataclasses.replace(target, schedule=schedule))
    assert len(report.diagnosis.steps.before) == 3
