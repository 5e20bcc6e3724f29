"""What torch says of accelerators: which there are, how much memory they have, how they fail."""

import contextlib
import os
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from loraport.core.operator import lies_turned, strips
from loraport.errors import UsageError, first_line, is_device_full

_SHARE = 0.85  # of what is free; the allocator loses some between blocks


def pick(names: tuple[str, ...]) -> tuple[str, ...]:
    """Settle the names of `devices.named_devices`, as `devices.pick_devices`."""
    wanted = ",".join(names)
    if names == ("auto",):
        return _all_cuda() if torch.cuda.is_available() else ("cpu",)
    kind, _, numbered = names[0].partition(":")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[kind]:
        raise UsageError(
            f"this machine has no {kind} device that PyTorch can use",
            values="; ".join([wanted, *(_why_none() if kind == "cuda" else [])]),
            fix="--device cpu",
        )
    if kind != "cuda":
        return (kind,)
    if not numbered:
        return _all_cuda()
    count = torch.cuda.device_count()
    missing = next((name for name in names if int(name.partition(":")[2]) >= count), None)
    if missing is not None:
        last = f"cuda:{count - 1}"
        raise UsageError(
            "there is no such CUDA device",
            values="; ".join([missing, f"the last one is {last}", *_left_visible()]),
            fix="--device cuda",
        )
    kinds = {name: name_of(name) for name in names}
    if len(set(kinds.values())) > 1:
        alike = ",".join(name for name in names if kinds[name] == kinds[names[0]])
        raise UsageError(
            "the devices are of different kinds and round differently, so the result would depend on which layer "
            "goes where",
            values=", ".join(f"{name} is {kind}" for name, kind in kinds.items()),
            fix=f"--device {alike}",
        )
    return names


def _why_none() -> list[str]:
    """What is known of why there is no CUDA device."""
    if torch.version.cuda is None and torch.version.hip is None:
        return [f"PyTorch {torch.__version__} is a build without CUDA"]
    return _left_visible()


def _left_visible() -> list[str]:
    names = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    return [f"{name} is {os.environ[name]!r}" for name in names if name in os.environ]


def _all_cuda() -> tuple[str, ...]:
    first, *others = card_names()
    return ("cuda:0", *(f"cuda:{at}" for at, name in enumerate(others, 1) if name == first))


def usable_bytes(device: str) -> int:
    """Memory of a CUDA device that layers in flight may take together: what is free, and what torch keeps of earlier
    work of this process for later."""
    with _working(device):  # the first that is asked of it takes some hundred MB
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int((free + kept) * _SHARE)


@contextlib.contextmanager
def _working(device: str) -> Iterator[None]:
    """What torch asks of a CUDA device within the block and does not get is said as a UsageError."""
    try:
        yield
    except RuntimeError as error:
        full = is_device_full(error)
        raise UsageError(
            f"{device} has no memory left" if full else f"PyTorch {torch.__version__} does not work on {device}",
            values=first_line(error),
            fix="use --device cpu, or "
            + ("stop whatever else uses it" if full else "a PyTorch built for this GPU and its driver"),
        ) from error


_bounded: dict[str, float] = {}
"""Devices that are bound here, each with the share that the program around this one had bound it to before."""


def bound(device: str, count: int | None) -> None:
    """Let the tensors of this process take no more than so many bytes of a CUDA device; None lifts a bound set here.

    What would take more runs out of memory. What the driver and the libraries take beside is not in it. Where there is
    no such device whoever computes there says so.
    """
    if not (device.startswith("cuda") and torch.cuda.is_available()) or (count is None and device not in _bounded):
        return
    if count is None:
        before = _bounded.pop(device)
        with contextlib.suppress(RuntimeError):  # a device that failed, which has been said
            torch.cuda.set_per_process_memory_fraction(before, device)
        return
    if device not in _bounded:
        _bounded[device] = float(torch.cuda.get_per_process_memory_fraction(device))
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(count / total, _bounded[device]), device)


def name_of(device: str) -> str:
    """What a CUDA device is called."""
    with _working(device):
        return torch.cuda.get_device_name(int(device.partition(":")[2] or 0))


def card_names() -> list[str]:
    """What the CUDA devices of this machine are called. None of them is begun with, which would take its memory."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [name_of(f"cuda:{index}") for index in range(count)]


def survey() -> tuple[list[str], int]:
    """What the CUDA devices of this machine are called, and the usable memory of the one that has least."""
    found = card_names()
    return found, min((usable_bytes(f"cuda:{index}") for index in range(len(found))), default=0)


def warm_up(device: str) -> None:
    """Make a CUDA device's libraries for decompositions ready, from one thread.

    torch loads those of CUDA at the first decomposition, and several threads that do this at once crash it.

    Raises:
        UsageError: nothing can be done on it.
    """
    with _working(device):
        for decompose in (torch.linalg.eigh, torch.linalg.svd, torch.linalg.qr):
            decompose(torch.eye(2, dtype=torch.float32, device=device))
        torch.cuda.synchronize(device)


def pinned(count: int) -> Tensor:
    """So many bytes of memory of the host that a CUDA device fetches from by itself; of ordinary memory where the
    system gives none of that kind. torch keeps it for the next that asks, once the device is done with it.

    Ordinary memory also until this process computes on a device: torch would take hold of the first one for that,
    which may not be the one that is meant.
    """
    if torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):
            return torch.empty(count, dtype=torch.uint8, pin_memory=True)
    return torch.empty(count, dtype=torch.uint8)


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the host, by way of pinned memory from a CUDA device. What lies turned still does."""
    found = {name: _on_host(tensor.detach()) for name, tensor in tensors.items()}
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return found


def _on_host(tensor: Tensor) -> Tensor:
    """On its way there. What lies in no order is put in order in strips, which take little of the device."""
    if tensor.device.type == "cpu":
        return tensor
    if lies_turned(tensor):
        return _on_host(tensor.T).T
    size = tensor.numel() * tensor.element_size()
    room = (pinned(size) if tensor.is_cuda else torch.empty(size, dtype=torch.uint8)).view(tensor.dtype)
    room = room.reshape(tensor.shape)
    parts = [tensor] if tensor.dim() != 2 or tensor.is_contiguous() else strips(tensor)
    ends = [room] if len(parts) == 1 else room.split(len(parts[0]))
    for end, part in zip(ends, parts, strict=True):
        end.copy_(part.contiguous(), non_blocking=room.is_pinned())
    return room


def release_memory(device: str) -> None:
    """Give back what torch keeps of a device's memory for later."""
    with contextlib.suppress(RuntimeError):  # a device that failed, which has been said
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        elif device.startswith("mps") and torch.backends.mps.is_available():
            torch.mps.empty_cache()


def release_pinned() -> None:
    """Give back the memory of the host that torch keeps pinned for later, where this torch can (from 2.12 on)."""
    empty = getattr(getattr(torch, "accelerator", None), "empty_host_cache", None)
    if empty is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):
            empty()
