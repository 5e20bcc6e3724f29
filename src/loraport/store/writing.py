"""Entries written by a thread of its own, while whoever made them goes on."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Behind:
    """Does one piece of work after the other in one thread. What waits is bounded by its size.

    The thread ends with the program, after all that waits.

    Args:
        room: bytes that may wait; one piece may be larger.
    """

    def __init__(self, room: int):
        self._room = room
        self._used = 0
        self._waiting: Counter[Path] = Counter()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(1, "loraport-store")

    def put(self, path: Path, size: int, work: Callable[[], object]) -> None:
        """Have something done; waits while there is no room.

        Args:
            path: what it makes.
            size: bytes that it holds until then.
            work: makes it.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._room)
            self._used += size
            self._waiting[path] += 1
        self._pool.submit(self._do, path, size, work)

    def wait(self, path: Path) -> None:
        """Return when nothing is waiting to make this file."""
        with self._changed:
            self._changed.wait_for(lambda: path not in self._waiting)

    def finish(self) -> None:
        """Return when all is done. Raises what a piece of work raised."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)
            error, self._error = self._error, None
        if error is not None:
            raise error

    def _do(self, path: Path, size: int, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._used -= size
                self._waiting[path] -= 1
                if not self._waiting[path]:
                    del self._waiting[path]
                self._changed.notify_all()
