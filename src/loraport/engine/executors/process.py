"""Layers side by side in processes of their own."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import TYPE_CHECKING

from loraport import windows
from loraport.engine.apart import Done, done_apart, outcome, take_home, told
from loraport.engine.executor import J, Limits, Result, Slot, Work, dispatch, local_slots, phases
from loraport.engine.job import Job
from loraport.errors import FileError, UsageError

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

_MOST = 61  # processes that Python can wait for on Windows


class LayerExecutor:
    """A process for each slot. Work and results travel by pickle."""

    def __init__(self, limits: Limits):
        if _is_starting():
            raise _unguarded()
        slots = local_slots(limits, apart=True)
        self._slots = slots[:_MOST] if windows.WINDOWS else slots

    def slots(self) -> list[Slot]:
        """As many on each device as may work side by side."""
        return self._slots

    def run(self, jobs: Sequence[J], work: Work[J, Result]) -> Iterator[Result]:
        """Yield results as they come. After an error, layers in work are waited for and no more are begun.

        Raises:
            FileError: the system killed a worker.
            UsageError: the workers ended before they began.
        """

        def taken(task: "Future[Done[Result]]") -> None:
            """Whether anybody still waits for the result or not."""
            if not task.cancelled() and task.exception() is None:
                take_home(work, task.result())
                in_work.pop(task, None)

        context = multiprocessing.get_context("spawn")  # a forked child would inherit locks of the parent's threads
        begun = context.Event()
        in_work: dict[Future[Done[Result]], str] = {}
        try:
            with ProcessPoolExecutor(len(self._slots), context, _begin, (begun,)) as pool:

                def submit(job: J, slot: Slot) -> "Future[Done[Result]]":
                    known = told(work, job)
                    if slot.most is not None:
                        slot = replace(slot, most=min(_taken_of(job, slot), slot.most))
                    with _ctrl_c_held():
                        task = pool.submit(done_apart, work, job, slot, known)
                    in_work[task] = job.title
                    task.add_done_callback(taken)
                    return task

                for some, slots in phases(jobs, self._slots):
                    with contextlib.closing(dispatch(some, slots, submit, _taken_of)) as done:
                        for each in done:
                            yield outcome(each)
        except BrokenProcessPool as error:
            if not begun.is_set():
                raise _unguarded() from error
            raise FileError(
                "a worker process was killed",
                where=f"in progress: {' and '.join(in_work.values())}",
                values="most often the system ran out of memory",
                fix="use fewer workers (--workers 1) or a smaller --max-memory; finished layers are kept",
            ) from error


def _taken_of(job: Job, slot: Slot) -> int:
    """Bytes of a device that a job is given. A bound on a GPU's memory is one for each process, and must hold for all:
    the even share is never less."""
    size = job.bytes_on(slot.device)
    return max(size, slot.bytes) if slot.most is not None and slot.device.startswith("cuda") else size


@contextlib.contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; workers started within the block inherit that they do not hear it.

    The layers in work are finished and kept then. Other signals end a worker at once."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where a worker hears it until it has begun
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_starting() -> bool:
    """Whether this is a process that was started to be a worker and still runs the script of its parent."""
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def _unguarded() -> UsageError:
    """A worker begins by running the script again, and so would start workers itself, without end."""
    return UsageError(
        "worker processes ended before they began",
        values="each of them runs your script again, up to the call that asks for workers",
        fix='put the main part of the script under `if __name__ == "__main__":`, or use executor="thread"',
    )


def _begin(begun: "Event") -> None:
    begun.set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever: end it at once, whatever it is doing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    threading.Thread(target=watch, name="loraport-parent", daemon=True).start()
