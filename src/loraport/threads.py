"""How many threads an operation may use: a setting of the whole process, which several rooms share."""

import contextlib
import os
from collections.abc import Iterator


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads_of_torch(count: int) -> None:
    """Let each operation of torch that this thread asks for run on `count` threads from now on."""
    import torch

    torch.set_num_threads(count)


@contextlib.contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """Let each operation of torch run on `count` threads within the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread_each() -> contextlib.AbstractContextManager[None]:
    """Let each operation run on one thread, so that batches of a tiny model can run side by side.

    Its operations are so small that threads within one mostly wait for each other: twice as slow when the machine is
    idle, fifteen times when it is busy. It also makes results independent of the number of cores.
    """
    return threads_of_torch(1)
