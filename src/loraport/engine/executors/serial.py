"""One layer after the other, in this thread."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from loraport.engine.devices import bound, warm_up
from loraport.engine.executor import J, Limits, Result, Slot, Work, local_slots, phases, threads_for
from loraport.machine import cores
from loraport.threads import threads_of_torch


class LayerExecutor:
    """A `for` loop on the first device."""

    def __init__(self, limits: Limits):
        self._slots = local_slots(limits, workers=1)[:1]

    def slots(self) -> list[Slot]:
        """One."""
        return self._slots

    def run(self, jobs: Sequence[J], work: Work[J, Result]) -> Iterator[Result]:
        """Yield results in the order of the jobs; on the CPU narrow ones first."""
        device, most = self._slots[0].device, self._slots[0].most
        warm_up(device)  # before other threads bring what it will need
        try:
            bound(device, most)
            for some, (slot, *_) in phases(jobs, self._slots):
                for job in some:
                    threads = threads_for(job, device, cores())
                    with threads_of_torch(threads):
                        done = work(job, replace(slot, threads=threads))
                    yield done
        finally:
            bound(device, None)
