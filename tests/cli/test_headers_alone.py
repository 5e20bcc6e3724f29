"""What needs only headers does not wait for torch, which takes longer to load than all the rest."""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pico
from loraport.cli.main import app
from loraport.engine.rates import rates_of
from loraport.store.index import cache_root

HEAVY = ("torch", "numpy", "scipy", "jaxtyping", "matplotlib", "jinja2", "diffusers", "transformers", "safetensors")
RUN = """
import json, sys
from typer.testing import CliRunner
from loraport.cli.main import app
heavy, told = sys.argv[1].split(","), []
for words in json.load(sys.stdin):
    done = CliRunner().invoke(app, words, prog_name="loraport")
    told.append([done.exit_code, done.output, [name for name in heavy if name in sys.modules]])
print(json.dumps(told))
"""
FITS = "--source {source} --target {target}"
PLAN = f"plan {{lora}} {FITS} --device cpu"
ANSWERED = (
    "inspect {source} {lora}", "inspect {lora} --json", "inspect {lora} --verbose", PLAN, f"{PLAN} --json",
    f"{PLAN} --method direct", f"{PLAN} --preset restore-only", f"{PLAN} --method matched-gain",
    f"{PLAN} --method prolora", f"plan {{lora}} {{folder}} {FITS} --device cpu", "cache ls", "cache gc", "cache clear",
    "methods", "methods casa", "methods matched-gain", "--version", "--help",
    "resize {lora} --rank 2 --plan --device cpu", "merge {lora} --into {target} --plan",
    "sweep {lora} -s {source} -t {target} --method casa --method prolora -o {new} --plan --device cpu",
)  # fmt: skip
"""What is answered from headers."""
COMPARE = "compare --lora {{lora}} --source {{{0}}} --target {{{0}}} --target-steps 2 --prompt x -o {{folder}}"
REFUSED = {
    "no.safetensors": (
        f"transfer no.safetensors {FITS} -o {{new}}",
        "transfer {lora} --source no.safetensors --target {target} -o {new}",
        "transfer {lora} --source {source} --target no.safetensors -o {new}",
        "transfer {lora} --source {source} --target-lora no.safetensors -o {new}",
        f"transfer no.safetensors none.pt {FITS} -o {{folder}}",
        f"transfer no.safetensors --expert both {FITS} -o {{new}}",
        f"plan no.safetensors {FITS}", f"check no.safetensors {FITS}",
        f"sweep no.safetensors {FITS} -o {{new}}", f"cache warm no.safetensors {FITS}",
        "inspect no.safetensors", "verify no.safetensors", "verify {lora} --model no.safetensors",
        "convert no.safetensors -o {new}", "convert {lora} --model no.safetensors -o {new}",
        "resize no.safetensors --rank 2 -o {new}", "merge no.safetensors --into {source} -o {new}",
        "merge {lora} --into no.safetensors -o {new}",
        "extract --source no.safetensors --target {target} --rank 2 -o {new}",
        "extract --source {source} --target no.safetensors --rank 2 -o {new}",
        "analyze --source {source} --target no.safetensors -o {page}", f"analyze no.safetensors {FITS} -o {{page}}",
        "intervene remove-drift --source no.safetensors --target {target} -o {new}",
        "intervene amplify-head --source {source} --target no.safetensors -o {new}",
        "calibrate no.safetensors --source zoo:source --target zoo:dmd -o {new}",
        "calibrate {lora} --source no.safetensors --target zoo:dmd -o {new}",
        "compare --lora no.safetensors --source {source} --target {target} --prompt x -o {folder}",
        "compare --lora {lora} --source no.safetensors --target {target} --prompt x -o {folder}",
        "probe --source no.safetensors --target {target} -o {new}",
    ),
    "already exists": (
        f"transfer {{lora}} {FITS} -o {{there}}", "convert {lora} -o {there}", "resize {lora} --rank 2 -o {there}",
        "merge {lora} --into {target} -o {there}", f"analyze {FITS} -o {{there}}.html",
    ),
    "there is no method or": (
        f"transfer {{lora}} {FITS} -o {{new}} --method cassa", f"plan {{lora}} {FITS} --method cassa",
        f"sweep {{lora}} {FITS} -o {{new}} --method cassa", "methods cassa", "evaluate --method cassa",
        "demo --method cassa",
    ),
    "no bundled model": (
        f"transfer zoo:no {FITS} -o {{new}}", "calibrate zoo:no --source zoo:source --target zoo:dmd -o {new}",
    ),
    "Wan (4 blocks, width 128)": (
        f"transfer zoo:outline {FITS} -o {{new}}", f"sweep zoo:outline {FITS} -o {{new}}",
        "transfer {lora} --source {source} --target zoo:dmd -o {new}", "merge zoo:outline --into {source} -o {new}",
        "extract --source {source} --target zoo:dmd --rank 2 -o {new}", f"analyze zoo:outline {FITS} -o {{page}}",
        "intervene remove-drift --source {source} --target zoo:dmd -o {new}",
        "convert zoo:outline --model {source} -o {new}", "resize zoo:outline --rank 2 --model {source} -o {new}",
    ),
    "unknown device": (
        f"transfer {{lora}} {FITS} -o {{new}} --device gpu", f"analyze {FITS} -o {{page}} --device gpu",
        "extract --source {source} --target {target} --rank 2 -o {new} --device cuda:0,mps:1",
    ),
    "there is no such image": (f"{COMPARE.format('wan')} --image no.png",),
    "and none is given": (COMPARE.format("i2v"),),
    "this is not a folder with a network": (f"{COMPARE.format('wan')} --clip {{folder}}",),
    "there is no such file of weights": (f"{COMPARE.format('wan')} --csd no.pth",),
    "was not made from": ("demo --target source",),
    "no output profile": ("convert {lora} --to no -o {new}", f"transfer {{lora}} {FITS} --to no -o {{new}}"),
    "family has no": ("evaluate --target no", "evaluate --lora no"),
}  # fmt: skip
"""What is refused, by what is said."""


