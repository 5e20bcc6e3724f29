"""Work on a device of this process: whose turn it is, in which stream, and what takes over where there is no room."""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from loraport.engine.accelerators import release_memory
from loraport.engine.precision import full_precision
from loraport.errors import NumericalError, first_line, is_device_full
from loraport.threads import threads_of_torch

_Made = TypeVar("_Made")
_BROKEN = ("CUDA error", "CUDA driver error", "HIP error", "CUBLAS_STATUS", "CUSOLVER_STATUS")


class _Turns:
    """Who works on a device in this process: layers side by side, or one that found no room, by itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._by_itself = 0  # that are, or want to be

    @contextlib.contextmanager
    def taken(self, *, by_itself: bool = False) -> Iterator[None]:
        """Work on it within the block. Nobody begins while somebody waits for it to be empty."""
        with self._changed:
            self._by_itself += by_itself
            self._changed.wait_for(lambda: not (self._working if by_itself else self._by_itself))
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._by_itself -= by_itself
                self._changed.notify_all()


_turns: dict[str, _Turns] = {}
_own = threading.local()
_idle_streams: dict[str, list[torch.cuda.Stream]] = {}
"""Of threads that ended. They are used again, since torch keeps memory for each stream that a library has worked in."""


@contextlib.contextmanager
def own_stream(device: str) -> Iterator[None]:
    """What this thread asks of a CUDA device within the block goes into a stream of its own, always the same one.

    The kernels of an eigenproblem leave much of a device idle, which those of another layer then use; and whoever waits
    for a value waits for its own layer alone. A tensor must not be handed to another thread.
    """
    if not device.startswith("cuda"):
        yield
        return
    streams: dict[str, torch.cuda.Stream] = _own.__dict__.setdefault("streams", {})
    if device not in streams:
        idle = _idle_streams.setdefault(device, [])
        try:
            streams[device] = idle.pop()
        except IndexError:  # none, or another thread was quicker
            streams[device] = torch.cuda.Stream(device)
        weakref.finalize(threading.current_thread(), idle.append, streams[device]).atexit = False
    with torch.cuda.stream(streams[device]):
        yield


def with_the_cpu_behind(
    work: Callable[[torch.device], _Made],
    device: str,
    let_go: Callable[[], None] = lambda: None,
    *,
    threads: int = 1,
) -> tuple[_Made, bool]:
    """Do work on a device in full precision and a stream of its own, and on the CPU if the device has too little
    memory for it.

    What finds no room is tried once more when other work of this process on the device is done, and torch has given
    back what it kept for later: libraries take memory past torch, and a piece of it may be too small where all of it
    together would do.

    Args:
        work: given the device.
        device: its name.
        let_go: called between two tries, to give back what else holds the device's memory.
        threads: that an operation may use where the CPU takes over.

    Returns:
        What came of it, and whether the CPU took over.

    Raises:
        NumericalError: the device failed.
    """
    with full_precision:
        turns = _turns.setdefault(device, _Turns())
        for by_itself in (False, True) if device != "cpu" else ():
            with turns.taken(by_itself=by_itself):
                try:
                    with own_stream(device):
                        return work(torch.device(device)), False
                except RuntimeError as error:
                    if not is_device_full(error):
                        if not any(said in str(error) for said in _BROKEN):
                            raise
                        raise NumericalError(
                            "a device failed",
                            where=device,
                            values=first_line(error),
                            fix="run the command again (finished layers are kept), or continue with --device cpu",
                        ) from error
            # Outside of the handler, since the error holds on to the frames and with them to the device's tensors.
            let_go()
            release_memory(device)
        if device == "cpu":
            return work(torch.device("cpu")), False
        with threads_of_torch(threads):
            return work(torch.device("cpu")), True
