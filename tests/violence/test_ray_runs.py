"""Commands with a Ray cluster of their own that are told to end, or ended: no process of it lives on."""

import shutil
import signal
import tempfile
from collections.abc import Iterator

import psutil
import pytest

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.slow
ON_RAY = ("--executor", "ray", "--workers", "2")


@pytest.fixture
def alone() -> Iterator[dict[str, str]]:
    """The settings of a command that starts a cluster for itself. Ray's sockets need a short path."""
    folder = tempfile.mkdtemp(prefix="ray")
    yield {"RAY_ADDRESS": "local", "RAY_TMPDIR": folder}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_told_to_end_in_the_middle_of_a_cluster(case, undisturbed, alone, name: str) -> None:
    which = signal.Signals[name]
    process = case.start(*ON_RAY, env=alone)
    case.wait_for_layers(1, seconds=250)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) > 3
    process.send(which, group=name == "SIGINT")
    done = process.finish()
    ends = {"SIGINT": 130, "SIGTERM": 143}
    assert done.code in (0, ends.get(name)) or done.killed == signal.SIGKILL, done.stderr
    assert "Traceback" not in done.stderr
    assert case.output.exists() == (done.code == 0)
    assert psutil.wait_procs(started, timeout=240)[1] == []  # of a killed one Ray's agents take a while
    again = case.run("--overwrite", *(ON_RAY if name == "SIGINT" else ()), env=alone)
    assert again.code == 0, again.stderr
    assert "from an earlier run" in again.stdout
    assert case.output.read_bytes() == undisturbed.output
    assert case.partials() == []
    if name == "SIGINT":
        first, *others = again.stderr.splitlines()  # where the work is done, and nothing of Ray's own
        assert first.startswith("Ray: a cluster of this machine, for this run; layers run on 2 CPUs of ")
        assert all(" layers, " in line for line in others), again.stderr


def test_a_cluster_that_does_not_answer(case) -> None:
    done = case.run(*ON_RAY, env={"RAY_ADDRESS": "127.0.0.1:9"})
    assert done.code == 2, done.stderr
    assert done.errors == 1
    assert "the Ray cluster does not answer" in done.stderr
    assert "RAY_ADDRESS=local" in done.stderr
    assert "Traceback" not in done.stderr
