"""The layers of one run under way on a Ray cluster: handed out, lost and done again, taken home."""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, replace
from typing import Any

from loraport.engine.apart import Done, outcome, take_home, told
from loraport.engine.cluster.connection import Cluster, knock
from loraport.engine.cluster.fetching import fetch_home
from loraport.engine.cluster.machines import NODE_ID, SEES_ALL_CARDS, Node
from loraport.engine.cluster.resources import resources_of, slots_of
from loraport.engine.cluster.sending import away, bytes_read, pack
from loraport.engine.cluster.task import Begun, Home, Offer, in_task, places_of
from loraport.engine.events import Warned
from loraport.engine.executor import J, Limits, Slot, threads_for
from loraport.errors import FileError, first_line
from loraport.store.store import NullStore
from loraport.store.writing import Behind
from loraport.wording import count

RETRIES = 3
"""How often a layer is done again whose process or machine was lost."""

_KNOCK_SECONDS = 10.0  # after which to see whether the head of the cluster still answers
_SILENT_SECONDS = 15.0  # from the first time that it did not until it is lost; Ray ends this program after 60
_LOOK_SECONDS = 60.0  # without a result, after which to look whether there still are machines, and what was sent
_FETCH_SECONDS = 60.0  # until when what was sent is there again, if the object store had put it on the disk
_READERS = 2  # layers that are read at once to be sent; a disk and a network are not faster for more
_SHARE = 0.5  # of the object store of this machine that what is sent may fill; results come home through it as well


@dataclass
class _Way:
    """Machines that come by tensors in one way.

    Attributes:
        nodes: the machines.
        window: layers that may be under way to them, so that none waits for the next to be begun.
        work: what they do.
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
        parcel: what it is sent, in the object store.
        task: Ray's; None while what it reads is put into the object store.
    """

    number: int
    job: Any
    way: _Way
    bytes: int
    parcel: Any = None
    task: Any = None


