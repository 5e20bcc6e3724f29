"""Both experts of Wan2.2 as one job: two files or none, and pairs that are crossed."""

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import pico
from loraport.containers.locate import locate
from loraport.containers.names import expert_named, named_for
from loraport.containers.safetensors import read_header
from loraport.engine.events import LayerDone
from loraport.engine.experts.asked import outputs_of
from loraport.engine.experts.nearer import NEARER
from loraport.engine.reading import InputReader
from loraport.errors import FileError, MismatchError, NumericalError, UsageError

APART, DRIFT = 0.5, 0.1
PARTS = ("transformer", "transformer_2")
SOME = {
    name: pico.LAYERS[name]
    for name in ("blocks.0.self_attn.q", "blocks.0.cross_attn.o", "blocks.1.ffn.0", "blocks.1.ffn.2")
}
"""Layers of the LoRAs here: each shape, in two blocks."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Pipelines in the layout of diffusers, plain files of the same models, and LoRAs in one file and in two."""
    folder = tmp_path_factory.mktemp("experts")
    source = {"high": pico.weights(1)}
    source["low"] = pico.distilled(source["high"], 5, APART)
    for number, (expert, part) in enumerate(zip(("high", "low"), PARTS, strict=True)):
        for role, tensors in (
            ("source", source[expert]),
            ("target", pico.distilled(source[expert], 6 + number, DRIFT)),
        ):
            place = folder / role / part
            place.mkdir(parents=True)
            save_file(tensors, place / "diffusion_pytorch_model.safetensors")
            os.link(place / "diffusion_pytorch_model.safetensors", folder / f"{role}_{expert}.safetensors")
        save_file(pico.lora(20 + number, layers=SOME), folder / f"style_{expert}_noise.safetensors")
    both = {}
    for number, expert in enumerate(("high", "low"), 1):
        for key, tensor in load_file(folder / f"style_{expert}_noise.safetensors").items():
            both[key.replace("diffusion_model.", f"diffusion_model.transformer_{number}.")] = tensor
    save_file(both, folder / "both.safetensors")
    save_file(pico.lora(30, layers=SOME), folder / "plain.safetensors")
    return folder


def _recipe(files: Path, **settings) -> loraport.Recipe:
    given = {"lora": files / "both.safetensors", "source": files / "source", "target": files / "target"}
    given |= {"method": "matched-gain"} | settings
    return loraport.Recipe.model_validate(given)


OFF = loraport.RunOptions(cache="off", log="off", executor="serial")


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def _same(first: Path, second: Path) -> bool:
    one, two = _tensors(first), _tensors(second)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def singles(files) -> dict[str, Path]:
    """What each expert gives by itself."""
    made = {}
    for expert in ("high", "low"):
        made[expert] = files / f"alone_{expert}.safetensors"
        recipe = _recipe(files, expert=expert).values()
        lora = recipe.pop("lora")
        loraport.transfer(lora, **recipe, output=made[expert], options=OFF)
    return made


def test_one_job_writes_what_two_jobs_write(files, singles, tmp_path):
    report = loraport.transfer_experts(_recipe(files), output=tmp_path / "out.safetensors", options=OFF)
    for expert, one in report.reports.items():
        assert one.output == tmp_path / f"out_{expert}_noise.safetensors"
        assert read_header(one.output).metadata["modelspec.title"].endswith(f", {expert} noise")
        assert _same(one.output, singles[expert])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out_high_noise.safetensors",
        "out_low_noise.safetensors",
    ]
    assert any("load_into_transformer_2=True" in way for way in report.reports["low"].load)
    assert not any("transformer_2" in way for way in report.reports["high"].load)
    assert report.drift["high source, high target"] == pytest.approx(DRIFT, rel=0.1)
    assert report.drift["low source, high target"] > 0.3
    json.dumps(report.to_json(), allow_nan=False)


def test_what_was_looked_at_before_the_work_is_not_held_through_it(files):
    """Four layers of both models in float32, which for 14B are 0.8 GB."""
    held = {}

    def look(event):
        if isinstance(event, LayerDone):
            readers = [found for found in gc.get_objects() if type(found) is InputReader]
            held[event.finished] = sum(len(reader._held) for reader in readers)

    gc.collect()  # readers of other tests
    loraport.transfer_experts(_recipe(files), options=OFF, on_event=look)
    assert len(held) == 2 * len(SOME)
    assert held[len(SOME)] == held[2 * len(SOME)] == 0


