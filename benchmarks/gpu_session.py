"""What the parts of `gpu.py` share: a budget, a place for figures, and the clock and memory of a device."""

import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from synthetic import SIZES, Pair, Size, write_pair

Found = TypeVar("Found")
TINY = {"1.3B": "pico", "14B": "pico"}
SIDES = (1536, 3072, 5120)
"""Of the symmetric eigenproblems; the last is that of all 14B layers."""


class Session:
    """One run of the script.

    Args:
        device: torch name.
        tiny: models of a few kilobytes, to try the script itself.
        budget: seconds in all.
        out: JSON file with all figures, rewritten after every step.
        work: folder for models and outputs.
        blocks: of the 14B pair.
        traces: folder for what the profiler saw, for chrome://tracing or Perfetto; None for none.
    """

    def __init__(
        self,
        device: str,
        *,
        tiny: bool,
        budget: float,
        out: Path,
        work: Path,
        blocks: int,
        traces: Path | None = None,
    ):
        self.device, self.tiny, self.work, self.blocks, self.traces = device, tiny, work, blocks, traces
        self.cuda = device.startswith("cuda")
        self.figures: dict[str, Any] = {}
        self.not_checked: list[str] = []
        self.failed: list[str] = []
        self._out, self._budget, self._began = out, budget, time.perf_counter()
        self._pairs: dict[tuple[str, int], Pair] = {}

    # ---- steps

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self._budget - (time.perf_counter() - self._began)

    def step(self, name: str, work: Callable[[], Found], estimate: float = 0.0) -> Found | None:
        """Do one step if its time is there. What goes wrong is said and does not end the others; then None."""
        if estimate > self.left():
            self.leave_out(name, f"it needs about {estimate:.0f} s and {max(self.left(), 0):.0f} are left of --budget")
            return None
        began = time.perf_counter()
        try:
            found = work()
        except (
            torch.OutOfMemoryError
        ) as error:  # ours hand such a layer to the CPU; what they are held against does not
            self.leave_out(name, f"the card is too small: {' '.join(str(error).split())[:200]}")
            self.release()
            return None
        except Exception as error:  # a card may fail in any way, and the next step may still tell something
            self.failed.append(name)
            self.say(f"FAILED  {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            self.keep(name, {"error": traceback.format_exc()[-4000:]})
            self.release()
            return None
        self.keep(name, {"seconds": time.perf_counter() - began, "found": found})
        return found

    def check(self, name: str, passed: bool, found: str = "") -> bool:
        """Say and keep whether something is as it should be."""
        if not passed:
            self.failed.append(name)
        self.say(f"{'ok    ' if passed else 'FAILED'}  {name}{f': {found}' if found else ''}")
        self.keep(name, {"passed": passed, "found": found})
        return passed

    def leave_out(self, name: str, why: str) -> None:
        """Say that something was not looked at."""
        self.not_checked.append(f"{name}: {why}")
        self.keep(name, {"not checked": why})

    def say(self, text: str) -> None:
        """A line for whoever waits."""
        print(text, flush=True)

    def keep(self, name: str, found: Any) -> None:
        """Keep figures, on the disk at once."""
        self.figures[name] = found
        part = self._out.with_suffix(".part")
        told = {"figures": self.figures, "not checked": self.not_checked, "failed": self.failed}
        part.write_text(json.dumps(told, indent=1, default=str), encoding="utf-8")
        os.replace(part, self._out)

    # ---- models

    def size(self, name: str) -> Size:
        """Width and hidden width of a model, or of the one that stands for it in a tiny run."""
        return SIZES[TINY[name] if self.tiny else name]

    @property
    def sides(self) -> tuple[int, ...]:
        """`SIDES`, or small ones for a tiny run; the last is that of the layers."""
        return (48, 64, self.size("14B").width) if self.tiny else SIDES

    def pair(self, size: str, blocks: int) -> Pair:
        """Source, target and three LoRAs of these shapes, made once, on the device."""
        if (size, blocks) not in self._pairs:
            named = TINY[size] if self.tiny else size
            folder = self.work / f"{size}-{blocks}"
            self._pairs[size, blocks] = write_pair(folder, named, blocks, loras=3, device=self.device)
            self.release()
        return self._pairs[size, blocks]

    # ---- device

    def wait(self) -> None:
        """Until the device has done all that it was asked for."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Give back what torch keeps of the device's memory."""
        if self.cuda:
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], object], repeat: int = 1, warm: int = 0) -> float:
        """Of the middle one of so many runs, waited for."""
        for _ in range(warm):
            work()
        found = []
        for _ in range(repeat):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - began)
        return statistics.median(found)


