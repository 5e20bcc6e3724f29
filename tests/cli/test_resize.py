"""`resize`: what is said, and what the exit codes are."""

import json

from typer.testing import CliRunner

import pico
from loraport.cli.main import app


def invoke(*words: object):
    return CliRunner().invoke(app, ["resize", *map(str, words)], prog_name="loraport")


def test_resize(files: pico.Pico) -> None:
    output = files.folder / "small.safetensors"
    planned = json.loads(invoke(files.lora, "--energy", 0.9, "--plan", "--json").stdout)
    assert planned["weights"] == len(pico.LAYERS)
    assert not output.exists()
    done = invoke(files.lora, "--rank", 2, "-o", output, "-v")
    assert done.exit_code == 0, done.output
    assert f"resized {len(pico.LAYERS)} weights (rank=2)" in done.stdout
    assert "blocks.0.self_attn.q" in done.stdout
    facts = json.loads(invoke(files.lora, "--max-size", "20kB", "-o", output, "--overwrite", "--json").stdout)
    assert facts["size"] == output.stat().st_size <= 20_000
    assert len(facts["layers"]) + len(facts["left_out"]) == len(pico.LAYERS)


def test_what_makes_no_sense(files: pico.Pico) -> None:
    output = files.folder / "small.safetensors"
    assert invoke(files.lora, "-o", output).exit_code == 2
    assert invoke(files.lora, "--rank", 2).exit_code == 2
    assert invoke(files.lora, "--rank", 2, "--energy", 0.5, "-o", output).exit_code == 2
    assert invoke(files.target, "--rank", 2, "-o", output).exit_code == 3
    assert not output.exists()
