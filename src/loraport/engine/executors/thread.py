"""Layers side by side in threads of this process. torch lets go of Python's lock while it computes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from loraport.engine.devices import bound, warm_up
from loraport.engine.executor import J, Limits, Result, Slot, Work, dispatch, in_slot, local_slots, phases, threads_for
from loraport.machine import cores
from loraport.threads import threads_of_torch


class LayerExecutor:
    """A thread for each slot."""

    def __init__(self, limits: Limits):
        self._slots = local_slots(limits)

    def slots(self) -> list[Slot]:
        """As many on each device as may work side by side."""
        return self._slots

    def run(self, jobs: Sequence[J], work: Work[J, Result]) -> Iterator[Result]:
        """Yield results as they come. After an error, layers in work are waited for and no more are begun."""
        found = dict.fromkeys(slot.device for slot in self._slots)
        for device in found:
            warm_up(device)
        try:
            for some, slots in phases(jobs, self._slots):
                threads = threads_for(some[0], slots[0].device, cores())
                with threads_of_torch(threads), ThreadPoolExecutor(len(slots), "loraport") as pool:

                    def submit(job: J, slot: Slot, pool: ThreadPoolExecutor = pool) -> "Future[Result]":
                        return pool.submit(in_slot, work, job, slot)

                    yield from dispatch(some, slots, submit)
        finally:
            for device in found:
                bound(device, None)
