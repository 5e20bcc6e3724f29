"""What an executor is: places where layers can be worked on, and a way to put layers there.

No executor can change a result. A layer computes with a number of threads that depends on the layer alone
(`job.wide`), never on how many are worked on at once: `threads_for` is the one place that knows this rule.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from loraport.engine import devices
from loraport.engine.events import Listener, ignore
from loraport.engine.executors import make_executor
from loraport.engine.job import Job
from loraport.engine.known_digests import KnownDigests
from loraport.engine.options import RayData, RunOptions
from loraport.machine import cores
from loraport.threads import set_threads_of_torch

J = TypeVar("J", bound=Job)
Result = TypeVar("Result")
Work = Callable[[J, "Slot"], Result]

ON_ACCELERATOR = 4
"""Layers in flight on a GPU: what one leaves idle others use. An H200 takes 68 s of a 14B model with 4, 88 with 2."""

APART_ON_ACCELERATOR = 2
"""Likewise where each is in a process of its own, which takes memory of the GPU for itself and shares no time of it."""

ONE_AT_A_TIME = "mps"
"""A kind of device whose library ends the program when two threads use it (pytorch#197805)."""


@dataclass(frozen=True)
class Slot:
    """A place where one layer at a time is worked on.

    Attributes:
        device: torch name, such as `cpu` or `cuda:0`.
        threads: CPU threads that an operation may use.
        bytes: memory of the device that is this slot's even share. A larger layer takes from the shares of
            slots that stand empty meanwhile.
        most: bytes of a GPU that all tensors of the process which works there may take; None for what there is.
    """

    device: str
    threads: int
    bytes: int
    most: int | None = None


@dataclass(frozen=True)
class Limits:
    """What the user allows; what is not said is for the executor to find out.

    Attributes:
        device: as the user says it, such as `auto` or `cuda:0,cuda:1`.
        workers: layers in flight on each device; None for as many as are useful.
        memory: bytes that all layers in flight on a device may take, and of a CUDA device the program as a whole; None
            for what is free.
        on_event: told what the user should know of the machines that do the work.
        data: how machines of a Ray cluster come by what they read, as `RunOptions.ray_data`.
    """

    device: str = "cpu"
    workers: int | None = None
    memory: int | None = None
    on_event: Listener = ignore
    data: RayData = "auto"


@runtime_checkable
class Executor(Protocol):
    """Calls one function for many layers. Made from `Limits` alone."""

    def slots(self) -> list[Slot]:
        """Places for layers of ordinary size that work side by side, at least one."""
        ...

    def run(self, jobs: Sequence[J], work: Work[J, Result]) -> Iterator[Result]:
        """Yield `work(job, slot)` for every job as they finish, in no particular order.

        Args:
            jobs: each is done exactly once.
            work: picklable. The slot it is given says on which device, and with how many threads set for torch.

        Raises:
            Whatever a job raises; jobs not yet begun are dropped then, those in work are waited for.
        """
        ...


def executor_for(options: RunOptions, on_event: Listener = ignore) -> Executor:
    """The executor that the options ask for, with their limits.

    Args:
        options: how to use the machine.
        on_event: told what the user should know of the machines that do the work.

    Raises:
        UsageError: a device that is unknown or not there, or the executor cannot be used.
    """
    limits = Limits(options.device, options.workers, options.max_memory, on_event, options.ray_data)
    return make_executor(options.executor, limits)


def in_flight(jobs: Sequence[Job], slots: Sequence[Slot]) -> int:
    """How many of the largest jobs fit into the slots at once, at least one."""
    room, device = sum(slot.bytes for slot in slots), slots[0].device  # all of one kind
    count, used = 0, 0
    for size in sorted((job.bytes_on(device) for job in jobs), reverse=True)[: len(slots)]:
        used += size
        if used > room and count > 0:
            break
        count += 1
    return max(count, 1)


def local_slots(limits: Limits, workers: int | None = None, *, apart: bool = False) -> list[Slot]:
    """Slots on the devices of this machine, one thread each.

    Args:
        limits: what the user allows.
        workers: for each device, in place of what `limits` says.
        apart: each is in a process of its own.
    """
    found = []
    for device in devices.pick_devices(limits.device):
        on_accelerator = APART_ON_ACCELERATOR if apart else ON_ACCELERATOR
        count = workers or limits.workers or (cores() if device == "cpu" else on_accelerator)
        count = 1 if device == ONE_AT_A_TIME else count
        room, most = devices.usable_bytes(device), limits.memory
        if most is not None and device.startswith("cuda"):
            most = for_tensors(most, count if apart else 1)
        if most is not None:
            room = most if device == "cpu" else min(most, room)
        found += [Slot(device, 1, room // count, most)] * count
    return found


BESIDE_TENSORS = 2_000_000_000
"""Bytes of a CUDA device that its driver and libraries take for each process: 1.5 to 1.9 GB on an H200."""


def for_tensors(limit: int, processes: int = 1) -> int:
    """What tensors may take of the memory of a CUDA device that the user allows.

    Args:
        limit: bytes that the program may take there.
        processes: of it that compute there.
    """
    return max(limit - processes * BESIDE_TENSORS, limit // 2)


def threads_for(job: Job, device: str, cores: int) -> int:
    """CPU threads of a layer, whoever works on it: they change the rounding of a product.

    Args:
        job: the layer.
        device: where it is worked on. A CUDA device leaves the CPU small matrices only, which more threads slow down.
        cores: of the machine that it is worked on.
    """
    return cores if job.wide and not device.startswith("cuda") else 1


def phases(jobs: Sequence[J], slots: Sequence[Slot]) -> Iterator[tuple[list[J], list[Slot]]]:
    """Which jobs may run at the same time, and where.

    On the CPU narrow jobs run side by side, one thread each, then wide ones one at a time with all cores. On an
    accelerator all of them run side by side.

    Args:
        slots: those of the executor.
    """
    if jobs and slots[0].device != "cpu":
        yield list(jobs), list(slots)
        return
    narrow = [job for job in jobs if not job.wide]
    wide = [job for job in jobs if job.wide]
    if narrow:
        yield narrow, list(slots)
    if wide:
        yield wide, [replace(slots[0], bytes=sum(slot.bytes for slot in slots))]


def dispatch(
    jobs: Sequence[J],
    slots: Sequence[Slot],
    submit: "Callable[[J, Slot], Future[Result]]",
    takes: Callable[[J, Slot], int] = lambda job, slot: job.bytes_on(slot.device),
) -> Generator[Result, None, None]:
    """Keep the slots busy within the memory of their devices, and yield results as they come.

    Args:
        submit: begins a job in a slot that is free, which says how many threads that job is given.
        takes: bytes of the slot's device that a job takes there.
    """
    waiting, free, room = deque(jobs), list(slots), _room(slots)
    used = dict.fromkeys(room, 0)
    running: dict[Future[Result], tuple[J, Slot]] = {}

    def fill() -> None:
        while waiting:
            job = waiting[0]
            left = {device: room[device] - used[device] for device in room}
            # A layer too large for the device is tried on its own.
            fits = (s for s in free if used[s.device] == 0 or takes(job, s) <= left[s.device])
            slot = next(fits, None)
            if slot is None:
                return
            free.remove(slot)
            used[slot.device] += takes(job, slot)
            waiting.popleft()
            running[submit(job, replace(slot, threads=threads_for(job, slot.device, cores())))] = job, slot

    try:
        fill()
        while running:
            done = wait(running, return_when=FIRST_COMPLETED).done
            for future in done:
                job, slot = running.pop(future)
                free.append(slot)
                used[slot.device] -= takes(job, slot)
            fill()  # before the results are looked at, so that no slot waits for whoever takes them
            for future in done:
                yield future.result()
    finally:
        for future in running:
            future.cancel()


def files_read(work: object) -> dict[Path, str]:
    """The files that work for an executor reads, each with its `file_identity` when the plan was made.

    It is asked for its `reader`; work that has none reads nothing that another machine would have to see.
    """
    reader = getattr(work, "reader", None)
    return dict(reader.identities) if isinstance(reader, KnownDigests) else {}


def in_slot(work: Work[J, Result], job: J, slot: Slot) -> Result:
    """`work(job, slot)` with the slot's number of threads set in the calling thread, and its bound on a GPU's memory in
    this process, which keep them."""
    set_threads_of_torch(slot.threads)
    devices.bound(slot.device, slot.most)
    return work(job, slot)


def _room(slots: Sequence[Slot]) -> dict[str, int]:
    room: dict[str, int] = {}
    for slot in slots:
        room[slot.device] = room.get(slot.device, 0) + slot.bytes
    return room
