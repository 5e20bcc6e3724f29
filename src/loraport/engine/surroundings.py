"""What the program around a run chose of torch for its own thread, put aside for as long as the run lasts.

The threads of an executor do not live in it, so that a run would otherwise be another in the caller's thread.
"""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def usual_torch() -> Iterator[None]:
    """No inference mode, and new tensors on the CPU. Also a decorator."""
    chosen = torch.get_default_device()  # by `torch.set_default_device`, or `with torch.device(...)`
    elsewhere = chosen.type != "cpu" or torch.empty(0).device.type != "cpu"  # torch 2.6 does not tell of the latter
    with torch.inference_mode(False), torch.device("cpu") if elsewhere else contextlib.nullcontext():
        yield
