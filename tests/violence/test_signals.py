"""Runs that are told to end, or ended: nothing half-written stays, no worker lives on, the next run makes it good."""

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
