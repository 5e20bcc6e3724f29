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


def test_the_collector_begins_with_the_work_and_stays_what_it_was_in_a_process_of_others():
    from loraport.cli import collector

    assert gc.isenabled()
    CliRunner().invoke(app, ["inspect", "zoo:nowhere"])
    collector.begin()  # has nothing to do
    assert gc.isenabled()
    assert not gc.get_freeze_count()
    code = (
        "import gc, torch; from loraport.cli import collector; from loraport.cli.console import Console; "
        "from loraport.cli.progress import Progress; from loraport.engine.events import Remarked; "
        "collector.leave_out(); assert not gc.isenabled(); "
        "Progress(Console(quiet=True))(Remarked('begun')); assert gc.isenabled() and gc.get_freeze_count() > 100_000"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
