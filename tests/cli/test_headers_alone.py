"""What needs only headers does not wait for torch, which takes longer to load than all the rest."""

import subprocess
import sys

import pytest

import pico

RUN = """
import atexit, sys
heavy = ("torch", "jaxtyping", "diffusers", "matplotlib", "scipy")
atexit.register(lambda: print("loaded", [name for name in heavy if name in sys.modules], file=sys.stderr))
from loraport.cli.main import app
app(sys.argv[1:])
"""


@pytest.mark.parametrize("words", ["inspect {source} {lora}", "inspect {lora} --json", "--help", "--version"])
def test_torch_is_not_loaded(files: pico.Pico, words: str):
    args = words.split()
    args = [{"{source}": str(files.source), "{lora}": str(files.lora)}.get(word, word) for word in args]
    done = subprocess.run([sys.executable, "-c", RUN, *args], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    assert done.stderr.splitlines()[-1] == "loaded []"
