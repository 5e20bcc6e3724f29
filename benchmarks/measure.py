"""What work takes: of a command as a process of its own, with its memory and that of its children; of a call."""

import contextlib
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

INTERVAL = 0.01
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Finished:
    """A process that ended well.

    Attributes:
        stdout: what it printed. wall: seconds from start to end, program start included.
        cpu: seconds of the processor, of all its threads and of the processes that it waited for.
        peak: largest sum of resident memory over the process and its children, bytes. Pages of mapped files
            count; the kernel's own high-water mark is used where there was one process only.
    """

    stdout: str
    wall: float
    cpu: float
    peak: int


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the processor and by the clock, of a call in this process."""
    began, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - began, time.perf_counter() - wall


def run(command: Sequence[str], cores: int = 2) -> Finished:
    """Run to the end on the first `cores` cores. Raises RuntimeError with what it said if it fails."""
    variables = {name: str(cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    began, before = time.perf_counter(), _of_children()
    process = subprocess.Popen(
        list(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | variables
    )
    watch = _Watch(process.pid)
    watch.start()
    stdout, stderr = process.communicate()
    wall, cpu = time.perf_counter() - began, _of_children() - before
    watch.finish()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{stderr[-4000:]}")
    return Finished(stdout, wall, cpu, watch.peak)


class _Watch(threading.Thread):
    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._pid = pid
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(INTERVAL):
            tree = _tree(self._pid)
            sizes = [_resident(pid) for pid in tree]
            now = sizes[0][1] if len(tree) == 1 else sum(size for size, _ in sizes)
            self.peak = max(self.peak, now)

    def finish(self) -> None:
        self._over.set()
        self.join()


def _tree(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
    return found


def _resident(pid: int) -> tuple[int, int]:
    """Bytes resident now and at most so far."""
    with contextlib.suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        if "VmRSS" in lines:
            return tuple(1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return 0, 0


class Others:
    """Share of the machine's cores that programs other than this one and its children used, as a context manager.

    More than a few per cent and the times are not to be believed.
    """

    def __enter__(self) -> "Others":
        self.share = 0.0
        self._began, self._busy, self._own = time.perf_counter(), _busy(), _own()
        return self

    def __exit__(self, *error: object) -> None:
        seconds = (time.perf_counter() - self._began) * (os.cpu_count() or 1)
        self.share = max(_busy() - self._busy - (_own() - self._own), 0.0) / seconds


def _busy() -> float:
    user, nice, system = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def use_cores(count: int) -> list[int]:
    """Keep this process and its children to the first `count` cores; which ones."""
    chosen = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, chosen)
    return chosen


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("model name", "flags"))]
    flags = next((line for line in cpu if line.startswith("flags")), "").split()
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "cpu": next((line.split(":", 1)[1].strip() for line in cpu), platform.processor()),
        "vector": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(memory.split()[1]) * 1024 / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("loraport", "torch", "numpy", "safetensors")},
        "load_before": round(os.getloadavg()[0], 2),
    }
