"""Layers side by side on the machines of a Ray cluster, each as a task.

Ray says where a task runs and when: what it needs of a machine is made from the layer's own figures, so that the
layers in work on a device stay within its memory, and one that is too large runs alone. A task whose process or
machine is lost is done again. A machine reads the files, or is sent what a layer reads through Ray's object store.
"""

import contextlib
import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from loraport.engine.cluster.connection import Cluster, announce, check_usable, connected, survey
from loraport.engine.cluster.machines import NODE_ID, SEES_ALL_CARDS, Node
from loraport.engine.cluster.resources import resources_of, slots_of
from loraport.engine.cluster.task import SAID_SECONDS, Begun, Home, in_task
from loraport.engine.events import Warned
from loraport.engine.executor import J, Limits, Result, Slot, Work, files_read, local_slots, threads_for
from loraport.errors import FileError

RETRIES = 3
"""How often a layer is done again whose process or machine was lost."""

_LOOK_SECONDS = 60.0  # without a result, after which to look whether there still are machines
_READERS = 2  # layers that are read at once to be sent; a disk and a network are not faster for more
_SHARE = 0.5  # of the object store of this machine that what is sent may fill; results come home through it as well


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
            FileError: no machine of it sees the files, where they are not sent; or the processes of a layer were
                killed again and again.
        """
        from loraport.engine.cluster.sending import Sendable

        try:
            started = self._connect(start=True)
            data = self._limits.data if isinstance(work, Sendable) else "paths"
            cluster, left_out = survey(self._limits, files_read(work), data)
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


@dataclass
class _Way:
    """Machines that come by tensors in one way.

    Attributes:
        nodes: the machines.
        window: layers that may be under way to them, so that none waits for the next to be begun.
        work: what they do, in the object store.
        sends: whether they are sent what they read.
        count: layers under way.
    """

    nodes: tuple[Node, ...]
    window: int
    work: Any
    sends: bool
    count: int = 0


@dataclass
class _Layer:
    """A layer under way.

    Attributes:
        number: of the job.
        job: the job.
        way: where it goes.
        bytes: that it takes of the object store.
        task: Ray's; None while what it reads is put into the object store.
    """

    number: int
    job: Any
    way: _Way
    bytes: int
    task: Any = None


class _Tasks:
    """The layers of one run on a cluster."""

    def __init__(self, cluster: Cluster, limits: Limits, work: Any):
        import ray

        self._ray = ray
        self._cluster, self._limits, self._given = cluster, limits, work
        here = {NODE_ID: cluster.here}  # whose end is that of the run anyway
        self._begun = ray.remote(Begun).options(num_cpus=0, label_selector=here).remote()
        self._task = ray.remote(in_task)
        self._always = {
            "max_retries": RETRIES,
            "scheduling_strategy": "SPREAD",
            "runtime_env": SEES_ALL_CARDS if cluster.on_cards else None,
        }
        self._ways = [way for way in map(self._way, (False, True)) if way.nodes]
        self._lying, self._room = 0, int(cluster.store_bytes * _SHARE)  # bytes of layers under way that are sent
        self._waiting: deque[tuple[int, Any]] = deque()
        self._underway: dict[Future[Any], _Layer] = {}  # Python's own waiting hears Ctrl-C, Ray's breaks on it
        self._readers = ThreadPoolExecutor(_READERS, "loraport-sending")

    def run(self, jobs: Sequence[J]) -> Iterator[Any]:
        """Results as they come, those of narrow layers first."""
        self._waiting.extend(sorted(enumerate(jobs), key=lambda each: each[1].wide))
        try:
            while self._waiting or self._underway:
                self._hand_out()
                done = wait(self._underway, _LOOK_SECONDS, FIRST_COMPLETED).done
                if not done:
                    self._check_machines()
                for each in done:
                    if each not in self._underway:
                        continue  # its machines are gone
                    layer = self._underway.pop(each)
                    if layer.task is None:
                        self._begin(layer, each.result())
                        continue
                    self._ended(layer)
                    if self._is_lost(each, layer):
                        self._waiting.append((layer.number, layer.job))
                        continue
                    number, job, sends = layer.number, layer.job, layer.way.sends
                    del layer  # Ray keeps what a task was sent as long as somebody may ask for its result
                    result = self._result(each, number, job)
                    yield self._taken_home(*result) if sends else result
        finally:
            self._readers.shutdown(cancel_futures=True)
            begun = {future: layer.task for future, layer in self._underway.items() if layer.task is not None}
            for task in begun.values():  # those not begun are dropped; those in work do not hear it
                self._ray.cancel(task)
            wait(begun)

    def _way(self, sends: bool) -> _Way:
        nodes = tuple(node for node in self._cluster.nodes if bool(node.unseen) == sends)
        window = 2 * len(slots_of(replace(self._cluster, nodes=nodes), self._limits)) if nodes else 0
        work = self._given
        if sends and nodes:
            from loraport.engine.cluster.sending import away

            work = away(work)
        return _Way(nodes, window, self._ray.put(work) if nodes else None, sends)

    def _hand_out(self) -> None:
        """Begin layers wherever there is room for them."""
        for way in self._ways:
            while self._waiting and way.count < way.window:
                number, job = self._waiting[0]
                if not way.sends:
                    self._waiting.popleft()
                    way.count += 1
                    self._begin(_Layer(number, job, way, 0), None)
                    continue
                from loraport.engine.cluster.sending import bytes_read

                size = bytes_read(job)
                if self._lying and self._lying + size > self._room:
                    break  # one that is larger than the room is sent alone
                self._waiting.popleft()
                way.count += 1
                self._lying += size
                self._underway[self._readers.submit(self._put, job)] = _Layer(number, job, way, size)

    def _put(self, job: J) -> Any:
        from loraport.engine.cluster.sending import pack

        parcel = pack(self._given, job)
        try:
            return self._ray.put(parcel)
        except self._ray.exceptions.RayError as error:  # neither there nor on the disk behind it
            raise FileError(
                "Ray has no room for what a layer reads",
                where=job.title,
                values=_first_line(error),
                fix="give it more (ray start --object-store-memory), or let machines read the files (--ray-data paths)",
            ) from error

    def _begin(self, layer: _Layer, parcel: Any) -> None:
        taken = resources_of(layer.job, self._cluster, self._limits)
        threads = threads_for(layer.job, self._cluster.cores)
        slot = Slot("cuda" if taken.cards else "cpu", threads, layer.job.peak_bytes)
        asked = {"num_cpus": taken.cpus, "num_gpus": taken.cards, "memory": taken.memory}
        where = {NODE_ID: f"in({','.join(node.id for node in layer.way.nodes)})"}
        task = self._task.options(**self._always, **asked, label_selector=where)
        home = Home(os.getcwd(), self._cluster.here)
        layer.task = task.remote(layer.way.work, layer.job, slot, layer.number, home, self._begun, parcel)
        self._underway[layer.task.future()] = layer

    def _ended(self, layer: _Layer) -> None:
        layer.way.count -= 1
        self._lying -= layer.bytes

    def _check_machines(self) -> None:
        """A task that no machine may run any more may wait for ever; it is given to others."""
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        gone = [way for way in self._ways if not any(node.id in alive for node in way.nodes)]
        self._ways = [way for way in self._ways if way not in gone]
        if not self._ways:
            raise FileError(
                "all machines that worked on the layers have left the Ray cluster",
                values=", ".join(node.name for node in self._cluster.nodes),
                fix="run the same command again when there are machines; finished layers are kept",
            )
        for future, layer in list(self._underway.items()):
            if layer.way in gone:
                if layer.task is not None:
                    self._ray.cancel(layer.task)
                del self._underway[future]
                self._ended(layer)
                self._waiting.append((layer.number, layer.job))
        for way in gone:
            names = " and ".join(node.name for node in way.nodes)
            self._limits.on_event(Warned(f"{names} left the Ray cluster; others do the layers that were there"))

    def _is_lost(self, done: "Future[Any]", layer: _Layer) -> bool:
        """Whether a layer is to be done elsewhere, since the machines that it was for are gone."""
        if not isinstance(done.exception(), self._ray.exceptions.TaskUnschedulableError):
            return False
        self._check_machines()
        return layer.way not in self._ways

    def _taken_home(self, result: Any, finished: Any) -> Any:
        from loraport.engine.cluster.sending import take_home

        take_home(self._given, finished)
        return result

    def _result(self, done: "Future[Any]", number: int, job: J) -> Any:
        errors = self._ray.exceptions
        try:
            return done.result()
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            tried: list[str] = self._begun.of.remote(number).future().result(SAID_SECONDS)
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
