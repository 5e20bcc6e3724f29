"""Diffusers' own Wan class as a user runs it: a plain folder without a card, embeddings from a file, refusals."""

import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import tinywan
from loraport import zoo
from loraport.cli.main import app
from loraport.errors import FileError, MismatchError, UsageError
from loraport.sampling.prompts import conditions_for, read_embeddings
from loraport.sampling.schedule import SamplingSettings, Schedule
from loraport.sampling.wan import check_together, open_runnable

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


def test_a_bundled_distillation_kept_as_a_lora_runs(tmp_path):
    runnable = open_runnable("zoo:distill-lora")
    assert runnable.checkpoint is None
    denoiser = runnable.open()
    bare = open_runnable("zoo:source").open()
    name = "blocks.0.ffn.2"
    assert not torch.equal(denoiser.linear(name).weight, bare.linear(name).weight)
    assert runnable.schedule.steps == zoo.model_card("distill-lora").sampling.steps


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (SamplingSettings(), "--target-steps"),
        (SamplingSettings(schedule=TIMES), "--latents"),
        (SamplingSettings(schedule=TIMES, latents=(2, 7, 8)), "patches"),
        (SamplingSettings(schedule=TIMES, latents=(2, 8, 8), device="cuda:63"), "cannot use this device"),
        (SamplingSettings(schedule=TIMES, latents=(2, 8, 8), device="cuda:0,cuda:1"), "one device"),
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
        open_runnable(folders[0], SamplingSettings(schedule=TIMES, latents=(2, 8, 8)))
    config.write_text(json.dumps(facts | {"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(MismatchError, match="not a Wan transformer"):
        open_runnable(folders[0], SamplingSettings(schedule=TIMES, latents=(2, 8, 8)))
    for text in ("{broken", "[1]", "\xa6"):  # the last is no UTF-8
        config.write_text(text, encoding="latin-1")
        with pytest.raises(FileError, match="configuration of the model cannot be read"):
            open_runnable(folders[0], SamplingSettings(schedule=TIMES, latents=(2, 8, 8)))
    small, large = (
        open_runnable(folders[1], SamplingSettings(schedule=TIMES, latents=size)) for size in ((2, 8, 8), (2, 8, 16))
    )
    with pytest.raises(MismatchError, match="different latents"):
        check_together(small, large)


@pytest.mark.parametrize("words", [["calibrate", "zoo:noir", "-s", "zoo:source", "-t", "zoo:step"], ["evaluate"]])
def test_without_diffusers_it_says_what_to_install(words, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as Python remembers a module that it could not find
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out.safetensors")])
    assert done.exit_code == 2, done.output
    assert "pip install 'loraport[diffusers]'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_prompts_are_read_and_refused(folders, embeddings, tmp_path):
    plain = open_runnable(folders[0], SamplingSettings(schedule=TIMES, latents=(2, 8, 8)))
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
