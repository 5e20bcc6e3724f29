"""The next layers brought from files while the layers before them are computed.

A device has a few layers in flight and should not wait for disks and hashing in between; those are the work of the
host's other cores. What lies ready is bounded by its size, and a layer that was not brought in time is brought by
whoever asks for it, so that nothing depends on how far ahead the threads are.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

from loraport.engine import devices
from loraport.engine.job import Job
from loraport.machine import cores
from loraport.threads import set_threads_of_torch

_THREADS = 8  # more do not read faster
_SHARE = 0.15  # of the memory of the host that is ours to use; what is pinned takes up to twice its size
_MOST = 2 * 2**30  # bytes: several of the largest layers that there are; pinning more takes seconds

J = TypeVar("J", bound=Job)
Brought = TypeVar("Brought")


def threads_beside() -> int:
    """Threads of the host that bring layers while devices compute."""
    return min(cores(), _THREADS)


def room_beside() -> int:
    """Bytes of the host that what was brought may take meanwhile, and likewise what waits to be written."""
    return min(int(devices.usable_bytes("cpu") * _SHARE), _MOST)


class Ahead(Generic[J, Brought]):
    """Brings jobs in the order in which an executor hands them out. In another process it brings nothing.

    Args:
        jobs: in that order. They are known by themselves, not by what they say.
        bring: what is done for each, on the host.
        size: bytes that what is brought for a job takes.
        room: bytes that may lie ready or be on their way; one job may take more.
        threads: that bring.
        threads_of: of an operation for a job, as where it is computed: they may decide how a sum is rounded.

    Use it as a context manager; the threads begin with the first `take`.
    """

    def __init__(
        self,
        jobs: Sequence[J],
        bring: Callable[[J], Brought],
        size: Callable[[J], int],
        room: int,
        threads: int,
        threads_of: Callable[[J], int],
    ):
        self._waiting = list(reversed(jobs))
        self._bring, self._size, self._room, self._threads_of = bring, size, room, threads_of
        self._ready: dict[int, Future[Brought]] = {}
        self._taken: set[int] = set()
        self._used = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, "loraport-ahead")

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()

    def __enter__(self) -> "Ahead[J, Brought]":
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._waiting.clear()
        self._pool.shutdown(cancel_futures=True)

    def take(self, job: J, otherwise: Callable[[J], Brought]) -> Brought:
        """What was brought for a job. Raises what bringing it raised.

        Args:
            job: one of those that were given, or another.
            otherwise: brings it now, where it is not there nor on its way.
        """
        with self._lock:
            future = self._ready.pop(id(job), None)
            self._taken.add(id(job))
            self._fill()
        try:
            return otherwise(job) if future is None or future.cancel() else future.result()
        finally:
            if future is not None:  # it counts until it is in work
                with self._lock:
                    self._used -= self._size(job)
                    self._fill()

    def leave(self, job: J) -> None:
        """Let go of a job that nobody will take: it is not brought, or has been when this returns."""
        with self._lock:
            self._taken.add(id(job))
            future = self._ready.pop(id(job), None)
        if future is not None and not future.cancel():
            wait([future])
        with self._lock:
            if future is not None:
                self._used -= self._size(job)
            self._fill()

    def _fill(self) -> None:
        while self._waiting:
            job = self._waiting[-1]
            size = self._size(job)
            if id(job) not in self._taken:
                if self._used and self._used + size > self._room:
                    return
                self._used += size
                self._ready[id(job)] = self._pool.submit(self._begin, job)
            self._waiting.pop()

    def _begin(self, job: J) -> Brought:
        set_threads_of_torch(self._threads_of(job))
        return self._bring(job)


def _nothing() -> None:
    return None
