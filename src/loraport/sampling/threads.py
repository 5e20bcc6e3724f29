"""How the tiny models share the cores of a machine."""

import contextlib
import os
from collections.abc import Iterator

import torch


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Let each operation run on one thread, so that batches can run side by side.

    The operations are so small that threads within one mostly wait for each other: twice as slow when the machine is
    idle, fifteen times when it is busy. It also makes results independent of the number of cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
