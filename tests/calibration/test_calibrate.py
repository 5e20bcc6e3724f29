"""`loraport.calibrate` from end to end on toys: the recipe, the file, the choice, resuming, refusals."""

import dataclasses
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import toys
from loraport.adapters.parse import open_adapter
from loraport.calibration import CalibrationSettings, Conditions, Schedule
from loraport.calibration.candidates import around
from loraport.calibration.settings import Tried
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe
from loraport.engine.run import run as carry_out
from loraport.errors import FileError, LoraportError, MismatchError, NumericalError, UsageError
from loraport.store.store import Store

from .conftest import SMALL


def _with(**changes):
    return SMALL.model_copy(update=changes)


def _updates(path):
    return {name: layer.load().dense() for name, layer in open_adapter(path).layers.items()}


def test_the_result_is_the_file_of_the_recipe_that_was_chosen(run, made, tmp_path):
    events = []
    target = toys.toy("toy target", made.target.checkpoint, damping=0.35)
    report = run(on_event=events.append, target=target, settings=_with(samples=16))
    strength = report.recipe.strength
    assert report.recipe.method == "direct"
    assert strength > 1  # the damped target shows too little
    before, after = _updates(made.lora), _updates(report.output)
    for name, update in before.items():
        assert torch.allclose(after[name], strength * update, atol=1e-5)
    again = tmp_path / "again.safetensors"
    loraport.transfer(
        made.lora, source=made.source.checkpoint, target=made.target.checkpoint, output=again,
        method="direct", strength=strength, options=RunOptions(cache="off", log="off"),
    )  # fmt: skip
    assert again.read_bytes() == report.output.read_bytes()
    steps = [event.done for event in events if hasattr(event, "message") and hasattr(event, "done")]
    assert steps == sorted(steps)
    assert steps[-1] == 4
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["calibration"]["chosen"]["strength"] == strength


@pytest.mark.parametrize("spec", ["casa", "casa:1.25"])
def test_the_file_can_be_made_again_from_its_header(run, made, tmp_path, spec):
    report = run(settings=_with(strengths=(), methods=(spec,)))
    best = next(each for each in report.choice.ranking if each.label != "direct")
    out = tmp_path / "casa.safetensors"
    recipe = best.candidate.plan.recipe
    carry_out(best.candidate.plan, out, RunOptions(cache="off", log="off"))
    header = json.loads(open_adapter(out).metadata["loraport.recipe"])
    fields = {name: value for name, value in header.items() if name in Recipe.model_fields}
    files = {"lora": recipe.lora, "source": recipe.source, "target": recipe.target}
    again = tmp_path / "again.safetensors"
    carry_out(make_plan(Recipe(**(fields | files))), again, RunOptions(cache="off", log="off"))
    assert again.read_bytes() == out.read_bytes()
    assert header["method"] == "casa"
    assert header["strength"] == recipe.strength


def test_what_was_tried_is_what_would_be_written(run, made):
    report = run(output=None, dtype="bfloat16", settings=_with(methods=("casa",)))
    for each in report.choice.ranking:
        for name, term in each.candidate.update.items():
            for factor in (term.B, term.A):
                assert torch.equal(factor, factor.to(torch.bfloat16).float()), (each.label, name)


def test_what_is_taken_comes_first_and_the_others_by_their_gap(run):
    report = run(output=None, settings=_with(methods=("casa", "matched-gain:1.5")))
    choice = report.choice
    others = [each.gap.value for each in choice.ranking[1:]]
    assert others == sorted(others)
    assert {each.label for each in choice.ranking} == {
        "direct", "direct x0.75", "direct x1.25", "direct x1.5", "direct x2", "casa", "matched-gain x1.5"
    }  # fmt: skip
    assert report.chosen == choice.ranking[0].label
    assert report.output is None


def test_the_distance_of_latents_may_be_asked_for_and_needs_no_judge(run):
    by_likelihood, by_latents = (
        run(output=None, settings=_with(measure=measure)) for measure in ("likelihood", "latents")
    )
    assert by_latents.passes["source"] < by_likelihood.passes["source"]
    for each in by_latents.choice.ranking:
        assert each.gap.value == each.latents.value


def test_the_same_call_gives_the_same_bytes(run, tmp_path):
    first = run().output.read_bytes()
    assert run(output=tmp_path / "again.safetensors").output.read_bytes() == first


