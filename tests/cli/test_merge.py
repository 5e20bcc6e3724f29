"""`merge`: what is said, and what the exit codes are."""

import json
import re

import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pico
from loraport.cli.main import app


def invoke(*words: object):
    return CliRunner().invoke(app, ["merge", *map(str, words)], prog_name="loraport")


def test_plan_and_merge(files: pico.Pico) -> None:
    output = files.folder / "merged.safetensors"
    planned = json.loads(invoke(files.lora, "--into", files.target, "--plan", "--json").stdout)
    assert planned["tensors"] == len(pico.LAYERS)
    assert not output.exists()
    done = invoke(f"{files.lora}:0.5", "--into", files.target, "-o", output)
    assert done.exit_code == 0, done.output
    assert f"merged into {len(pico.LAYERS)} tensors of Wan" in done.stdout
    shown = CliRunner().invoke(app, ["inspect", str(output)], prog_name="loraport")
    assert files.lora.name in shown.stdout
    assert planned["output_bytes"] == files.target.stat().st_size
    again = invoke(files.lora, "--into", files.target, "-o", output)
    assert again.exit_code == 5
    assert "--overwrite" in again.stderr
    facts = json.loads(invoke(files.lora, "--into", files.target, "-o", output, "--overwrite", "--json").stdout)
    assert facts["files"] == [str(output)]
    assert facts["lost"] < 1e-6


def test_a_refusal_names_what_works(files: pico.Pico) -> None:
    quantised = files.folder / "fp8.safetensors"
    names = {f"{name}.weight" for name in pico.LAYERS}
    state = load_file(files.target).items()
    save_file({key: t.to(torch.float8_e4m3fn) if key in names else t for key, t in state}, quantised)
    words = files.lora, "--into", quantised, "-o", files.folder / "plain.safetensors"
    refused = invoke(*words)
    assert refused.exit_code == 3
    option = re.search(r"--dequantize \w+", refused.stderr)
    assert option is not None
    planned = json.loads(invoke(*words, *option[0].split(), "--plan", "--json").stdout)
    done = invoke(*words, *option[0].split())
    assert done.exit_code == 0, done.output
    assert f"bfloat16  {len(names)} tensors that were quantised, " in done.stdout
    numbers = sum(load_file(quantised)[name].numel() for name in names)
    assert (planned["dequantized"], planned["grown_bytes"]) == (len(names), numbers)
    assert invoke(*words[:-1], files.folder / "same.safetensors", "--requantize").exit_code == 0


def test_what_makes_no_sense(files: pico.Pico) -> None:
    assert invoke(files.lora, "--into", files.target).exit_code == 2
    assert invoke(files.lora, "--into", files.lora, "-o", files.folder / "x.safetensors").exit_code == 3
    assert invoke(files.lora, "--into", files.folder / "none.safetensors", "--plan").exit_code == 5
