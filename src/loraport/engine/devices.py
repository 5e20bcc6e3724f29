"""Devices of this machine: which to use, and how much memory they have. The only place that picks one for a transfer.

torch is asked where a device that is no CPU may be meant (`accelerators.py`), so that a plan for the CPU does without.
"""

import os
import sys
from typing import Any

from loraport.errors import UsageError
from loraport.machine import free_memory

_HOST_SHARE = 0.6  # of the free memory; the rest is for the system's cache of the files that are read
_DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")  # of NVIDIA, of AMD, of either under Windows


def pick_devices(wanted: str) -> tuple[str, ...]:
    """Settle `auto` and refuse a device that is not there.

    Args:
        wanted: `auto`, `cpu`, `mps`, `cuda:1`, `cuda` for all of them, or some of them as `cuda:0,cuda:1`. `auto` takes
            CUDA where there is any.

    Returns:
        torch names. Of several CUDA devices only those of the first one's kind, since which layer goes where is
        chance and two kinds do not round alike.

    Raises:
        UsageError: an unknown device, one that PyTorch cannot use here, or several that cannot share the work.
    """
    names = named_devices(wanted)
    if names == ("cpu",) or (names == ("auto",) and not _may_have_cuda()):
        return ("cpu",)
    return _accelerators().pick(names)


def named_devices(wanted: str) -> tuple[str, ...]:
    """The devices that a text names, one or several with commas between them, whether they are there or not.

    Raises:
        UsageError: an unknown name, one that stands there twice, or several that are not all CUDA devices.
    """
    names = tuple(map(_named_device, wanted.split(",")))
    if len(names) == 1:
        return names
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise UsageError(f"the device {twice} is named twice", values=wanted, fix="name each device once")
    other = next((name for name in names if not name.startswith("cuda:")), None)
    if other is not None:
        raise UsageError(
            f"{other} cannot share the work with another device",
            values=wanted,
            fix="use cuda for all CUDA devices of one kind, or cuda:0,cuda:1 for some of them",
        )
    return names


def _named_device(text: str) -> str:
    kind, colon, index = text.strip().partition(":")
    numbered = kind == "cuda" and index.isdecimal() and index.isascii()
    if kind not in ("auto", "cpu", "cuda", "mps") or (colon and not numbered):
        raise UsageError("unknown device", values=text, fix="use auto, cpu, cuda, cuda:1, cuda:0,cuda:1 or mps")
    return f"{kind}:{int(index)}" if colon else kind


def _may_have_cuda() -> bool:
    """Whether torch might find a CUDA device; without a driver it finds none. Where it is loaded, it is asked."""
    return "torch" in sys.modules or sys.platform not in ("linux", "darwin") or any(map(os.path.exists, _DRIVERS))


def usable_bytes(device: str) -> int:
    """Memory that layers in flight on a device may take together."""
    if device.startswith("cuda"):
        return _accelerators().usable_bytes(device)
    return int(free_memory() * _HOST_SHARE)


def bound(device: str, count: int | None) -> None:
    """Let the tensors of this process take no more than so many bytes of a device: see `accelerators.bound`."""
    if device.startswith("cuda"):
        _accelerators().bound(device, count)


def warm_up(device: str) -> None:
    """Make the libraries for decompositions ready, from one thread: see `accelerators.warm_up`."""
    if device.startswith("cuda"):
        _accelerators().warm_up(device)


def _accelerators() -> Any:
    from loraport.engine import accelerators  # brings torch along

    return accelerators
