"""Runs that are told to end, or ended: nothing half-written stays, no worker lives on, the next run makes it good."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest


def _workers(case, process, count: int) -> list[psutil.Process]:
    """The worker processes, as soon as there are so many."""
    deadline = time.monotonic() + 60
    found: list[psutil.Process] = []
    while len(found) < count and time.monotonic() < deadline and case.layers_done() < 20:
        found = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
        time.sleep(0.005)
    return found


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_told_to_end(case, undisturbed, name: str) -> None:
    which = signal.Signals[name]
    process = case.start("--executor", "serial")
    case.wait_for_layers(3)
    process.send(which)
    done = process.finish()
    assert done.code == 128 + which, done.stderr
    assert done.errors == 1
    assert "run the same command again to resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert not case.output.exists()
    assert case.partials() == []
    again = case.run()
    assert again.code == 0, again.stderr
    assert "from an earlier run" in again.stdout
    assert case.output.read_bytes() == undisturbed.output


@pytest.mark.parametrize("after", [0, 7, 19])
def test_told_to_end_in_the_middle_of_threads(case, undisturbed, after: int) -> None:
    process = case.start()
    case.wait_for_layers(after)
    process.send(signal.SIGTERM)
    done = process.finish()
    assert done.code in (143, 0) or (after == 0 and done.killed == signal.SIGTERM), done.stderr
    assert case.output.exists() == (done.code == 0)
    assert case.partials() == []
    assert case.run("--overwrite").code == 0
    assert case.output.read_bytes() == undisturbed.output


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True])
def test_told_to_end_in_the_middle_of_processes(case, undisturbed, group: bool) -> None:
    process = case.start("--executor", "process", "--workers", "2")
    workers = _workers(case, process, 2)
    assert workers
    process.send(signal.SIGTERM, group=group)
    done = process.finish()
    assert done.code in (143, 0), done.stderr
    assert "Traceback" not in done.stderr
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert case.partials() == []
    assert case.run("--overwrite").code == 0
    assert case.output.read_bytes() == undisturbed.output


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(case) -> None:
    process = case.start("--executor", "process", "--workers", "2")
    workers = _workers(case, process, 2)
    assert workers
    process.send(signal.SIGKILL)
    process.finish()
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert case.run("--overwrite").code == 0
    assert case.partials() == []


@pytest.mark.parametrize("place", ["output", "cache"])
def test_what_a_killed_run_left_is_removed_by_the_next(case, undisturbed, place: str) -> None:
    """As a run leaves it that was killed while it wrote: nobody holds the file."""
    assert case.run().code == 0
    folder = (
        case.files.folder if place == "output" else sorted((case.cache / "result").rglob("*.safetensors"))[0].parent
    )
    name = case.output.name if place == "output" else next(folder.glob("*.safetensors")).name
    left = folder / f".{name}.k3_x9abc.partial"
    left.write_bytes(b"half")
    assert case.run("--overwrite").code == 0
    assert not left.exists()
    assert case.output.read_bytes() == undisturbed.output


def waiting(made: Path) -> list[str]:
    """Finished layers of many LoRAs; what comes and goes meanwhile is no error to `os.walk`."""
    walked = os.walk(made)
    return [
        name for folder, _, names in walked if ".layers." in folder for name in names if name.endswith(".safetensors")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "process"])
def test_many_told_to_end(case, undisturbed, executor: str) -> None:
    """Layers that wait are gone, outputs are whole or not there, and the same command goes on."""
    loras, made = case.files.folder / "loras", case.files.folder / "made"
    loras.mkdir()
    for number in range(3):
        (loras / f"{number}.safetensors").write_bytes(case.files.lora.read_bytes())
    words = ["-o", made, "--executor", executor, "--workers", "2", "--skip-existing", "--log", "off"]
    command = [loras if word == case.files.lora else word for word in case.words(*words)]

    def start():
        return case.zygote.start(*command, cwd=case.files.folder, cache=case.cache)

    process = start()
    deadline = time.monotonic() + 120
    while len(waiting(made)) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send(signal.SIGTERM)
    done = process.finish()
    assert done.code == 143, done.stderr
    assert "Traceback" not in done.stderr
    assert case.partials() == []
    assert not made.exists()
    again = start().finish()
    assert again.code == 0, again.stderr
    assert {path.name: path.read_bytes() for path in made.iterdir()} == {
        f"{number}.safetensors": undisturbed.output for number in range(3)
    }


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGINT], ids=lambda which: which.name)
def test_a_sweep_that_is_ended_goes_on(case, which: signal.Signals) -> None:
    """Cells that were whole stay and are not made again; the others are made, to the same bytes."""
    folder = case.files.folder
    for number in range(3):
        (folder / f"{number}.safetensors").write_bytes(case.files.lora.read_bytes())
    grid = [*("--rank", "8", "--rank", "12", "--method", "casa", "--method", "matched-gain"), "--log", "off"]
    models = ["-s", case.files.source, "-t", case.files.target]

    def start(output: str):
        words = ["sweep", folder / "[0-2].safetensors", *models, *grid, "--executor", "serial", "-o", folder / output]
        return case.zygote.start(*words, cwd=folder, cache=case.cache if output == "made" else folder / "elsewhere")

    def whole(output: str) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder / output)): path.read_bytes()
            for path in (folder / output).rglob("*.safetensors")
        }

    def finished() -> list[Path]:
        walked = os.walk(folder / "made")  # what comes and goes meanwhile is no error to it
        inside = ((at, name) for at, _, names in walked for name in names if ".partial" not in at)
        return [Path(at, name) for at, name in inside if name.endswith(".safetensors")]

    assert start("other").finish().code == 0
    process = start("made")
    deadline = time.monotonic() + 120
    while not finished() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send(which)
    done = process.finish()
    assert (done.killed, done.code) in ((signal.SIGKILL, None), (None, 130), (None, 0)), done.stderr
    assert "Traceback" not in done.stderr
    rows = json.loads((folder / "made" / "sweep.json").read_text(encoding="utf-8"))["cells"]
    told = [folder / "made" / row["output"] for row in rows if row["state"] == "done"]
    before = {path: path.stat().st_mtime_ns for path in told}
    again = start("made").finish()
    assert again.code == 0, again.stderr
    assert whole("made") == whole("other")
    assert {path: path.stat().st_mtime_ns for path in before} == before
