"""`inspect` and `verify`: what files are, without and with reading their numbers."""

import json

import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pico
from loraport.cli.main import app


def invoke(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="loraport")


def test_inspect_a_lora(files: pico.Pico) -> None:
    page = invoke("inspect", files.lora)
    assert page.exit_code == 0, page.output
    for text in ("a LoRA for Wan", "2 blocks", "20 from 40 keys", "F32", "nothing odd"):
        assert text in page.stdout
    facts = json.loads(invoke("inspect", files.lora, "--json").stdout)
    assert facts["kind"] == "lora"
    assert facts["facts"]["ranks"] == {"4": 20}
    assert facts["findings"] == []


def test_inspect_a_model(files: pico.Pico) -> None:
    facts = json.loads(invoke("inspect", files.source, "--json").stdout)
    assert facts["kind"] == "model"
    assert facts["facts"]["dtypes"] == {"F32": 69}
    assert facts["facts"]["dimensions"]["width"] == pico.WIDTH


def test_inspect_finds_what_is_odd(files: pico.Pico) -> None:
    tensors = load_file(files.lora)
    for name in pico.LAYERS:
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(64.0)
    tensors.pop("diffusion_model.blocks.1.ffn.0.lora_A.weight")
    tensors["stranger"] = torch.zeros(2)
    save_file(tensors, files.lora)
    done = invoke("inspect", files.lora)
    assert done.exit_code == 0, done.output
    assert "alpha / rank is 16" in done.stdout
    assert "--allow-partial" in done.stdout
    assert "lack layers" in done.stdout


def test_inspect_several_goes_on_after_a_bad_one(files: pico.Pico) -> None:
    files.target.write_bytes(b"junk")
    done = invoke("inspect", files.lora, files.target, files.source)
    assert done.exit_code == 5
    assert "a LoRA for" in done.stdout
    assert "a model:" in done.stdout
    assert done.stderr.count("error: ") == 1
    rows = json.loads(invoke("inspect", files.lora, files.target, "--json").stdout)["files"]
    assert rows[1]["error"]["exit_code"] == 5


def test_verify_a_sound_lora(files: pico.Pico) -> None:
    done = invoke("verify", files.lora, "--no-load")
    assert done.exit_code == 0, done.output
    assert "every number is finite" in done.stdout


def test_verify_names_what_is_wrong(files: pico.Pico) -> None:
    tensors = load_file(files.lora)
    tensors["diffusion_model.blocks.0.ffn.0.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, files.lora, metadata={"ss_network_dim": "16"})
    done = invoke("verify", files.lora, "--no-load")
    assert done.exit_code == 5
    assert "blocks.0.ffn.0.lora_A.weight holds NaN" in done.stderr
    assert "the header says 16, the factors have 4" in done.stdout
    assert json.loads(invoke("verify", files.lora, "--no-load", "--json").stdout)["ok"] is False


def test_verify_something_else(files: pico.Pico) -> None:
    done = invoke("verify", files.source, "--no-load")
    assert done.exit_code == 3
    assert done.stderr.count("error: ") == 1