def test_plain_files_and_a_pair_of_loras_give_the_same(files, singles, tmp_path):
    recipe = _recipe(
        files,
        lora=files / "style_high_noise.safetensors",
        source=files / "source_high.safetensors",
        target=files / "target_high.safetensors",
    )
    low = loraport.Experts(
        lora_low=files / "style_low_noise.safetensors",
        source_low=files / "source_low.safetensors",
        target_low=files / "target_low.safetensors",
    )
    loraport.transfer_experts(recipe, low, output=tmp_path / "x_high_noise.safetensors", options=OFF)
    for expert, path in outputs_of(tmp_path / "x.safetensors").items():
        assert _same(path, singles[expert])
    beside = low.model_copy(update={"lora_low": None})  # the other of the pair lies beside the first
    plan = loraport.plan_experts(recipe, beside)
    assert plan.plans["low"].adapter.path.name == "style_low_noise.safetensors"


def test_the_original_layout_and_files_that_name_their_expert(files, tmp_path):
    for role in ("source", "target"):
        (tmp_path / role).mkdir()
        for part, expert in zip(PARTS, ("high", "low"), strict=True):
            (tmp_path / role / f"{expert}_noise_model").symlink_to(files / role / part)
    high, low = loraport.plan_experts(
        _recipe(files, source=tmp_path / "source", target=tmp_path / "target")
    ).plans.values()
    assert (high.source.path.name, low.target.path.name) == ("high_noise_model", "low_noise_model")
    for expert in ("high", "low"):
        os.link(files / f"source_{expert}.safetensors", tmp_path / f"wan2.2_t2v_{expert}_noise_14B_fp16.safetensors")
    assert locate(tmp_path, expert="low").path == tmp_path
    assert next(iter(locate(tmp_path, expert="low").groups[()].values())).file.name.startswith("wan2.2_t2v_low")
    with pytest.raises(FileError, match="cannot tell which"):
        locate(tmp_path)


class TestCrossedPairs:
    def test_swapped_targets_are_refused_with_figures(self, files, tmp_path):
        recipe = _recipe(files, target=files / "target_low.safetensors")
        low = loraport.Experts(target_low=files / "target_high.safetensors")
        with pytest.raises(MismatchError, match="wrong way round") as error:
            loraport.transfer_experts(recipe, low, output=tmp_path / "out.safetensors", options=OFF)
        assert "0.100 low source, high target" in error.value.values
        assert list(tmp_path.iterdir()) == []
        forced = loraport.transfer_experts(recipe.model_copy(update={"force": True}), low, options=OFF)
        assert any("wrong way round" in warning for warning in forced.warnings)

    def test_one_target_of_the_other_expert(self, files):
        further = files / "further_low.safetensors"
        save_file(pico.distilled(load_file(files / "source_low.safetensors"), 40, 0.15), further)
        recipe = _recipe(files, target=further)
        low = loraport.Experts(target_low=files / "target_low.safetensors")
        with pytest.raises(MismatchError, match="target of the high-noise expert was made from the other") as error:
            loraport.transfer_experts(recipe, low, options=OFF)
        assert "made from the high-noise source as --target," in error.value.fix
        assert "swap" not in error.value.fix

    @pytest.mark.parametrize(("role", "other"), [("source", "target"), ("target", "source")])
    def test_a_single_job_with_the_other_expert_at_hand(self, files, role, other):
        sides = {role: files / role, other: files / f"{other}_low.safetensors"}
        settings = {"lora": files / "plain.safetensors", "options": OFF, "method": "matched-gain", **sides}
        with pytest.raises(MismatchError, match="the other expert") as error:
            loraport.transfer(expert="high", **settings)
        assert "--expert low" in error.value.fix
        assert loraport.transfer(expert="low", **settings).layers

    def test_experts_that_hardly_differ_are_no_reason(self, tmp_path):
        source = pico.weights(1)
        models = {"source": source, "source_low": pico.distilled(source, 2, 0.01)}
        models |= {f"target{low}": pico.distilled(models[f"source{low}"], 3, 0.2) for low in ("", "_low")}
        for name, tensors in models.items():
            save_file(tensors, tmp_path / f"{name}.safetensors")
        save_file(pico.lora(3, layers=SOME), tmp_path / "lora.safetensors")
        given = {name: tmp_path / f"{name}.safetensors" for name in models}
        experts = loraport.Experts(source_low=given["source_low"], target_low=given["target_low"])
        recipe = _recipe(tmp_path, lora=tmp_path / "lora.safetensors", source=given["source"], target=given["target"])
        report = loraport.transfer_experts(recipe, experts, options=OFF)
        assert report.drift["low source, high target"] > NEARER * report.drift["high source, high target"]

    def test_names_the_wrong_way_round_are_said(self, files):
        low = loraport.Experts(expert="both", lora_low=files / "style_high_noise.safetensors")
        plan = loraport.plan_experts(_recipe(files, lora=files / "style_low_noise.safetensors"), low)
        assert any("wrong way round" in text and "--lora-low" in text for text in plan.warnings)