class Underway:
    """The layers of one run on a cluster.

    Args:
        cluster: where they are done.
        limits: what the user allows.
        work: what is done for each; `Sendable` where machines are sent what they read.
    """

    def __init__(self, cluster: Cluster, limits: Limits, work: Any):
        import ray

        self._ray = ray
        self._cluster, self._limits, self._work = cluster, limits, work
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
        self._store, self._fetching = getattr(work, "store", NullStore()), Behind(self._room)
        self._answered = self._looked = time.monotonic()
        self._silent: float | None = None
        self._lost = False

    def run(self, jobs: Sequence[J]) -> Iterator[Any]:
        """Results as they come, those of narrow layers first. Raises what a layer raises, and FileError if the cluster
        or its machines are lost. Layers in work are waited for then, and what they make is kept."""
        self._waiting.extend(sorted(enumerate(jobs), key=lambda each: each[1].wide))
        try:
            while self._waiting or self._underway:
                self._hand_out()
                done = wait(self._underway, _KNOCK_SECONDS, FIRST_COMPLETED).done
                self._look(idle=not done)
                for each in done:
                    layer = self._underway.pop(each, None)
                    if layer is None:
                        continue  # it was given to others
                    if layer.task is None:
                        self._begin(layer, each.result())
                        continue
                    self._ended(layer)
                    if self._is_lost(each, layer):
                        self._waiting.append((layer.number, layer.job))
                        continue
                    number, job = layer.number, layer.job
                    del layer  # Ray keeps what a task was sent as long as somebody may ask for its result
                    yield outcome(self._taken_home(each, number, job))
            self._fetching.finish()
        finally:
            self._readers.shutdown(cancel_futures=True)
            self._fetching.stop(wait=not self._lost)
            if not self._lost:
                self._finish()

    def _finish(self) -> None:
        """Drop the layers that are not begun, and keep what those in work make."""
        begun = {future: layer.task for future, layer in self._underway.items() if layer.task is not None}
        self._underway.clear()
        for task in begun.values():  # those in work do not hear it
            self._ray.cancel(task)
        for future in as_completed(begun):
            if not future.cancelled() and future.exception() is None:
                take_home(self._work, future.result()[0])

    def _taken_home(self, done: "Future[Any]", number: int, job: J) -> Done[Any]:
        result, offers = self._result(done, number, job)
        take_home(self._work, result)
        fetch_home(self._ray, offers, self._store, self._fetching)
        return result

    def _way(self, sends: bool) -> _Way:
        nodes = tuple(node for node in self._cluster.nodes if bool(node.unseen) == sends)
        window = 2 * len(slots_of(replace(self._cluster, nodes=nodes), self._limits)) if nodes else 0
        # On cards what is kept of a layer takes one to five seconds a GB to make, about as long as its way here.
        there = away(self._work, decompositions=not self._cluster.on_cards) if sends and nodes else self._work
        return _Way(nodes, window, there, sends)

    def _hand_out(self) -> None:
        """Begin layers wherever there is room for them."""
        for way in self._ways:
            while self._waiting and way.count < way.window:
                number, job = self._waiting[0]
                size = bytes_read(job) if way.sends else 0
                if size and self._lying and self._lying + size > self._room:
                    break  # one that is larger than the room is sent alone
                self._waiting.popleft()
                way.count += 1
                self._lying += size
                layer = _Layer(number, job, way, size)
                if way.sends:
                    self._underway[self._readers.submit(self._put, job)] = layer
                else:
                    self._begin(layer, None)

    def _put(self, job: J) -> Any:
        parcel = pack(self._work, job)
        try:
            return self._ray.put(parcel)
        except self._ray.exceptions.RayError as error:  # neither there nor on the disk behind it
            raise FileError(
                "Ray's object store has no room for what a layer reads",
                where=job.title,
                values=first_line(error),
                fix="give it more memory (ray start --object-store-memory), or let machines read the files "
                "(--ray-data paths)",
            ) from error

    def _begin(self, layer: _Layer, parcel: Any) -> None:
        job, way = layer.job, layer.way
        taken = resources_of(job, self._cluster, self._limits)
        device = "cuda" if taken.cards else "cpu"
        slot = Slot(device, threads_for(job, device, self._cluster.cores), job.peak_bytes, taken.card_bytes)
        asked = {"num_cpus": taken.cpus, "num_gpus": taken.cards, "memory": taken.memory}
        where = {NODE_ID: f"in({','.join(node.id for node in way.nodes)})"}
        task = self._task.options(**self._always, **asked, label_selector=where)
        home = Home(os.getcwd(), self._cluster.here)
        layer.parcel = parcel
        layer.task = task.remote(
            way.work, job, slot, told(self._work, job), layer.number, home, self._begun, layer.parcel
        )
        self._underway[layer.task.future()] = layer

    def _ended(self, layer: _Layer) -> None:
        layer.way.count -= 1
        self._lying -= layer.bytes

    def _again(self, future: "Future[Any]", layer: _Layer) -> None:
        """Give a layer to whoever is next, since nothing comes of its task."""
        if layer.task is not None:
            self._ray.cancel(layer.task)
        del self._underway[future]
        self._ended(layer)
        self._waiting.append((layer.number, layer.job))

    def _look(self, *, idle: bool) -> None:
        """See whether the cluster is there, and where nothing was done for long, its machines and what was sent."""
        now = time.monotonic()
        if not idle:
            self._looked = now
        if now - self._answered >= _KNOCK_SECONDS:
            self._check_head(now)
        if now - self._looked >= _LOOK_SECONDS:
            self._check_machines()
            self._check_sent()
            self._looked = time.monotonic()

    def _check_head(self, now: float) -> None:
        """Raise FileError if the head does not answer for long. Ray would end this program then, without a word."""
        address = self._ray.get_runtime_context().gcs_address
        try:
            knock(address, _KNOCK_SECONDS / 2)
            self._answered, self._silent = now, None
        except ConnectionError as error:
            self._silent = self._silent or now
            if now - self._silent < _SILENT_SECONDS:
                return
            self._lost = True
            raise FileError(
                "the connection to the Ray cluster was lost",
                where=f"its head at {address}",
                values=str(error),
                fix="run the same command again when it is back (ray start); finished layers are kept",
            ) from error

    def _check_machines(self) -> None:
        """A task that no machine may run any more may wait for ever; it is given to others."""
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        gone = [way for way in self._ways if not any(node.id in alive for node in way.nodes)]
        self._ways = [way for way in self._ways if way not in gone]
        if not self._ways:
            raise FileError(
                "all machines that were working on the layers have left the Ray cluster",
                values=", ".join(node.name for node in self._cluster.nodes),
                fix="run the same command again when there are machines; finished layers are kept",
            )
        for future, layer in list(self._underway.items()):
            if layer.way in gone:
                self._again(future, layer)
        for way in gone:
            names = " and ".join(node.name for node in way.nodes)
            self._limits.on_event(Warned(f"{names} left the Ray cluster; other machines take over its layers"))

    def _check_sent(self) -> None:
        """A task may wait for ever for something that the object store put on the disk and somebody deleted there; it
        is sent again."""
        sent = {layer.parcel: future for future, layer in self._underway.items() if layer.parcel is not None}
        if not sent:
            return
        looking = self._readers.submit(self._ray.wait, list(sent), num_returns=len(sent), timeout=_FETCH_SECONDS)
        for parcel in sent.keys() - set(looking.result()[0]):
            layer = self._underway[sent[parcel]]
            self._limits.on_event(
                Warned(f"{layer.job.title} was lost in Ray's object store or on the disk behind it, and is sent again")
            )
            self._again(sent[parcel], layer)

    def _is_lost(self, done: "Future[Any]", layer: _Layer) -> bool:
        """Whether a layer is to be done elsewhere, since the machines that it was for are gone."""
        if not isinstance(done.exception(), self._ray.exceptions.TaskUnschedulableError):
            return False
        self._check_machines()
        return layer.way not in self._ways

    def _result(self, done: "Future[Any]", number: int, job: J) -> tuple[Done[Any], list[Offer]]:
        errors = self._ray.exceptions
        try:
            there: tuple[Done[Any], list[Offer]] = done.result()
            return there
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            tried = places_of(self._begun, number)
            killed = isinstance(error, errors.WorkerCrashedError | errors.NodeDiedError | errors.OutOfMemoryError)
            raise FileError(
                "the process of a layer was killed each time it was tried" if killed else "Ray lost a layer",
                where=f"{job.title}, on {' and '.join(dict.fromkeys(tried)) or 'a machine of the Ray cluster'}",
                values=f"tried {count(max(len(tried), RETRIES + 1), 'time')}; {first_line(error)}"
                if killed
                else first_line(error),
                fix="if memory ran out, use fewer layers at a time (--workers 1) or a smaller --max-memory; "
                "finished layers are kept",
            ) from error
