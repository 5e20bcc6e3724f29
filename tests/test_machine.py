"""What a container allows of its machine, as Linux writes it down in both versions of control groups."""

import math
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loraport import machine

GIGA = 10**9
NONE = 9223372036854771712  # what the first version says where there is no limit


def groups(monkeypatch, folder: Path, own: str, files: dict[str, str]) -> None:
    """Let the module read these files instead of the system's."""
    for name, text in {"own": own, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(machine, "_OWN", folder / "own")
    monkeypatch.setattr(machine, "_MOUNTED", folder)


def second(limit="max", used=0, stat="", cpu="max 100000", at="") -> dict[str, str]:
    return {
        f"{at}memory.max": f"{limit}\n",
        f"{at}memory.current": f"{used}\n",
        f"{at}memory.stat": stat,
        f"{at}cpu.max": f"{cpu}\n",
    }


def first(limit=NONE, used=0, stat="", quota=-1, at="") -> dict[str, str]:
    return {
        f"memory/{at}memory.limit_in_bytes": f"{limit}\n",
        f"memory/{at}memory.usage_in_bytes": f"{used}\n",
        f"memory/{at}memory.stat": stat,
        f"cpu/{at}cpu.cfs_quota_us": f"{quota}\n",
        f"cpu/{at}cpu.cfs_period_us": "100000\n",
    }


FILES = f"anon {GIGA // 4}\nactive_file 1000\ninactive_file 2000\n"
TOTALS = "active_file 1\ninactive_file 2\ntotal_active_file 1000\ntotal_inactive_file 2000\n"
V2, V1 = "0::/\n", "4:memory:/\n3:cpuset:/\n2:cpu,cpuacct:/\n0::/\n"
SCOPE, POD = "0::/user.slice/run.scope\n", "4:memory:/kubepods/pod/c\n2:cpu,cpuacct:/kubepods/pod/c\n"
CASES = {
    "no limits, second version": (V2, second(), math.inf, math.inf),
    "no limits, first version": (V1, first(), math.inf, NONE),
    "a container, second version": (V2, second(GIGA, GIGA // 2, FILES, "50000 100000"), 0.5, GIGA // 2 + 3000),
    "a container, first version": (V1, first(GIGA, GIGA // 2, TOTALS, 50000), 0.5, GIGA // 2 + 3000),
    "the container's group as the machine names it": (POD, first(GIGA, 0, "", 50000), 0.5, GIGA),
    "a limit of a group above": (
        SCOPE,
        second(at="user.slice/run.scope/") | second(GIGA, 1000, "", "50000 100000", at="user.slice/"),
        0.5,
        GIGA - 1000,
    ),
    "the smallest of both": (
        SCOPE,
        second(GIGA, 1000, at="user.slice/run.scope/") | second(2 * GIGA, GIGA + 2000, at="user.slice/"),
        math.inf,
        GIGA - 2000,
    ),
    "more is used than allowed": (V2, second(GIGA, GIGA + 1), math.inf, -1),
    "what nobody understands": (V2, second("much", "some", "files\n\n", "a lot"), math.inf, math.inf),
    "half of it": ("0:\n0\n\n0::/\n", second("max", 0, "", "50000"), math.inf, math.inf),
    "nothing there": ("", {}, math.inf, math.inf),
    "groups for other things": ("9:name=systemd:/\n8:pids:/\n", first(GIGA, 0, "", 50000), math.inf, math.inf),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_groups_allow(name, tmp_path, monkeypatch):
    own, files, share, memory = CASES[name]
    groups(monkeypatch, tmp_path, own, files)
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert machine.cores() == max(math.ceil(min(share, here)), 1)
    assert min(map(machine._cores_of, machine._groups("cpu")), default=math.inf) == share
    assert min(map(machine._bytes_of, machine._groups("memory")), default=math.inf) == memory
    free = psutil.virtual_memory().available
    assert machine.free_memory() == (max(memory, 0) if memory <= GIGA else pytest.approx(free, rel=0.3))


def test_a_group_may_be_named_by_any_bytes(tmp_path, monkeypatch):
    groups(monkeypatch, tmp_path, V2, second(cpu="50000 100000"))
    (tmp_path / "own").write_bytes(b"0::/\xff\n")
    assert machine.cores() == 1


@pytest.mark.parametrize(("quota", "count"), [(150_000, 2), (200_000, 2), (1_000, 1), (6_400_000, 64), (0, 64)])
def test_a_part_of_a_core_counts_as_one(quota, count, tmp_path, monkeypatch):
    groups(monkeypatch, tmp_path, V2, second(cpu=f"{quota} 100000"))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: range(64), raising=False)
    assert machine.cores() == count


@pytest.mark.parametrize(("quota", "given", "threads"), [(100_000, None, "1"), (100_000, "3", "3"), (9**9, None, None)])
def test_the_program_starts_no_more_threads_than_there_are_cores(quota, given, threads, tmp_path):
    """Libraries count the cores that they see: ten times as slow on one of two, and worse on two of many."""
    (tmp_path / "own").write_text(V2)
    (tmp_path / "cpu.max").write_text(f"{quota} 100000")
    code = (
        "import os, sys; from pathlib import Path; from loraport import machine\n"
        "machine._OWN, machine._MOUNTED = Path('own'), Path()\n"
        "machine.cores_in_sight = lambda: 2\n"
        "from loraport.cli import main, start\n"
        "main.run = lambda: print(os.environ.get('OMP_NUM_THREADS')); start.run()"
    )
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    variables |= {} if given is None else {"OMP_NUM_THREADS": given}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(threads)


MOUNTED = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")


@pytest.mark.skipif(not os.access(MOUNTED.parent, os.W_OK), reason="makes a control group of the first version")
def test_a_real_group(tmp_path):
    """Of the system itself: a process in it sees its limit, and what it takes."""
    folder = MOUNTED.parent / f"loraport-test-{os.getpid()}"
    code = (
        "import os, sys; from pathlib import Path; from loraport import machine\n"
        "Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "before = machine.free_memory(); kept = bytearray(os.urandom(1 << 20) * 100)\n"
        "print(before, machine.free_memory())"
    )
    try:
        folder.mkdir()
        (folder / MOUNTED.name).write_text(str(400 << 20))
    except OSError as error:
        pytest.skip(f"the system makes no group: {error.strerror}")
    try:
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
        before, after = map(int, done.stdout.split())
        assert 300 << 20 < before <= 400 << 20
        assert 90 << 20 < before - after < 150 << 20
    finally:
        folder.rmdir()
