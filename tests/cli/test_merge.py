"""`merge`: what is said, and what the exit codes are."""

import json

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


def test_what_makes_no_sense(files: pico.Pico) -> None:
    assert invoke(files.lora, "--into", files.target).exit_code == 2
    assert invoke(files.lora, "--into", files.lora, "-o", files.folder / "x.safetensors").exit_code == 3
    assert invoke(files.lora, "--into", files.folder / "none.safetensors", "--plan").exit_code == 5
