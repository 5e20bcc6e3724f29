"""Calibration on diffusers' own classes: pipelines in memory, folders, the command line, with random tiny weights."""

import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import loraport
import tinywan
from loraport.adapters.parse import open_adapter
from loraport.calibration import CalibrationSettings, SamplingSettings, Schedule
from loraport.cli.main import app
from loraport.engine.options import RunOptions
from loraport.errors import UsageError

SIZE = (tinywan.FRAMES, tinywan.SIZE, tinywan.SIZE)
FAST = Schedule((1.0, 0.757, 0.522, 0.0), 1.0, "renoise")
SMALL = CalibrationSettings(methods=(), strengths=(1.0, 1.5), rounds=1, samples=4, diagnosis=1)
FROM = SamplingSettings(latents=SIZE, steps=3, guidance=3.0)
TO = SamplingSettings(schedule=FAST, latents=SIZE)


@pytest.fixture
def lora(tmp_path):
    return tinywan.lora(tmp_path / "style.safetensors")


@pytest.fixture
def folders(tmp_path):
    return tinywan.folders(tmp_path)


def _calibrate(lora, tmp_path, source, target, **changes):
    given = {
        "prompts": list(tinywan.TEXTS),
        "source_sampling": FROM,
        "target_sampling": TO,
        "settings": SMALL,
        "options": RunOptions(cache=str(tmp_path / "cache"), log="off"),
    }
    return loraport.calibrate(lora, source=source, target=target, **(given | changes))


def _in_memory(folder):
    return SamplingSettings(schedule=FAST, latents=SIZE, checkpoint=folder)


@pytest.mark.slow
def test_pipelines_in_memory_are_used_as_they_are_and_left_as_they_were(lora, folders, tmp_path):
    source, target = tinywan.pipeline(), tinywan.pipeline(drift=0.2, encoder=False)
    before = {key: tensor.clone() for key, tensor in target.transformer.state_dict().items()}
    with pytest.raises(UsageError, match="not known where the weights of the source lie"):
        _calibrate(lora, tmp_path, source, target)
    own = SamplingSettings(latents=SIZE, steps=3, guidance=3.0, checkpoint=folders[0])
    with torch.inference_mode():
        report = _calibrate(
            lora, tmp_path, source, target, output=tmp_path / "out.safetensors", source_sampling=own,
            target_sampling=_in_memory(folders[1]), settings=CalibrationSettings(samples=4, diagnosis=1),
        )  # fmt: skip
    assert len(report.diagnosis.before.steps) == 3
    assert report.source == "source WanPipeline"
    assert {"direct", "casa", "matched-gain"} <= {each.label for each in report.choice.ranking}
    for key, tensor in target.transformer.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert all(parameter.grad is None for parameter in target.transformer.parameters())
    assert all(parameter.requires_grad for parameter in target.transformer.parameters())
    with torch.random.fork_rng(devices=[]):
        target.load_lora_weights(report.output)  # diffusers takes what was made
    assert len(open_adapter(report.output).layers) == 20


@pytest.mark.slow
def test_a_target_of_loras_gives_the_numbers_of_the_folder_they_were_merged_into(lora, folders, tmp_path):
    fast = tinywan.lora(tmp_path / "fast.safetensors", rank=3)
    merged = tinywan.pipeline(encoder=False)
    with torch.random.fork_rng(devices=[]):
        merged.load_lora_weights(fast, adapter_name="fast")
    merged.fuse_lora(lora_scale=0.5)
    merged.unload_lora_weights()
    merged.save_pretrained(tmp_path / "merged")
    small = SMALL.model_copy(update={"samples": 2, "methods": ("casa",)})
    one = _calibrate(lora, tmp_path / "a", folders[0], tmp_path / "merged", settings=small)
    two = _calibrate(lora, tmp_path / "b", folders[0], None, target_lora=f"{fast}:0.5", settings=small)
    assert two.target == "".join([str(folders[0]), " + fast.safetensors"])
    assert [used.strength for used in two.transfer.summary.target_lora] == [0.5]
    assert two.transfer.summary.target is None
    for first, second in zip(one.choice.ranking, two.choice.ranking, strict=True):
        assert (first.label, first.gap.value) == (second.label, pytest.approx(second.gap.value, abs=1e-4))
    again = _calibrate(lora, tmp_path / "b", folders[0], None, target_lora=f"{fast}:0.5", settings=small)
    other = _calibrate(lora, tmp_path / "b", folders[0], None, target_lora=f"{fast}:0.25", settings=small)
    assert again.found > other.found  # another strength is another model
    with pytest.raises(UsageError, match="target is not given"):
        _calibrate(lora, tmp_path, folders[0], None)