def test_a_target_equal_to_the_source_keeps_the_lora_as_it_is(run, made):
    report = run(target=dataclasses.replace(made.source, name="the same"))
    assert report.chosen == "direct"
    assert report.diagnosis.before.clips.share == pytest.approx(1.0, abs=1e-3)
    assert report.diagnosis.before.whole.share == pytest.approx(1.0, abs=1e-3)


def test_diagnosis_says_what_is_shown_before_and_after(run, made):
    target = toys.toy("toy target", made.target.checkpoint, damping=0.35)
    report = run(output=None, target=target, settings=_with(samples=16))
    before, after = report.diagnosis.before, report.diagnosis.after
    assert abs(1 - after.clips.share) < abs(1 - before.clips.share)
    assert [row.where for row in before.steps] == ["t = 1", "t = 0.667"]
    assert f"{100 * before.clips.share:.0f} %" in report.diagnosis.sentence
    assert run(output=None, settings=_with(diagnosis=0)).diagnosis.before.steps == ()


def test_an_interrupted_run_goes_on_and_another_lora_does_not(run, made, tmp_path):
    cache = tmp_path / "cache"
    whole = run(cache=cache)
    opened = []

    def note(model):
        return dataclasses.replace(model, open=lambda: opened.append(model.name) or model.open())

    models = {"source": note(made.source), "target": note(made.target)}
    again = run(cache=cache, overwrite=True, **models)
    assert opened == []
    assert again.passes == whole.passes
    assert again.found > 0
    assert again.to_json()["calibration"]["ranking"] == whole.to_json()["calibration"]["ranking"]
    more = run(cache=cache, output=None, settings=_with(strengths=(1.0, 1.1)), **models)
    assert opened == ["toy target", "toy source"]  # one strength is new
    assert more.found > 0
    tensors = load_file(made.lora)
    other = tmp_path / "other.safetensors"
    save_file({key: 0.5 * tensor for key, tensor in tensors.items()}, other)
    assert run(cache=cache, output=None, lora=other).choice.as_it_is.gap.value != whole.choice.as_it_is.gap.value


def test_damaged_answers_are_asked_again_with_a_warning(run, tmp_path):
    cache = tmp_path / "cache"
    whole = run(cache=cache, output=None)
    measured = [entry for entry in Store(cache).entries() if entry.kind == "measurement"]
    assert measured
    for entry in measured:
        entry.path.write_bytes(entry.path.read_bytes()[:-8])
    again = run(cache=cache, output=None)
    assert again.found == 0
    assert any("computed again" in text for text in again.warnings)
    assert again.to_json()["calibration"]["ranking"] == whole.to_json()["calibration"]["ranking"]


def test_each_model_is_loaded_once_and_never_with_the_other(run, made):
    alive, opened = set(), []

    def counted(model):
        def load():
            denoiser = model.open()
            opened.append(model.name)
            alive.add(model.name)
            assert len(alive) == 1
            weakref.finalize(denoiser.network, alive.discard, model.name)
            return denoiser

        return dataclasses.replace(model, open=load)

    run(output=None, source=counted(made.source), target=counted(made.target))
    assert opened == ["toy target", "toy source"]


def test_one_prompt_can_be_used_again_with_a_warning(run, made):
    report = run(output=None, prompts=Conditions(made.prompts.prompts[:1], made.prompts.empty))
    assert any("used twice" in text for text in report.warnings)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"to": "nonsense"}, "nonsense"),
        ({"dtype": "float99"}, "float99"),
        ({"settings": _with(methods=("cassa",))}, "cassa"),
        ({"output": "style.safetensors"}, "input LoRA"),
        ({"output": "."}, "folder"),
        ({"options": RunOptions(cache="off", log="source.safetensors", overwrite=True)}, "source"),
    ],
)
def test_what_a_transfer_would_refuse_is_refused_before_the_models_run(run, made, monkeypatch, changes, says):
    monkeypatch.chdir(made.lora.parent)
    before = {file: file.read_bytes() for file in made.lora.parent.iterdir()}

    def never():
        raise AssertionError("a model was loaded")

    closed = {name: dataclasses.replace(getattr(made, name), open=never) for name in ("source", "target")}
    with pytest.raises((LoraportError, ValueError), match=says):
        run(**closed, **({"overwrite": True} | changes))
    assert {file: file.read_bytes() for file in made.lora.parent.iterdir()} == before


