"""Work of threads of its own, such as writing entries, while whoever has it done goes on."""

import threading
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor

WRITERS = 4
"""Threads that write a cache's entries: one takes 0.3 s for 0.2 GB, which a device makes sooner."""


class Behind:
    """Does pieces of work in threads beside. What waits is bounded by its size.

    The threads end with the program, after all that waits.

    Args:
        room: bytes that may wait; one piece may be larger.
        threads: with one, the pieces are done in their order.
    """

    def __init__(self, room: int, threads: int = 1):
        self._room = room
        self._used = 0
        self._waiting: Counter[Hashable] = Counter()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(threads, "loraport-store")

    def put(self, name: Hashable, size: int, work: Callable[[], object], *, patient: bool = True) -> None:
        """Have something done.

        Args:
            name: of what it makes, such as the path of a file.
            size: bytes that it holds until then.
            work: makes it.
            patient: wait while there is no room; else it is let go.
        """
        with self._changed:
            if not patient and not self._has_room(size):
                return
            self._changed.wait_for(lambda: self._has_room(size))
            self._used += size
            self._waiting[name] += 1
        self._pool.submit(self._do, name, size, work)

    def wait(self, name: Hashable) -> None:
        """Return when nothing is waiting to make this."""
        with self._changed:
            self._changed.wait_for(lambda: name not in self._waiting)

    def finish(self) -> None:
        """Return when all is done. Raises what a piece of work raised."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)
            error, self._error = self._error, None
        if error is not None:
            raise error

    def stop(self, *, wait: bool) -> None:
        """Let go of what waits.

        Args:
            wait: for what is being done.
        """
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _has_room(self, size: int) -> bool:
        return not self._used or self._used + size <= self._room

    def _do(self, name: Hashable, size: int, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._used -= size
                self._waiting[name] -= 1
                if not self._waiting[name]:
                    del self._waiting[name]
                self._changed.notify_all()
