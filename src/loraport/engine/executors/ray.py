"""Layers side by side on the machines of a Ray cluster, each as a task.

Ray says where a task runs and when: what it needs of a machine is made from the layer's own figures, so that the
layers in work on a device stay within its memory, and one that is too large runs alone. A task whose process or
machine is lost is done again.
"""

import concurrent.futures
import contextlib
import math
import os
import signal
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import Any

from loraport.engine.executor import (
    ON_ACCELERATOR,
    J,
    Limits,
    Result,
    Slot,
    Work,
    files_read,
    in_slot,
    local_slots,
    threads_for,
)  # fmt: skip
from loraport.engine.ray_cluster import Cluster, announce, check_usable, connected, survey
from loraport.engine.ray_machines import NODE_ID, SEES_ALL_CARDS, stand_in
from loraport.errors import FileError

RETRIES = 3
"""How often a layer is done again whose process or machine was lost."""

_LOOK_SECONDS = 60.0  # without a result, after which to look whether there still are machines
_SAID_SECONDS = 10.0  # until where a layer is begun is known; the layer does not depend on it
_FINEST = 10_000  # Ray counts in ten-thousandths


class LayerExecutor:
    """A Ray task for each layer, on the cluster that is there, or on one that is started and ends with this object."""

    def __init__(self, limits: Limits):
        check_usable(limits.device)
        self._limits = limits
        self._slots: list[Slot] | None = None
        self._started: bool | None = None
        self._announced = False
        self._connection = contextlib.ExitStack()
        weakref.finalize(self, self._connection.close)

    def slots(self) -> list[Slot]:
        """As many on each processor or card of the cluster as may work side by side; of this machine without one."""
        if self._slots is None:
            there = self._connect(start=False) is not None
            self._slots = slots_of(survey(self._limits, {})[0], self._limits) if there else local_slots(self._limits)
        return self._slots

    def run(self, jobs: Sequence[J], work: Work[J, Result]) -> Iterator[Result]:
        """Yield results as they come. After an error, layers in work are waited for and no more are begun.

        Raises:
            UsageError: the cluster does not answer, or no machine of it can do the work.
            FileError: no machine of it sees the files, or the processes of a layer were killed again and again.
        """
        try:
            started = self._connect(start=True)
            cluster, left_out = survey(self._limits, files_read(work))
            if not self._announced:
                announce(cluster, left_out, self._limits, started=bool(started))
                self._announced = True
            yield from _Tasks(cluster, self._limits, work).run(jobs)
        except BaseException:
            self._connection.close()
            self._started = None
            raise

    def _connect(self, *, start: bool) -> bool | None:
        if self._started is None:
            self._started = self._connection.enter_context(connected(self._limits, start=start))
        return self._started


