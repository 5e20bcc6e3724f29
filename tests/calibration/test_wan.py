"""Diffusers' own Wan class as a user runs it: a plain folder without a card, embeddings from a file, refusals."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from loraport import zoo
from loraport.adapters.parse import open_adapter
from loraport.calibration import Schedule
from loraport.cli.main import app
from loraport.errors import FileError, MismatchError, UsageError
from loraport.sampling.prompts import conditions_for, read_embeddings
from loraport.sampling.wan import RunSettings, check_together, open_runnable

from . import tinywan

TIMES = Schedule((1.0, 0.757, 0.522, 0.0), 1.0, "renoise")


@pytest.fixture
def folders(tmp_path):
    """A source and a target as plain diffusers folders, which do not say how they are sampled."""
    made = []
    for name, drift in (("source", 0.0), ("target", 0.2)):
        folder = tmp_path / f"wan {name}"
        tinywan.transformer(drift=drift).save_pretrained(folder / "transformer")
        made.append(folder)
    return made


@pytest.fixture
def embeddings(tmp_path):
    file = tmp_path / "prompts.safetensors"
    prompts = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(1))
    save_file({"prompt_embeds": prompts, "negative_prompt_embeds": torch.zeros(1, 5, 16)}, file)
    return file


def _calibrate(*words):
    return CliRunner().invoke(app, ["calibrate", *map(str, words)])


def test_a_plain_wan_folder_from_the_command_line(folders, embeddings, tmp_path):
    source, target = folders
    out = tmp_path / "out.safetensors"
    lora = tinywan.lora(tmp_path / "style.safetensors")
    words = [lora, "-s", source, "-t", target, "-o", out, "--prompts", embeddings, "--latents", "2x8x8"]
    words += ["--source-steps", 2, "--source-guidance", 3, "--target-times", "1000,757,522"]
    words += ["--target-sampler", "renoise", "--groups", "type", "--probes", 2, "--heldout", 2, "--transfer", "none"]
    words += ["--group-probes", 0]
    done = _calibrate(*words, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert len(report["diagnosis"]["steps"]) == 3
    assert report["layers"] == 20
    assert report["output"] == str(out)
    assert open_adapter(out).max_rank == 2
    again = _calibrate(*words)
    assert again.exit_code == 5
    assert "--overwrite" in again.stderr


def test_what_is_shown_to_people(tmp_path):
    words = ["outline", "-s", "zoo:source", "-t", "step", "-o", tmp_path / "out.safetensors"]
    done = _calibrate(
        *words, "--groups", "global", "--probes", 1, "--heldout", 2, "--group-probes", 0, "--transfer", "none", "-v"
    )
    assert done.exit_code == 0, done.output
    for text in ("On this target the LoRA shows", "direct x1.5", "took", "passes", "use it at strength 1", "t = 1"):
        assert text in done.stdout


def test_a_bundled_distillation_kept_as_a_lora_runs(tmp_path):
    runnable = open_runnable("zoo:distill-lora")
    assert runnable.checkpoint is None
    denoiser = runnable.open()
    bare = open_runnable("source").open()
    name = "blocks.0.ffn.2"
    assert not torch.equal(denoiser.linear(name).weight, bare.linear(name).weight)
    assert runnable.schedule.steps == 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (RunSettings(), "--target-steps"),
        (RunSettings(TIMES), "--latents"),
        (RunSettings(TIMES, (2, 7, 8)), "patches"),
    ],
)
def test_a_plain_folder_needs_to_be_told_how_it_runs(folders, settings, says):
    with pytest.raises(UsageError, match=says):
        open_runnable(folders[1], settings, role="target")


def test_what_cannot_be_run_is_refused(folders, tmp_path):
    with pytest.raises(FileError, match="no such source"):
        open_runnable(tmp_path / "nothing", role="source")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match=r"config\.json"):
        open_runnable(tmp_path / "empty")
    with pytest.raises(FileError, match="folder that can be run"):
        open_runnable(zoo.path("outline"))
    config = folders[0] / "transformer" / "config.json"
    facts = json.loads(config.read_text())
    config.write_text(json.dumps(facts | {"in_channels": 7}))
    with pytest.raises(MismatchError, match="takes an image"):
        open_runnable(folders[0], RunSettings(TIMES, (2, 8, 8)))
    config.write_text(json.dumps(facts | {"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(MismatchError, match="not a Wan transformer"):
        open_runnable(folders[0], RunSettings(TIMES, (2, 8, 8)))
    small, large = (open_runnable(folders[1], RunSettings(TIMES, size)) for size in ((2, 8, 8), (2, 8, 16)))
    with pytest.raises(MismatchError, match="different latents"):
        check_together(small, large)


def test_prompts_are_read_and_refused(folders, embeddings, tmp_path):
    plain = open_runnable(folders[0], RunSettings(TIMES, (2, 8, 8)))
    assert len(read_embeddings(embeddings).prompts) == 4
    with pytest.raises(UsageError, match="no prompts"):
        conditions_for(plain, plain, None)
    with pytest.raises(FileError, match="no such file"):
        conditions_for(plain, plain, tmp_path / "none.safetensors")
    text = tmp_path / "prompts.txt"
    text.write_text("a cat\n")
    with pytest.raises(FileError, match="no text encoder"):
        conditions_for(plain, plain, text)
    save_file({"prompt_embeds": torch.zeros(1, 2, 3)}, tmp_path / "half.safetensors")
    with pytest.raises(FileError, match="not complete"):
        read_embeddings(tmp_path / "half.safetensors")
    shapes = {"prompt_embeds": torch.zeros(1, 2, 3), "negative_prompt_embeds": torch.zeros(1, 2, 4)}
    save_file(shapes, tmp_path / "odd.safetensors")
    with pytest.raises(MismatchError, match="fit each other"):
        read_embeddings(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["outline", "-s", "source", "-t", "step"], 2, "--output"),
        (["outline", "-s", "source", "-t", "step", "-o", "x", "--latents", "5"], 2, "--latents"),
        (["outline", "-s", "source", "-t", "step", "-o", "x", "--target-times", "a"], 2, "--target-times"),
        (["outline", "-s", "source", "-t", "step", "-o", "x", "--groups", "colour"], 2, "grouping"),
        (["nothing.safetensors", "-s", "source", "-t", "step", "-o", "x"], 5, "nothing.safetensors"),
    ],
)
def test_the_command_refuses_in_one_message(words, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = _calibrate(*words)
    assert done.exit_code == code, done.output
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
