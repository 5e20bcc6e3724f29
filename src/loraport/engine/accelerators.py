"""What torch says of accelerators: which there are, how much memory they have, how they fail."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from loraport.errors import UsageError

_Made = TypeVar("_Made")
_SHARE = 0.85  # of what is free; the allocator loses some between blocks


def pick(names: tuple[str, ...]) -> tuple[str, ...]:
    """Settle the names of `devices.named_devices`, as `devices.pick_devices`."""
    wanted = ",".join(names)
    if names == ("auto",):
        return _all_cuda() if torch.cuda.is_available() else ("cpu",)
    kind, _, numbered = names[0].partition(":")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[kind]:
        raise UsageError(f"this machine has no {kind} device that PyTorch can use", values=wanted, fix="--device cpu")
    if kind != "cuda":
        return (kind,)
    if not numbered:
        return _all_cuda()
    count = torch.cuda.device_count()
    missing = next((name for name in names if int(name.partition(":")[2]) >= count), None)
    if missing is not None:
        last = f"cuda:{count - 1}"
        raise UsageError(
            "there is no such CUDA device", values=f"{missing}; the last one is {last}", fix="--device cuda"
        )
    kinds = {name: name_of(name) for name in names}
    if len(set(kinds.values())) > 1:
        alike = ",".join(name for name in names if kinds[name] == kinds[names[0]])
        raise UsageError(
            "the devices are of different kinds, which do not round alike, and which layer goes where is chance",
            values=", ".join(f"{name} is {kind}" for name, kind in kinds.items()),
            fix=f"--device {alike}",
        )
    return names


def _all_cuda() -> tuple[str, ...]:
    first = torch.cuda.get_device_name(0)
    alike = (index for index in range(torch.cuda.device_count()) if torch.cuda.get_device_name(index) == first)
    return tuple(f"cuda:{index}" for index in alike)


def usable_bytes(device: str) -> int:
    """Memory of a CUDA device that layers in flight may take together."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _SHARE)


_bounded: set[str] = set()


def bound(device: str, count: int | None) -> None:
    """Let the tensors of this process take no more than so many bytes of a CUDA device; None lifts a bound set here.

    What would take more runs out of memory. What the driver and the libraries take beside is not in it.
    """
    if not device.startswith("cuda") or (count is None and device not in _bounded):
        return
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(1.0 if count is None else min(count / total, 1.0), device)
    (_bounded.discard if count is None else _bounded.add)(device)


def name_of(device: str) -> str:
    """What a CUDA device is called."""
    return torch.cuda.get_device_name(int(device.partition(":")[2] or 0))


def survey() -> tuple[list[str], int]:
    """What the CUDA devices of this machine are called, and the usable memory of the one that has least."""
    if not torch.cuda.is_available():
        return [], 0
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [name_of(device) for device in found], min(map(usable_bytes, found), default=0)


def warm_up(device: str) -> None:
    """Make a CUDA device's libraries for decompositions ready, from one thread.

    torch loads those of CUDA at the first decomposition, and several threads that do this at once crash it.
    """
    torch.linalg.eigh(torch.eye(2, device=device))
    torch.linalg.svd(torch.eye(2, device=device))
    torch.linalg.qr(torch.eye(2, device=device))
    torch.cuda.synchronize(device)


def pinned(count: int) -> Tensor:
    """So many bytes of memory of the host that a CUDA device fetches from by itself; of ordinary memory where the
    system gives none of that kind. torch keeps it for the next that asks, once the device is done with it."""
    try:
        return torch.empty(count, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        return torch.empty(count, dtype=torch.uint8)


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the host, from a CUDA device by way of pinned memory."""
    there = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if not any(tensor.is_cuda for tensor in there.values()):
        return {name: tensor.cpu() for name, tensor in there.items()}
    found = {}
    for name, tensor in there.items():
        room = pinned(tensor.numel() * tensor.element_size()).view(tensor.dtype).reshape(tensor.shape)
        found[name] = room.copy_(tensor, non_blocking=room.is_pinned())
    torch.cuda.current_stream(next(iter(there.values())).device).synchronize()
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no room; not all of torch's libraries say so by the type of the error."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "ALLOC_FAILED" in said


def release_memory(device: str) -> None:
    """Give back what torch keeps of a device's memory for later."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


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

    @property
    def shared(self) -> bool:
        """Whether more than one works on it."""
        return self._working > 1


_turns: dict[str, _Turns] = {}


def with_the_cpu_behind(
    work: Callable[[torch.device], _Made], device: str, let_go: Callable[[], None] = lambda: None
) -> tuple[_Made, bool]:
    """Do work on a device, and on the CPU if the device has too little memory for it.

    What finds no room beside other work of this process on the device is tried once more when that is done.

    Args:
        work: given the device.
        device: its name.
        let_go: called between two tries, to give back what else holds the device's memory.

    Returns:
        What came of it, and whether the CPU took over.
    """
    if device == "cpu":
        return work(torch.device(device)), False
    turns = _turns.setdefault(device, _Turns())
    for by_itself in (False, True):
        with turns.taken(by_itself=by_itself):
            try:
                return work(torch.device(device)), False
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            shared = turns.shared
        # Outside of the handler, since the error holds on to the frames and with them to the device's tensors.
        let_go()
        release_memory(device)
        if not shared:
            break
    return work(torch.device("cpu")), True
