"""What needs only headers does not wait for torch, which takes longer to load than all the rest."""

import gc
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import pico
from loraport.cli.main import app
from loraport.engine.rates import rates_of
from loraport.store.index import cache_root

RUN = """
import atexit, sys
heavy = ("torch", "jaxtyping", "diffusers", "matplotlib", "scipy")
atexit.register(lambda: print("loaded", [name for name in heavy if name in sys.modules], file=sys.stderr))
from loraport.cli.main import app
app(sys.argv[1:])
"""


PLAN = "plan {lora} --source {source} --target {target} --device cpu"


@pytest.mark.parametrize(
    "words",
    [
        "inspect {source} {lora}", "inspect {lora} --json", PLAN, f"{PLAN} --json", f"{PLAN} --method direct",
        f"{PLAN} --preset restore-only", "--help", "plan --help", "transfer --help", "--version",
    ],
)  # fmt: skip
def test_torch_is_not_loaded(files: pico.Pico, words: str):
    named = {"{source}": files.source, "{target}": files.target, "{lora}": files.lora}
    args = [str(named.get(word, word)) for word in words.split()]
    if args[0] == "plan" and "--help" not in args:
        rates_of("cpu", cache_root())  # of this machine, which are measured once
    done = subprocess.run([sys.executable, "-c", RUN, *args], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    assert done.stderr.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize("words", [("inspect", "zoo:noir"), ("inspect", "zoo:nowhere")])
def test_the_collector_is_back_after_a_command_without_it(words):
    assert gc.isenabled()
    CliRunner().invoke(app, list(words))
    assert gc.isenabled()
