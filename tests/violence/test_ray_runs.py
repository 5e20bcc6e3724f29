"""Commands with a Ray cluster of their own that are told to end, or ended: no process of it lives on."""

import contextlib
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


@pytest.fixture(scope="session")
def agents() -> Iterator[list[psutil.Process]]:
    """Ray's agents of clusters that were killed. They tell the cluster that their machine is gone before they go, and
    wait a minute for its answer, a time that Ray has no setting for; so they are looked at when all else is done."""
    left: list[psutil.Process] = []
    yield left
    assert psutil.wait_procs(left, timeout=120)[1] == []


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_told_to_end_in_the_middle_of_a_cluster(case, undisturbed, alone, agents, name: str) -> None:
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
    ours, others = [], []
    for each in started:
        with contextlib.suppress(psutil.Error):  # it has ended already
            (others if each.name().endswith("Agent") else ours).append(each)
    assert psutil.wait_procs(ours, timeout=60)[1] == []
    if name == "SIGKILL":
        agents += others
    else:
        assert psutil.wait_procs(others, timeout=60)[1] == []
    again = case.run("--overwrite", *(ON_RAY if name == "SIGINT" else ()), env=alone)
    assert again.code == 0, again.stderr
    assert "from an earlier run" in again.stdout
    assert case.output.read_bytes() == undisturbed.output
    assert case.partials() == []
    if name == "SIGINT":
        lines = [line for line in again.stderr.splitlines() if not line.startswith("waiting up to ")]
        first, *others = lines  # where the work is done, and nothing of Ray's own
        assert first.startswith("Ray: a cluster on this machine, for this run; layers run on 2 CPUs of ")
        assert all(" layers, " in line for line in others), again.stderr


def test_a_cluster_that_does_not_answer(case) -> None:
    done = case.run(*ON_RAY, env={"RAY_ADDRESS": "127.0.0.1:9"})
    assert done.code == 2, done.stderr
    assert done.errors == 1
    assert "the Ray cluster does not answer" in done.stderr
    assert "RAY_ADDRESS=local" in done.stderr
    assert "Traceback" not in done.stderr