class Watch:
    """The most memory of a device in use while it is on, of all programs there; on the CPU that of this process.

    Attributes:
        whole: bytes, with what CUDA itself takes.
        more: beyond what was in use before.
    """

    def __init__(self, session: Session):
        self.whole, self._before, self._session, self._over = 0, 0, session, threading.Event()

    def __enter__(self) -> "Watch":
        self._session.wait()
        self._session.release()
        self.whole = self._before = self._used()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):  # asking holds up what the program asks of the card
            self.whole = max(self.whole, self._used())

    @property
    def more(self) -> int:
        """See the class."""
        return self.whole - self._before

    def _used(self) -> int:
        if not self._session.cuda:
            import psutil

            return int(psutil.Process().memory_info().rss)
        free, whole = torch.cuda.mem_get_info(self._session.device)
        return int(whole - free)


def pinning(session: Session) -> tuple[float, float]:
    """(bytes of the host that have been pinned, seconds that this took) in this process; zeros where torch counts
    neither."""
    told = torch.cuda.host_memory_stats() if session.cuda and hasattr(torch.cuda, "host_memory_stats") else {}
    return float(told.get("allocated_bytes.allocated", 0)), told.get("host_alloc_time.total", 0) / 1e6


class Clock:
    """When layers were finished, and from that what a whole model would take.

    Opening files, looking at them and writing the output is done once, however many layers there are, and most of it
    takes no longer for more; so only what layers take is multiplied.
    """

    def __init__(self) -> None:
        self._done: list[float] = []

    def __call__(self, event: object) -> None:
        """A listener of a run."""
        if type(event).__name__ == "LayerDone":
            self._done.append(time.perf_counter())

    def whole(self, wall: float, times: float) -> float:
        """Seconds for `times` as many layers, of a call that took `wall`."""
        count = len(self._done)
        if count < 2:
            return wall * times
        layers = min((self._done[-1] - self._done[0]) * count / (count - 1), wall)
        return wall - layers + layers * times


def busy_share(profiler: "torch.profiler.profile", *, cuda: bool) -> tuple[float, float, float]:
    """(seconds in which anything ran, from the first to the last of it, the sum over all), of a profile.

    On a card what runs are its kernels; copies are left out, since they go on beside them. Without a card it is what
    this thread does on the CPU, so that the way is tried.
    """
    spans = []
    for event in profiler.events():
        computes = (event.device_type == torch.autograd.DeviceType.CUDA) == cuda and not event.name.startswith("Mem")
        if computes and event.time_range.end > event.time_range.start:
            spans.append((event.time_range.start, event.time_range.end))
    return union(spans)


def costliest(profiler: "torch.profiler.profile", count: int = 12) -> list[tuple[str, float, int]]:
    """(name, seconds, calls) of what a card does, copies too, the most time first."""
    found: dict[str, tuple[float, int]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent, calls = found.get(event.name, (0.0, 0))
            found[event.name] = spent + (event.time_range.end - event.time_range.start) / 1e6, calls + 1
    largest = sorted(found.items(), key=lambda item: -item[1][0])[:count]
    return [(name, spent, calls) for name, (spent, calls) in largest]


def union(spans: "list[tuple[float, float]]") -> tuple[float, float, float]:
    """(length covered, from the first begin to the last end, sum of lengths) of spans in microseconds; in seconds."""
    if not spans:
        return 0.0, 0.0, 0.0
    spans = sorted(spans)
    covered, reached = 0.0, spans[0][0]
    for begin, end in spans:
        covered += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    return covered / 1e6, (reached - spans[0][0]) / 1e6, sum(end - begin for begin, end in spans) / 1e6


def command(*words: str) -> list[str]:
    """The program's own command, as a process of this Python."""
    return [sys.executable, "-m", "loraport", *words]
