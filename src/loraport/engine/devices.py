"""Devices of this machine: which to use, how much memory they have, how they fail. The only place that picks one."""

import torch

from loraport.errors import UsageError

_HOST_SHARE = 0.6  # of the free memory; the rest is for the system's cache of the files that are read
_DEVICE_SHARE = 0.85  # of what is free; the allocator loses some between blocks


def pick_devices(wanted: str) -> tuple[str, ...]:
    """Settle `auto` and refuse a device that is not there.

    Args:
        wanted: `auto`, `cpu`, `mps`, `cuda:1`, or `cuda` for all of them. `auto` takes CUDA where there is any.

    Returns:
        torch names. Of several CUDA devices only those of the first one's kind, since which layer goes where is
        chance and two kinds do not round alike.

    Raises:
        UsageError: an unknown device, or none that PyTorch can use here.
    """
    if wanted == "auto":
        return _all_cuda() if torch.cuda.is_available() else ("cpu",)
    kind, colon, index = wanted.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there or (colon and (kind != "cuda" or not index.isdecimal())):
        raise UsageError("unknown device", values=wanted, fix="use auto, cpu, cuda, cuda:1 or mps")
    if not there[kind]:
        raise UsageError(f"this machine has no {kind} device that PyTorch can use", values=wanted, fix="--device cpu")
    if kind != "cuda":
        return (kind,)
    if not colon:
        return _all_cuda()
    count = torch.cuda.device_count()
    if int(index) >= count:
        last = f"cuda:{count - 1}"
        raise UsageError(
            "there is no such CUDA device", values=f"{wanted}; the last one is {last}", fix="--device cuda"
        )
    return (f"cuda:{int(index)}",)


def _all_cuda() -> tuple[str, ...]:
    first = torch.cuda.get_device_name(0)
    alike = (index for index in range(torch.cuda.device_count()) if torch.cuda.get_device_name(index) == first)
    return tuple(f"cuda:{index}" for index in alike)


def usable_bytes(device: str) -> int:
    """Memory that layers in flight on a device may take together."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _DEVICE_SHARE)
    import psutil

    return int(psutil.virtual_memory().available * _HOST_SHARE)


def warm_up(device: str) -> None:
    """Make the libraries for decompositions ready, from one thread.

    torch loads those of CUDA at the first decomposition, and several threads that do this at once crash it.
    """
    if device.startswith("cuda"):
        torch.linalg.eigh(torch.eye(2, device=device))
        torch.linalg.svd(torch.eye(2, device=device))
        torch.linalg.qr(torch.eye(2, device=device))
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no room; not all of torch's libraries say so by the type of the error."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "ALLOC_FAILED" in said


def release_memory(device: str) -> None:
    """Give back what torch keeps of a device's memory for later."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