class TestNeitherOrBoth:
    def _broken(self, files, tmp_path) -> Path:
        """The LoRA of both experts, with a NaN in the low one."""
        tensors = load_file(files / "both.safetensors")
        tensors["diffusion_model.transformer_2.blocks.1.ffn.2.lora_A.weight"][0, 0] = float("nan")
        save_file(tensors, tmp_path / "broken.safetensors")
        return tmp_path / "broken.safetensors"

    def test_a_failure_of_one_leaves_neither_and_the_next_run_resumes(self, files, tmp_path):
        options = loraport.RunOptions(cache=str(tmp_path / "cache"), executor="serial")
        out = tmp_path / "made" / "out.safetensors"
        with pytest.raises(NumericalError, match="low-noise expert: "):
            loraport.transfer_experts(_recipe(files, lora=self._broken(files, tmp_path)), output=out, options=options)
        logs = {expert: path.with_suffix("").with_suffix(".run.jsonl") for expert, path in outputs_of(out).items()}
        assert sorted(out.parent.iterdir()) == sorted(logs.values())
        for log in logs.values():
            assert json.loads(log.read_text().splitlines()[-1])["event"] == "failed"
        report = loraport.transfer_experts(_recipe(files), output=out, options=options)
        high, low = (one.summary.cached_layers for one in report.reports.values())
        assert high == len(SOME)
        assert 0 < low < len(SOME)

    def test_an_interruption_leaves_what_was_there(self, files, tmp_path):
        names = outputs_of(tmp_path / "out.safetensors")
        for path in names.values():
            path.write_text("precious")

        def stop(event):
            if isinstance(event, LayerDone) and event.finished > len(SOME) + 1:
                assert event.layers == 2 * len(SOME)
                raise KeyboardInterrupt

        options = OFF.model_copy(update={"overwrite": True})
        with pytest.raises(KeyboardInterrupt):
            loraport.transfer_experts(
                _recipe(files), output=tmp_path / "out.safetensors", options=options, on_event=stop
            )
        assert {path.read_text() for path in names.values()} == {"precious"}
        assert sorted(tmp_path.iterdir()) == sorted(names.values())

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_second_name_that_cannot_be_had_gives_the_first_back(self, files, tmp_path, monkeypatch, overwrite):
        names = outputs_of(tmp_path / "out.safetensors")
        if overwrite:
            names["high"].write_text("precious")
        place = os.replace if overwrite else os.link

        def fail(source, target, **more):
            if Path(target) == names["low"]:
                raise OSError(28, "No space left on device")
            return place(source, target, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, place.__name__, fail)
            if not overwrite:  # without second names it looks and renames, which fails as well
                replace = os.replace
                patch.setattr(os, "replace", lambda a, b: fail(a, b) if Path(b) == names["low"] else replace(a, b))
            with pytest.raises(FileError, match="disk is full"):
                loraport.transfer_experts(
                    _recipe(files),
                    output=tmp_path / "out.safetensors",
                    options=OFF.model_copy(update={"overwrite": overwrite}),
                )
        assert [path.name for path in tmp_path.iterdir()] == ([names["high"].name] if overwrite else [])
        assert not overwrite or names["high"].read_text() == "precious"

    def test_no_output_replaces_an_input_of_the_other_expert(self, files, tmp_path):
        lora = tmp_path / "x_low_noise.safetensors"
        lora.write_bytes((files / "plain.safetensors").read_bytes())
        recipe = _recipe(files, lora=files / "plain.safetensors")
        with pytest.raises(FileError, match="would replace the input LoRA"):
            loraport.transfer_experts(
                recipe,
                loraport.Experts(lora_low=lora),
                output=tmp_path / "x.safetensors",
                options=OFF.model_copy(update={"overwrite": True}),
            )
        assert lora.read_bytes() == (files / "plain.safetensors").read_bytes()