def test_a_passthrough_tensor_that_the_profile_cannot_spell_is_refused_before_the_models_run(run, made):
    tensors = load_file(made.lora) | {"diffusion_model.blocks.0.modulation.diff": torch.zeros(1, 6, 32)}
    save_file(tensors, made.lora)

    def never():
        raise AssertionError("a model was loaded")

    closed = {name: dataclasses.replace(getattr(made, name), open=never) for name in ("source", "target")}
    with pytest.raises(LoraportError, match="modulation"):
        run(**closed, to="diffusers")


def test_refusals(run, made, tmp_path):
    with pytest.raises(MismatchError, match="different latents"):
        run(target=dataclasses.replace(made.target, latents=(16, 2, 3, 3)))
    with pytest.raises(UsageError, match="no prompts"):
        run(prompts=None)
    with pytest.raises(UsageError, match="not known where the weights of the target"):
        run(target=dataclasses.replace(made.target, checkpoint=None))
    with pytest.raises(NumericalError, match="not finite"):
        run(target=toys.toy("broken", made.target.checkpoint, broken=True))
    assert not (tmp_path / "out.safetensors").exists()
    run()
    with pytest.raises(FileError, match="already exists"):
        run()
    for changes, says in (
        ({"measure": "taste"}, "measure"),
        ({"samples": 1}, "samples"),
        ({"strengths": (0.0,)}, "strengths"),
        ({"seed": -1}, "seed"),
        ({"seed": 10**12}, "seed"),  # as other programs have them; each of the clips has one of its own
    ):
        with pytest.raises(UsageError, match=says):
            CalibrationSettings(**changes)
    with pytest.raises(UsageError, match="casa:much"):
        CalibrationSettings(methods=("casa:much",))
    run(output=None, settings=_with(seed=10**12 - 1))


def test_a_renoising_target_is_calibrated_too(run, made):
    schedule = Schedule((1.0, 0.757, 0.522, 0.0), 1.0, "renoise")
    report = run(output=None, target=dataclasses.replace(made.target, schedule=schedule))
    assert len(report.diagnosis.before.steps) == 3


class Hungry(toys.ToyDenoiser):
    """Asks for more memory than any machine has."""

    def velocity(self, latents, time, condition):
        torch.empty(2**60, dtype=torch.uint8)
        return super().velocity(latents, time, condition)


@pytest.mark.parametrize("role", ["source", "target"])
def test_memory_that_runs_out_is_said_with_what_to_do(run, made, tmp_path, role):
    model = getattr(made, role)
    hungry = dataclasses.replace(model, open=lambda: Hungry(model.open().network))
    cache = tmp_path / "cache"
    with pytest.raises(FileError, match="out of memory") as caught:
        run(cache=cache, **{role: hungry})
    assert "--offload" in caught.value.fix
    assert not (tmp_path / "out.safetensors").exists()
    kept = [entry for entry in Store(cache).entries() if entry.kind == "measurement"]
    assert bool(kept) == (role == "source")


def test_a_second_round_looks_around_the_best_of_the_first(run):
    coarse, fine = (run(output=None, settings=_with(methods=("casa",), rounds=rounds)) for rounds in (1, 2))
    before, after = ({each.label: each.gap.value for each in report.choice.ranking} for report in (coarse, fine))
    assert before.items() <= after.items()
    assert fine.choice.chosen.gap.value <= coarse.choice.chosen.gap.value
    best = coarse.choice.chosen.candidate.tried
    known = [each.candidate.tried for each in coarse.choice.ranking]
    tried = {each.candidate.tried for each in fine.choice.ranking}
    assert tried == {*known, *around(best, known, fine.settings)}


def test_what_lies_around_a_candidate():
    settings = CalibrationSettings(methods=("casa", "restore-only:1.25"))
    reuse = [Tried("direct", strength) for strength in (0.75, 1.0, 1.5, 2.0)]
    assert set(around(Tried("direct", 1.0), reuse, settings)) == {
        Tried("direct", 0.875), Tried("direct", 1.25), Tried("casa", 1.0, 0.5), Tried("casa"),
        Tried("restore-only", 1.0, 0.5), Tried("restore-only"),
    }  # fmt: skip
    assert set(around(Tried("casa", 1.0), [*reuse, Tried("casa")], settings)) == {Tried("casa", 1.0, 0.5)}
    halved = [Tried("casa"), Tried("casa", 1.0, 0.5)]
    assert set(around(halved[1], halved, settings)) == {Tried("casa", 1.0, 0.25), Tried("casa", 1.0, 0.75)}
    assert Tried.of("casa:1.25:0.5").label == "casa 0.5 x1.25"
