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
    for text in ("a LoRA for Wan", "2 blocks", "20 linear layers", "F32", "4 (20 layers)"):
        assert text in page.stdout
    facts = json.loads(invoke("inspect", files.lora, "--json").stdout)
    assert facts["kind"] == "lora"
    assert facts["ranks"] == {"4": 20}


def test_inspect_a_model(files: pico.Pico) -> None:
    facts = json.loads(invoke("inspect", files.source, "--json").stdout)
    assert facts["kind"] == "checkpoint"
    assert facts["dtypes"] == {"F32": 69}
    assert f"width {pico.WIDTH}" in facts["title"]


def test_inspect_finds_what_is_odd(files: pico.Pico) -> None:
    tensors = load_file(files.lora)
    for name in pico.LAYERS:
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(64.0)
    tensors["stranger"] = torch.zeros(2)
    save_file(tensors, files.lora)
    done = invoke("inspect", files.lora)
    assert done.exit_code == 0, done.output
    assert "alpha / rank is 16" in done.stdout
    assert "stranger" in done.stdout
    assert "refused" in done.stdout


def test_inspect_several_goes_on_after_a_bad_one(files: pico.Pico) -> None:
    files.target.write_bytes(b"junk")
    done = invoke("inspect", files.lora, files.target, files.source)
    assert done.exit_code == 5
    assert "a LoRA for" in done.stdout
    assert "a model:" in done.stdout
    assert done.stderr.count("error: ") == 1
    rows = json.loads(invoke("inspect", files.lora, files.target, "--json").stdout)["files"]
    assert rows[1]["error"]["exit_code"] == 5


def test_convert_there_and_back(files: pico.Pico) -> None:
    kohya, back = files.folder / "kohya.safetensors", files.folder / "back.safetensors"
    done = invoke("convert", files.lora, "--to", "kohya", "-o", kohya)
    assert done.exit_code == 0, done.output
    assert "bit for bit" in done.stdout
    assert len(load_file(kohya)) == 60
    facts = json.loads(invoke("convert", kohya, "-o", back, "--json").stdout)
    assert facts["layers"] == 20
    assert facts["folded"] == []
    before, after = load_file(files.lora), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert invoke("convert", kohya, "-o", back).exit_code == 5
    assert invoke("convert", kohya, "--to", "nonsense", "-o", back, "--overwrite").exit_code == 2


def test_verify_a_written_lora(files: pico.Pico) -> None:
    output = files.folder / "made.safetensors"
    assert invoke("convert", files.lora, "-o", output).exit_code == 0
    done = invoke("verify", output, "--no-load", "--model", files.target)
    assert done.exit_code == 0, done.output
    assert "all numbers are finite" in done.stdout
    assert json.loads(invoke("verify", output, "--no-load", "--json").stdout)["ok"] is True


def test_verify_names_what_is_wrong(files: pico.Pico) -> None:
    tensors = load_file(files.lora)
    tensors["diffusion_model.blocks.0.ffn.0.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, files.lora, metadata={"loraport.version": "0"})
    done = invoke("verify", files.lora, "--no-load")
    assert done.exit_code == 5
    assert "blocks.0.ffn.0.lora_A.weight" in done.stderr
    assert "FAILED" in done.stdout
    assert json.loads(invoke("verify", files.lora, "--no-load", "--json").stdout)["ok"] is False


def test_verify_junk(files: pico.Pico) -> None:
    files.lora.write_bytes(b"junk")
    done = invoke("verify", files.lora, "--no-load")
    assert done.exit_code == 5
    assert done.stderr.count("error: ") == 1