def test_memory_and_folder_give_the_same_numbers(lora, folders, tmp_path):
    own = SamplingSettings(latents=SIZE, steps=3, guidance=3.0, checkpoint=folders[0])
    from_memory = _calibrate(
        lora, tmp_path / "a", tinywan.pipeline(), tinywan.transformer(drift=0.2), source_sampling=own,
        target_sampling=_in_memory(folders[1]),
    )  # fmt: skip
    from_folder = _calibrate(lora, tmp_path / "b", *folders)
    assert from_memory.chosen == from_folder.chosen
    assert from_memory.passes == from_folder.passes
    for first, second in zip(from_memory.choice.ranking, from_folder.choice.ranking, strict=True):
        assert first.gap.value == pytest.approx(second.gap.value, abs=1e-4)


def test_other_weights_in_memory_do_not_go_on_from_what_was_said(lora, folders, tmp_path):
    same = tinywan.transformer(drift=0.2)
    found = [
        _calibrate(lora, tmp_path, folders[0], model, target_sampling=_in_memory(folders[1])).found
        for model in (same, same, tinywan.transformer(drift=0.3))
    ]
    assert found[0] == 0
    assert found[1] > found[2] > 0  # the source is the same: what it said of itself stands


@pytest.mark.slow
def test_folders_and_a_text_file_from_the_command_line(lora, folders, tmp_path):
    prompts, out, plot = tmp_path / "prompts.txt", tmp_path / "out.safetensors", tmp_path / "choice.png"
    page = tmp_path / "page.html"
    prompts.write_text("\n".join(tinywan.TEXTS) + "\n\n", encoding="utf-8")
    words = ["calibrate", lora, "--source", folders[0], "--target", folders[1], "--prompts", prompts, "-o", out]
    words += ["--latents", tinywan.LATENTS, "--source-steps", 3, "--source-guidance", 3, "--target-times"]
    words += ["1000,757,522", "--target-sampler", "renoise", "--strengths", "1,1.5", "--methods", "casa"]
    words += ["--samples", 4, "--rounds", 1, "--cache", tmp_path / "cache"]
    words += ["--plot", plot, "--report", page, "--json"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    told = report["calibration"]
    steps = told["diagnosis"]["before"]["steps"]
    assert [row["where"] for row in steps] == ["t = 1", "t = 0.757", "t = 0.522"]
    assert {row["label"] for row in told["ranking"]} == {"direct", "direct x1.5", "casa"}
    assert report["output"] == str(out)
    assert report["summary"]["layers"] == 20  # one report for a transfer and a calibration
    assert report["plot"] == str(plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert report["page"] == str(page)
    drawn = page.read_text(encoding="utf-8")
    assert all(each in drawn for each in ("What was tried", "direct x1.5", "t = 0.757", "blocks.1.ffn.2"))
    assert loraport.verify(out).ok
    refused = CliRunner().invoke(app, [str(word) for word in words])
    assert refused.exit_code == 5
    plot.unlink()
    page.unlink()
    again = CliRunner().invoke(app, [str(word) for word in [*words, "--overwrite"]])
    assert again.exit_code == 0, again.output
    resumed = json.loads(again.stdout)["calibration"]
    assert resumed["ranking"] == told["ranking"]
    assert resumed["found"] > 0


def test_a_distillation_that_is_kept_as_a_lora_is_a_target(tmp_path):
    report = loraport.calibrate(
        "zoo:noir", source="zoo:source", target="zoo:distill-lora", source_sampling=SamplingSettings(steps=2),
        settings=CalibrationSettings(strengths=(), methods=("matched-gain",), rounds=1, samples=2, diagnosis=0),
        options=RunOptions(cache="off", log="off"), output=tmp_path / "out.safetensors",
    )  # fmt: skip
    assert {each.label for each in report.choice.ranking} == {"direct", "matched-gain"}
    assert load_file(report.output)
