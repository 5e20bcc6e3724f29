"""How many threads an operation may use: a setting of the whole process, which several rooms share."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_FUNCTIONS = ("sqrt", "exp", "log", "sin", "cos", "tanh", "erf", "expm1", "log1p")
_one_at_a_time = threading.Lock()
_called = threading.Event()


def set_threads_of_torch(count: int) -> None:
    """Let each operation of torch that this thread asks for run on `count` threads from now on."""
    import torch

    _call_first(torch)
    torch.set_num_threads(count)


@contextlib.contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """Let each operation of torch run on `count` threads within the block."""
    import torch

    _call_first(torch)
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread_each() -> contextlib.AbstractContextManager[None]:
    """Let each operation run on one thread: for batches of a tiny model side by side, and the many tensors of a file.

    The operations are so small that threads within one mostly wait for each other: twice as slow when the machine is
    idle, fifteen times when it is busy. It also makes results independent of the number of cores.
    """
    return threads_of_torch(1)


def _call_first(torch: Any) -> None:
    """Call MKL's functions of vectors for the first time, before threads do so side by side.

    At the first call MKL chooses code for the processor, and a second thread that calls meanwhile can be given another:
    of `sqrt`, 10 of 190 fresh processes got four digits in one layer instead of seven.
    """
    with _one_at_a_time:
        if not _called.is_set():
            for dtype in (torch.float32, torch.float64):
                for name in _FUNCTIONS:
                    getattr(torch, name)(torch.full((8,), 0.5, dtype=dtype, device="cpu"))
            _called.set()