class TestWhatIsMeant:
    def test_of_a_source_with_two_experts_one_must_be_named(self, files):
        for lora in ("plain", "both"):
            with pytest.raises(UsageError, match="two experts") as error:
                loraport.plan(_recipe(files, lora=files / f"{lora}.safetensors"))
            assert "--expert both" in error.value.fix

    def test_a_lora_that_names_one_expert_chooses_it(self, files, tmp_path):
        tensors = {k: t for k, t in load_file(files / "both.safetensors").items() if ".transformer_2." in k}
        save_file(tensors, tmp_path / "low.safetensors")
        assert loraport.plan(_recipe(files, lora=tmp_path / "low.safetensors")).source.path.name == "transformer_2"
        with pytest.raises(UsageError, match="no expert 'high'"):
            loraport.plan(_recipe(files, lora=tmp_path / "low.safetensors", expert="high"))

    def test_one_model_for_both_experts_is_refused(self, files):
        with pytest.raises(MismatchError, match="the same source") as error:
            loraport.plan_experts(_recipe(files, source=files / "source_high.safetensors"))
        assert "--source-low" in error.value.fix

    def test_one_lora_for_both_experts_is_said(self, files):
        plan = loraport.plan_experts(_recipe(files, lora=files / "plain.safetensors"))
        assert any("used for both experts" in text for text in plan.warnings)
        assert not any("selects nothing" in text for one in plan.plans.values() for text in one.warnings)

    def test_distillation_loras(self, files, tmp_path):
        recipe = _recipe(files, target=None, target_lora=files / "style_high_noise.safetensors")
        low = loraport.Experts(target_lora_low=files / "style_low_noise.safetensors")
        report = loraport.transfer_experts(recipe, low, output=tmp_path / "out.safetensors", options=OFF)
        assert report.drift == {}
        for expert, one in report.reports.items():
            assert any(f"style_{expert}_noise" in way for way in one.load)

    def test_a_distillation_lora_named_after_one_expert_brings_the_other(self, files):
        pair = [str(files / f"style_{expert}_noise.safetensors") for expert in ("high", "low")]
        for given in (pair[:1], pair[1:], pair):
            high, low = loraport.plan_experts(_recipe(files, target=None, target_lora=given)).plans.values()
            assert [each.given.file for one in (high, low) for each in one.added] == pair
        given = [f"{pair[0]}:0.5", f"{pair[1]}:0.25", str(files / "plain.safetensors")]
        high, low = loraport.plan_experts(_recipe(files, target=None, target_lora=given)).plans.values()
        assert [each.given.strength for one in (high, low) for each in one.added] == [0.5, 1, 0.25, 1]

    def test_a_distillation_lora_named_after_one_expert_is_not_taken_for_both(self, files, tmp_path):
        for expert in ("high", "low"):
            alone = tmp_path / expert / f"few_{expert.upper()}_noise_v1.safetensors"
            alone.parent.mkdir()
            alone.write_bytes((files / "plain.safetensors").read_bytes())
            recipe = _recipe(files, target=None, target_lora=alone)
            with pytest.raises(UsageError, match=f"named after the {expert}-noise expert") as caught:
                loraport.plan_experts(recipe)
            named = {"high": "FILE", "low": "FILE", expert: alone}
            assert f"--target-lora {named['high']} --target-lora-low {named['low']}" in caught.value.fix
            plan = loraport.plan_experts(recipe, loraport.Experts(target_lora_low=alone))  # the way out
            assert any("used for both experts" in text for text in plan.warnings)

    def test_a_plain_distillation_lora_serves_both_and_that_is_said(self, files):
        plan = loraport.plan_experts(_recipe(files, target=None, target_lora=files / "plain.safetensors"))
        assert any("--target-lora-low" in text for text in plan.warnings)

    def test_one_expert_and_something_for_two_contradict(self):
        with pytest.raises(UsageError, match="one expert is chosen"):
            loraport.Experts(expert="high", lora_low="x")


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("wan2.2_t2v_A14b_high_noise_lora_rank64.safetensors", "high"),
        ("WAN2.2-I2V-LowNoise_style.safetensors", "low"),
        ("low_poly.safetensors", None),
        ("high_noise_and_low_noise.safetensors", None),
        ("glow-noise.safetensors", None),
    ],
)
def test_the_expert_in_a_name(name, expert):
    assert expert_named(name) == expert


def test_outputs_are_named_after_one():
    named = [path.name for path in outputs_of(Path("a/style_high.safetensors")).values()]
    assert named == ["style_high_noise.safetensors", "style_low_noise.safetensors"]
    assert named_for(Path("style.run.jsonl"), "low").name == "style.run_low_noise.jsonl"
    assert expert_named("Wan_2_2_I2V_A14B_HIGH_lightx2v", bare=True) == "high"
