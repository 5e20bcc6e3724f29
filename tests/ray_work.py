"""Work for the processes of a Ray cluster, which find it by the name of this module."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraport.engine.executor import Slot
from loraport.engine.job import Job
from loraport.engine.known_digests import KnownDigests
from loraport.errors import FileError, NumericalError


@dataclass(frozen=True)
class Layer(Job):
    """A layer that is nothing but its figures."""

    name: str
    shape: tuple[int, int] = (4, 4)
    peak_bytes: int = 100


def threads(job: Layer, slot: Slot) -> tuple[str, str, int]:
    """Name, device and number of threads."""
    assert slot.threads == torch.get_num_threads()
    return job.name, slot.device, torch.get_num_threads()


def fail(job: Layer, slot: Slot) -> str:
    """Of the layers called bad and worse, an error of ours and a fault."""
    if job.name == "bad":
        raise NumericalError("not finite", where=job.name, fix="look")
    if job.name == "worse":
        raise ZeroDivisionError("a fault")
    return job.name


def lose(job: Layer, slot: Slot) -> str:
    """A file that cannot be read."""
    raise FileError("the file is cut short", where="w.safetensors", values="3 of 4 bytes", fix="get it again")


def folder(job: Layer, slot: Slot) -> str:
    """Where relative names begin."""
    return os.getcwd()


@dataclass(frozen=True)
class Reading:
    """Work that reads files."""

    reader: KnownDigests

    def __call__(self, job: Layer, slot: Slot) -> str:
        return job.name


@dataclass(frozen=True)
class Dying:
    """Work whose process is killed in the middle of a layer, as by a system without memory.

    Args:
        work: what is done else.
        victims: names of layers.
        folder: where each death leaves a mark.
        deaths: how often each layer dies.
    """

    work: Any
    victims: tuple[str, ...]
    folder: Path
    deaths: int = 1

    @property
    def reader(self) -> Any:
        return getattr(self.work, "reader", None)

    @property
    def store(self) -> Any:
        return self.work.store

    def __call__(self, job: Any, slot: Slot) -> Any:
        died = len(list(self.folder.glob(f"{job.name} *")))
        if job.name in self.victims and died < self.deaths:
            (self.folder / f"{job.name} {died}").touch()
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        return self.work(job, slot)


@dataclass(frozen=True)
class Watched:
    """Work on files that sees on which machine each layer is done. On one that does not see them it may be killed.

    Args:
        work: what is done.
        folder: where each layer leaves a mark.
        end: what becomes of layers on such a machine: "" nothing, "killed" the process of the first, "waits" each
            for the machine's end.
    """

    work: Any
    folder: Path
    end: str = ""

    @property
    def reader(self) -> Any:
        return self.work.reader

    @property
    def store(self) -> Any:
        return self.work.store

    def result_keys(self, job: Any) -> Any:
        return self.work.result_keys(job)

    def elsewhere(self, store: Any, reader: Any) -> "Watched":
        return Watched(self.work.elsewhere(store, reader), self.folder, self.end)

    def __call__(self, job: Any, slot: Slot) -> Any:
        blind = "HIDDEN_FOLDER" in os.environ
        first = blind and not any(self.folder.glob("blind *"))
        (self.folder / f"{'blind' if blind else 'seeing'} {getattr(job, 'title', job)}").touch()
        if first and self.end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if blind and self.end == "waits":
            time.sleep(600)
        return self.work(job, slot)


@dataclass(frozen=True)
class Crowded:
    """Work on machines whose object stores have no room for anything besides.

    Args:
        work: what is done.
    """

    work: Any

    @property
    def reader(self) -> Any:
        return self.work.reader

    @property
    def store(self) -> Any:
        return self.work.store

    def result_keys(self, job: Any) -> Any:
        return self.work.result_keys(job)

    def elsewhere(self, store: Any, reader: Any) -> "Crowded":
        return Crowded(self.work.elsewhere(store, reader))

    def __call__(self, job: Any, slot: Slot) -> Any:
        import ray

        put = ray.put

        def refuse(value: Any) -> Any:
            ray.put = put  # for whatever this process does next
            raise ray.exceptions.OutOfDiskError("no room")

        ray.put = refuse
        try:
            return self.work(job, slot)
        except BaseException:
            ray.put = put
            raise


MEETING = ("meeting 0", "meeting 1")


@dataclass(frozen=True)
class Together:
    """Work that sees which layers are in work on the same machine meanwhile, and how many at once.

    The two of `MEETING` wait for each other.

    Args:
        folder: where each layer leaves a mark while it is in work.
    """

    folder: Path

    def __call__(self, job: Layer, slot: Slot) -> tuple[str, list[str], int]:
        import ray

        here = self.folder / f"on {ray.get_runtime_context().get_node_id()}"
        here.mkdir(exist_ok=True)
        mark = here / job.name
        mark.touch()
        seen: set[str] = set()
        most = 0
        begun = time.monotonic()
        while time.monotonic() < begun + 0.1 or (job.name in MEETING and not self._met()):
            now = {path.name for path in here.iterdir()}
            seen, most = seen | now, max(most, len(now))
            time.sleep(0.01)
            if time.monotonic() > begun + 120:
                break
        mark.unlink()
        return job.name, sorted(seen - {job.name}), most

    def _met(self) -> bool:
        if {path.name for path in self.folder.glob("on */*")} >= set(MEETING):
            (self.folder / "met").touch()
        return (self.folder / "met").exists()


@dataclass(frozen=True)
class Slow:
    """Work that takes its time.

    Args:
        seconds: of each layer.
    """

    seconds: float

    def __call__(self, job: Layer, slot: Slot) -> str:
        time.sleep(self.seconds)
        return job.name
