"""One layer after the other, in this thread."""

from collections.abc import Iterator, Sequence

from loraport.engine.devices import warm_up
from loraport.engine.executor import J, Limits, Result, Slot, Work, local_slots, phases
from loraport.threads import cores, threads_of_torch


class LayerExecutor:
    """A `for` loop on the first device."""

    def __init__(self, limits: Limits):
        self._slots = local_slots(limits, workers=1)[:1]

    def slots(self) -> list[Slot]:
        """One."""
        return self._slots

    def run(self, jobs: Sequence[J], work: Work[J, Result]) -> Iterator[Result]:
        """Yield results in the order of the jobs, narrow ones first."""
        warm_up(self._slots[0].device)  # before other threads bring what it will need
        for some, (slot, *_) in phases(jobs, self._slots, cores()):
            with threads_of_torch(slot.threads):
                for job in some:
                    yield work(job, slot)