def slots_of(cluster: Cluster, limits: Limits) -> list[Slot]:
    """Places for layers of ordinary size. Cards are numbered through all machines."""
    found: list[Slot] = []
    for node in cluster.nodes:
        if cluster.on_cards:
            count, room = limits.workers or ON_ACCELERATOR, _allowed(node.card_bytes, limits)
            first = len({slot.device for slot in found})
            found += [Slot(f"cuda:{first + at // count}", 1, room // count) for at in range(node.cards * count)]
        else:
            count, room = limits.workers or max(int(node.cpus), 1), _allowed(node.memory, limits)
            found += [Slot("cpu", 1, room // count)] * count
    return found


@dataclass(frozen=True)
class Needs:
    """What a layer takes of a machine, by which Ray finds one for it.

    Attributes:
        cpus: of those that Ray gives out.
        cards: likewise, or a part of one.
        memory: bytes of the machine.
    """

    cpus: float
    cards: float
    memory: int


def needs_of(job: J, cluster: Cluster, limits: Limits) -> Needs:
    """What to ask for, so that as many layers share a machine as `limits` and its memory allow, and no more.

    Args:
        job: the layer.
        cluster: its machines.
        limits: what the user allows.
    """
    largest = max(node.memory for node in cluster.nodes)
    cpus = min(node.cpus for node in cluster.nodes)
    if not cluster.on_cards:
        scale = largest / _allowed(largest, limits)  # a smaller limit fills the machine sooner
        memory = min(math.ceil(job.peak_bytes * scale), largest)
        count = 1 if job.wide else limits.workers or max(int(cpus), 1)
        return Needs(_share(cpus, count), 0, memory)
    cards = max(node.cards for node in cluster.nodes)
    room = min(_allowed(node.card_bytes, limits) for node in cluster.nodes)
    count = 1 if job.wide else limits.workers or ON_ACCELERATOR
    part = min(max(_floor(1 / count), math.ceil(_FINEST * job.peak_bytes / max(room, 1)) / _FINEST), 1.0)
    own = cpus / cards if job.wide else min(cpus / cards / count, 1.0)
    return Needs(float(int(own)) if own >= 1 else _floor(own), part, min(job.peak_bytes, largest))


def _allowed(memory: int, limits: Limits) -> int:
    return max(memory if limits.memory is None else min(memory, limits.memory), 1)


def _share(whole: float, count: int) -> float:
    """One of `count` parts of a machine; of more than one Ray gives out whole ones alone."""
    part = whole / count
    return float(math.ceil(part)) if part >= 1 else _floor(part)


def _floor(part: float) -> float:
    return max(math.floor(part * _FINEST), 1) / _FINEST


class _Tasks:
    """The layers of one run on a cluster."""

    def __init__(self, cluster: Cluster, limits: Limits, work: Work[J, Result]):
        import ray

        self._ray = ray
        self._cluster, self._limits = cluster, limits
        self._window = 2 * len(slots_of(cluster, limits))  # so that none waits for the next to be sent
        here = {NODE_ID: cluster.here}  # whose end is that of the run anyway
        self._begun = ray.remote(Begun).options(num_cpus=0, label_selector=here).remote()
        self._work = ray.put(work)
        self._task = ray.remote(_in_task)
        self._always = {
            "max_retries": RETRIES,
            "scheduling_strategy": "SPREAD",
            "label_selector": {NODE_ID: f"in({','.join(node.id for node in cluster.nodes)})"},
            "runtime_env": SEES_ALL_CARDS if cluster.on_cards else None,
        }

    def run(self, jobs: Sequence[J]) -> Iterator[Any]:
        """Results as they come, those of narrow layers first."""
        waiting = deque(sorted(enumerate(jobs), key=lambda each: each[1].wide))
        running: dict[Future[Any], tuple[Any, int, J]] = {}  # Python's own waiting hears Ctrl-C, Ray's breaks on it
        try:
            while waiting or running:
                while waiting and len(running) < self._window:
                    number, job = waiting.popleft()
                    task = self._begin(number, job)
                    running[task.future()] = task, number, job
                done = wait(running, _LOOK_SECONDS, FIRST_COMPLETED).done
                if not done:
                    self._check_machines()
                for each in done:
                    _, number, job = running.pop(each)
                    yield self._result(each, number, job)
        finally:
            for task, _, _ in running.values():  # those not begun are dropped; those in work do not hear it
                self._ray.cancel(task)
            wait(running)

    def _check_machines(self) -> None:
        """A task that no machine may run any more would wait for ever."""
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        if not any(node.id in alive for node in self._cluster.nodes):
            raise FileError(
                "all machines that worked on the layers have left the Ray cluster",
                values=", ".join(node.name for node in self._cluster.nodes),
                fix="run the same command again when there are machines; finished layers are kept",
            )

    def _begin(self, number: int, job: J) -> Any:
        needs = needs_of(job, self._cluster, self._limits)
        slot = Slot("cuda" if needs.cards else "cpu", threads_for(job, self._cluster.cores), job.peak_bytes)
        asked = {"num_cpus": needs.cpus, "num_gpus": needs.cards, "memory": needs.memory}
        task = self._task.options(**self._always, **asked)
        return task.remote(self._work, job, slot, number, _Home(os.getcwd(), self._cluster.here), self._begun)

    def _result(self, done: "Future[Any]", number: int, job: J) -> Any:
        errors = self._ray.exceptions
        try:
            return done.result()
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            tried: list[str] = self._begun.of.remote(number).future().result(_SAID_SECONDS)
            killed = isinstance(error, errors.WorkerCrashedError | errors.NodeDiedError | errors.OutOfMemoryError)
            raise FileError(
                "the process of a layer was killed each time it was tried" if killed else "Ray lost a layer",
                where=f"{job.title}, on {' and '.join(dict.fromkeys(tried)) or 'a machine of the Ray cluster'}",
                values=f"tried {max(len(tried), RETRIES + 1)} times; {_first_line(error)}"
                if killed
                else _first_line(error),
                fix="if memory ran out: fewer layers at a time (--workers 1) or a smaller --max-memory; finished "
                "layers are kept",
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class _Home:
    """Where the work comes from: the working folder, and the id of the node."""

    folder: str
    node: str


class Begun:
    """Remembers where each layer was begun, which nobody else can say of a process that was killed. An actor."""

    def __init__(self) -> None:
        self._places: dict[int, list[str]] = {}

    def at(self, number: int, place: str) -> None:
        """A layer was begun there."""
        self._places.setdefault(number, []).append(place)

    def of(self, number: int) -> list[str]:
        """All places where it was begun, a killed try each but the last."""
        return self._places.get(number, [])


def _in_task(work: Work[J, Result], job: J, slot: Slot, number: int, home: _Home, begun: Any) -> Result:
    """Do one job. This runs on whatever machine Ray chose."""
    import ray

    with contextlib.suppress(ValueError):  # not the main thread, which is the one that would be interrupted
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    context = ray.get_runtime_context()
    place = f"{os.uname().nodename if hasattr(os, 'uname') else 'a machine'} ({ray.util.get_node_ip_address()})"
    # By `future`: while a task waits in `ray.get`, Ray gives its CPU and memory to another.
    with contextlib.suppress(TimeoutError, concurrent.futures.TimeoutError, ray.exceptions.RayError):
        begun.at.remote(number, place).future().result(_SAID_SECONDS)
    stand_in(home.folder)
    if slot.device == "cuda":
        slot = replace(slot, device=_card(context.get_accelerator_ids()["GPU"][0]))
    try:
        return in_slot(work, job, slot)
    except FileError as error:
        if context.get_node_id() == home.node:
            raise
        where = f"{error.where}, on {place}" if error.where else place
        fix = "every machine of the Ray cluster must see the same files under the same names, on a shared disk"
        raise FileError(error.what, where=where, values=error.values, fix=fix) from error


def _card(given: str) -> str:
    """torch's name of the card that Ray gave, which counts those that CUDA shows."""
    shown = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return f"cuda:{shown.index(given) if given in shown else int(given)}"
