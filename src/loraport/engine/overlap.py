"""What overlaps where a device computes: the host brings the next layers and writes what is kept, meanwhile.

Each layer in flight waits for its own work on the device; reading, hashing and checking are done by threads beside it.
On the CPU the same cores would do both, and the system reads and writes files behind the program's back already.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from loraport.containers.references import TensorRef
from loraport.engine.accelerators import release_memory, release_pinned
from loraport.engine.ahead import Ahead, room_beside, threads_beside
from loraport.engine.devices import bound
from loraport.engine.executor import Executor, Slot, threads_for
from loraport.engine.job import LayerJob
from loraport.engine.job_cost import cached_bytes
from loraport.engine.precision import full_precision
from loraport.engine.worker import Worker
from loraport.machine import cores
from loraport.methods.cost import matrix_bytes


def room_behind(slots: Sequence[Slot]) -> int | None:
    """Bytes that may wait to be written while the work goes on; None where entries are written at once."""
    return room_beside() if _beside(slots) else None


def _beside(slots: Sequence[Slot]) -> bool:
    return any(slot.device != "cpu" for slot in slots)


@contextlib.contextmanager
def overlapped(work: Worker, jobs: Sequence[LayerJob], executor: Executor) -> Iterator[Worker]:
    """The worker that an executor is to be given for these jobs. At the end all that it put into the store is there,
    and the memory of devices, and what is pinned of the host for them, is free for others again.

    Args:
        work: what is to be done.
        jobs: as they are given to the executor, which begins with the first.
        executor: that does them.
    """
    slots = executor.slots()
    try:
        if not _beside(slots):
            with full_precision:
                yield work
            return
        threads_of = partial(threads_for, device=slots[0].device, cores=cores())
        ahead = Ahead(jobs, work.bring, _brought_bytes, room_beside(), threads_beside(), threads_of)
        with full_precision, ahead:
            yield replace(work, ahead=ahead)
    finally:
        for slot in slots:
            bound(slot.device, None)  # an executor that was left in the middle has not yet
        try:
            work.store.finish()
        finally:
            for device in {slot.device for slot in slots}:
                release_memory(device)
            if _beside(slots):
                release_pinned()


def _brought_bytes(job: LayerJob) -> int:
    """Weights as they are held, or what was kept of them, whichever is more."""
    weights = [ref for ref in (job.source, job.target) if ref is not None]
    return max(sum(map(_held_bytes, weights)), cached_bytes(job))


def _held_bytes(ref: TensorRef) -> int:
    return ref.nbytes if ref.codec == "raw" else matrix_bytes(*ref.shape)
