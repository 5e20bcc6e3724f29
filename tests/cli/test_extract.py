"""`extract`: what is said, and what the exit codes are."""

import json

from typer.testing import CliRunner

import pico
from loraport.cli.main import app


def invoke(*words: object):
    return CliRunner().invoke(app, ["extract", *map(str, words)], prog_name="loraport")


def test_extract(files: pico.Pico) -> None:
    output = files.folder / "out.safetensors"
    pair = ("-s", files.source, "-t", files.target)
    facts = json.loads(invoke(*pair, "--rank", 2, "-o", output, "--drop", "norm|modulation", "--json").stdout)
    assert facts["size"] == output.stat().st_size
    assert {layer["rank_out"] for layer in facts["layers"]} == {2}
    planned = invoke(*pair, "--max-size", "1MB", "--plan")
    assert "26 weights of Wan (2 blocks, width 32) would be cut (max_size=1000000)" in planned.stdout
    done = invoke(*pair, "--energy", 0.5, "-o", output, "--overwrite")
    assert done.exit_code == 0, done.output
    assert "% of the squared norm is kept" in done.stdout
    assert "as it is" in done.stdout
    assert invoke(*pair, "-o", output, "--overwrite").exit_code == 2
    assert invoke("-s", files.source, "-t", files.lora, "--rank", 2, "-o", output, "--overwrite").exit_code == 3
