"""Layers side by side on the machines of a Ray cluster, each as a task.

Ray says where a task runs and when: what it needs of a machine is made from the layer's own figures, so that the
layers in work on a device stay within its memory, and one that is too large runs alone. A task whose process or
machine is lost is done again. A machine reads the files, or is sent what a layer reads through Ray's object store.
"""

import contextlib
import weakref
from collections.abc import Iterator, Sequence

from loraport.engine.cluster.connection import announce, check_usable, connected, survey
from loraport.engine.cluster.resources import slots_of
from loraport.engine.executor import J, Limits, Result, Slot, Work, files_read, local_slots


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
            FileError: no machine of it sees the files, where they are not sent; the processes of a layer were killed
                again and again; or the cluster is lost.
        """
        from loraport.engine.cluster.sending import Sendable
        from loraport.engine.cluster.underway import Underway

        try:
            started = self._connect(start=True)
            data = self._limits.data if isinstance(work, Sendable) else "paths"
            cluster, left_out = survey(self._limits, files_read(work), data, work)
            if not self._announced:
                announce(cluster, left_out, self._limits, started=bool(started))
                self._announced = True
            yield from Underway(cluster, self._limits, work).run(jobs)
        except BaseException:
            self._connection.close()
            self._started = None
            raise

    def _connect(self, *, start: bool) -> bool | None:
        if self._started is None:
            self._started = self._connection.enter_context(connected(self._limits, start=start))
        return self._started