def told_of(lines: Sequence[str], files: pico.Pico) -> list[tuple[str, int, str, list[str]]]:
    """Every line with its exit code, what is said, and what has been loaded by then, all in one process."""
    there = files.folder / "there.safetensors"
    for file in (there, Path(f"{there}.html")):
        file.write_bytes(files.lora.read_bytes())
    named = {"source": files.source, "target": files.target, "lora": files.lora, "there": there}
    new = files.folder / "new"
    named |= {"folder": new, "new": new.with_suffix(".safetensors"), "page": new.with_suffix(".html")}
    for name, kind in (("wan", "WanPipeline"), ("i2v", "WanImageToVideoPipeline")):  # as far as headers go
        named[name] = new.with_name(name)
        (named[name] / "transformer").mkdir(parents=True)
        shutil.copy(files.source, named[name] / "transformer" / "diffusion_pytorch_model.safetensors")
        (named[name] / "model_index.json").write_text(json.dumps({"_class_name": kind}), "utf-8")
    asked = [[word.format(**named) for word in line.split()] for line in lines]
    done = subprocess.run(
        [sys.executable, "-c", RUN, ",".join(HEAVY)],
        input=json.dumps(asked), capture_output=True, text=True, encoding="utf-8", check=True, cwd=files.folder,
    )  # fmt: skip
    return [(line, *found) for line, found in zip(lines, json.loads(done.stdout), strict=True)]


def test_what_headers_answer_is_answered_without_torch(files: pico.Pico):
    rates_of("cpu", cache_root())  # of this machine, which are measured once
    (files.folder / "new").mkdir()
    shutil.copy(files.lora, files.folder / "new")
    for line, code, said, loaded in told_of(ANSWERED, files):
        assert (loaded, code) == ([], 0), f"{line}: {said}"
        assert said.strip(), line


def test_what_headers_refuse_is_refused_without_torch(files: pico.Pico):
    lines = {line: says for says, lines in REFUSED.items() for line in lines}
    for line, code, said, loaded in told_of(list(lines), files):
        assert loaded == [], f"{line}: {said}"
        assert code in (2, 3, 5), f"{line}: {said}"
        assert lines[line] in said, f"{line}: {said}"


def test_python_functions_load_torch_once_there_is_work_for_it(files: pico.Pico):
    """What calibrates loads it at once; types of arguments and results do not, for whatever asks for them."""
    code = (
        "import inspect, sys, typing, loraport; "
        "later = 'calibrate', 'CalibrationReport'; "
        "public = [getattr(loraport, name) for name in loraport.__all__ if name not in later]; "
        "[typing.get_type_hints(each) for each in public if inspect.isfunction(each)]; "
        "lora, source, target = sys.argv[1:]; loraport.inspect(lora); "
        "loraport.plan(loraport.Recipe(lora=lora, source=source, target=target)); missing = 'no.safetensors'\n"
        "for asked in (lambda: loraport.transfer(missing, source=source, target=target, output='o'), "
        "lambda: loraport.convert(missing, 'o'), lambda: loraport.merge(missing, source, 'o'), "
        "lambda: loraport.extract(missing, target, 'o', rank=2), lambda: loraport.resize(missing, 'o', rank=2), "
        "lambda: loraport.analyze(source, missing), lambda: loraport.verify(missing)):\n"
        "    try: asked()\n"
        "    except loraport.LoraportError as error: print(error)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    words = [sys.executable, "-c", code, files.lora, files.source, files.target]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.count("no.safetensors") == 7


def test_the_collector_begins_with_the_work_and_stays_what_it_was_in_a_process_of_others():
    from loraport.cli import collector

    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    CliRunner().invoke(app, ["inspect", "zoo:nowhere"])
    collector.begin()  # has nothing to do
    assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen  # some of what the suite froze may be gone
    code = (
        "import gc; from loraport.cli import collector; from loraport.cli.console import Console; "
        "from loraport.cli.progress import Progress; from loraport.engine.events import Remarked; "
        "collector.leave_out(); assert not gc.isenabled(); "
        "Progress(Console(quiet=True))(Remarked('begun')); assert gc.isenabled() and gc.get_freeze_count() > 10_000"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal of Unix")
def test_on_a_terminal_the_plan_is_there_before_torch_is(files: pico.Pico):
    ours, theirs = os.openpty()
    code = (
        "import sys, time; from loraport.cli import progress; told = progress.Progress.planned; "
        "progress.Progress.planned = lambda self, work: (told(self, work), time.sleep(0.3), "
        "print('loaded', 'torch' in sys.modules)); from loraport.cli.main import run; run()"
    )
    words = ["transfer", files.lora, "--source", files.source, "--target", files.target, "-o", files.folder / "new"]
    with subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.DEVNULL, stderr=theirs):
        os.close(theirs)
        shown = b""
        while part := _read(ours):
            shown += part
        os.close(ours)
    assert b"reading headers" in shown
    assert b"loaded False" in shown
    assert b"layers; loading PyTorch" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says that nobody writes there any more
        return b""
