"""An accelerator that is not there: tensors that say they are on a device of their own and are computed on the CPU.

It refuses what an accelerator refuses (operands on two devices, operations for which torch has no kernel there), and
counts what makes the program wait for one: a value that Python asks for, a result whose size depends on values, a copy
from or to the CPU. It also counts the bytes of its tensors, and may have room for so many only. The device is called
"meta", which is the one name that torch knows without hardware or a library; or by its own name (`pretended_cuda`,
`pretended_mps`) where that makes a difference.
"""

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from kernels import has_kernel

DEVICE, CUDA, MPS = torch.device("meta"), torch.device("cuda:0"), torch.device("mps")
_WAITS = {"_local_scalar_dense", "nonzero", "equal", "_unique2", "is_nonzero", "masked_select", "bincount"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
_COPIES = {"_to_copy", "copy_"}


class Memory:
    """Bytes of the tensors on a device, without what the libraries take for themselves.

    Attributes:
        now: in use.
        peak: the most that were in use, since `peak` was last set.
        where: the operation at which that was.
        room: more than this raises torch.OutOfMemoryError.
        dtypes: those that the device has not.
    """

    def __init__(self, room: float = float("inf"), dtypes: tuple[torch.dtype, ...] = ()) -> None:
        self.now, self.peak, self.where, self.room, self.dtypes = 0, 0, "", room, dtypes
        self._users: Counter[int] = Counter()

    def take(self, made: "Pretended", name: str) -> None:
        """Count a tensor until it is gone; views share what they are views of."""
        assert made.dtype not in self.dtypes, f"{name} makes {made.dtype}, which the device has not"
        storage = made.there.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if not self._users[place]:
            if self.now + size > self.room:
                raise torch.OutOfMemoryError(f"out of memory: {size} more than {self.now} of {self.room} bytes")
            self.now += size
        self._users[place] += 1
        weakref.finalize(made, self._leave, place, size)
        if self.now > self.peak:
            self.peak, self.where = self.now, name

    def _leave(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            self.now -= size


class Pretended(Tensor):
    """A tensor on the device; the one on the CPU that stands behind it is `there`."""

    there: Tensor
    stream: str = "the usual"

    @staticmethod
    def __new__(cls, there: Tensor, device: torch.device = DEVICE) -> "Pretended":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, there.shape, strides=there.stride(), storage_offset=there.storage_offset(), dtype=there.dtype,
            device=device,
        )  # fmt: skip
        made.there = there
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of `pretended_device`")


Watch = Callable[[str, tuple[Any, ...], dict[str, Any]], None]


class Pinned:
    """Memory of the host that a device reads and writes by itself, as late as it may: when somebody waits for it.

    Until then there is rubbish where it will write, and what it will read must not be written to.
    """

    def __init__(self) -> None:
        self.sent = 0  # copies to the device that nobody waited for
        self._kept: dict[int, Tensor] = {}
        self._coming: list[tuple[Tensor, Tensor]] = []
        self._going: list[tuple[Tensor, Tensor]] = []

    def take(self, tensor: Tensor) -> Tensor:
        """Count the memory of a tensor as pinned from now on."""
        self._kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def holds(self, tensor: Tensor) -> bool:
        """Whether the memory of a tensor is pinned."""
        return tensor.untyped_storage().data_ptr() in self._kept

    def comes(self, to: Tensor, what: Tensor) -> None:
        """The device will write there."""
        assert self.holds(to), "a copy to ordinary memory that is not waited for"
        self._coming.append((to, what.clone()))
        to.view(torch.uint8).fill_(255)

    def goes(self, what: Tensor) -> None:
        """The device will read there."""
        self.sent += 1
        self._going.append((what, what.clone()))

    def done(self) -> None:
        """Somebody waited."""
        for what, was in self._going:
            assert torch.equal(what, was), "written to before the device had read it"
        for to, what in self._coming:
            to.copy_(what)
        self._going.clear()
        self._coming.clear()


class _Device(TorchDispatchMode):
    def __init__(
        self,
        watch: Watch | None = None,
        memory: Memory | None = None,
        pinned: Pinned | None = None,
        kind: str = "CUDA",
    ) -> None:
        super().__init__()
        self.kind = kind
        self.waits: Counter[str] = Counter()
        self.watch = watch
        self.memory = Memory() if memory is None else memory
        self.pinned = pinned

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        here = [one for one in tensors if isinstance(one, Pretended)]
        wanted = kwargs.get("device")
        if name in _COPIES:
            ends = {type(one) for one in tensors} if name == "copy_" else {type(tensors[0]), _kind(wanted, tensors[0])}
            later = bool(kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,)))
            if len(ends) == 2 and self.pinned is not None:
                if not later:
                    self.pinned.done()
                elif name == "copy_" and not isinstance(tensors[0], Pretended):
                    self.pinned.comes(tensors[0], tensors[1].there)
                    return tensors[0]
                elif self.pinned.holds(tensors[-1]):
                    self.pinned.goes(tensors[-1])
                else:
                    later = False  # CUDA waits before it copies from ordinary memory
            if len(ends) == 2 and not later:
                self.waits["copy"] += 1
        elif here:
            strangers = [one for one in tensors if not isinstance(one, Pretended) and one.dim() > 0]
            assert not strangers or name in _INDEXED, f"{func} on two devices"
            if name in _WAITS or (name in _INDEXED and any(_is_mask(one) for one in args[1])):
                self.waits[name] += 1
            if name in _INDEXED and any(isinstance(one, Tensor) and not isinstance(one, Pretended) for one in args[1]):
                self.waits["copy"] += 1
        on_device = _kind(wanted, tensors[0] if tensors else None) is Pretended
        if (here or on_device) and not has_kernel(str(func), self.kind):
            raise NotImplementedError(f"{func} is not implemented for {self.kind}")
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("driver", None)
        args, kwargs = tree_map(_behind, args), tree_map(_behind, kwargs)
        if here and self.watch is not None:
            self.watch(name, args, kwargs)
        found = func(*args, **kwargs)
        if name == "copy_" and tensors and not isinstance(tensors[0], Pretended):
            return tensors[0]
        written = {id(one.there): one for one in here}

        def back(one: Any) -> Any:
            if not isinstance(one, Tensor):
                return one
            if id(one) in written:
                return written[id(one)]
            made = Pretended(one)
            self.memory.take(made, name)
            return made

        return tree_map(back, found) if on_device or (here and wanted is None) else found


def _kind(wanted: Any, tensor: Tensor | None) -> type[Tensor]:
    """Where a result is: as asked for, else where the first tensor is."""
    if wanted is not None:
        return Pretended if torch.device(wanted) == DEVICE else Tensor
    return Pretended if isinstance(tensor, Pretended) else Tensor


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _behind(one: Any) -> Any:
    return one.there if isinstance(one, Pretended) else one


@contextmanager
def pretended_device(watch: Watch | None = None, memory: Memory | None = None) -> Iterator[Counter[str]]:
    """While it lasts `tensor.to(DEVICE)` works; yields how often the program waited, by what it did.

    Args:
        watch: told every operation on the device: its name, and the arguments with tensors of the CPU.
        memory: counts its tensors.
    """
    with _Device(watch, memory) as device:
        yield device.waits


class _Named(TorchFunctionMode):
    """A device by another name than "meta". torch would ask for its library before it comes to us, so everything is
    done with twins that are called "meta"."""

    def __init__(
        self, device: torch.device, memory: Memory, pinned: Pinned | None = None, stream: "_Stream | None" = None
    ) -> None:
        super().__init__()
        self._device, self._memory, self._pinned, self._stream = device, memory, pinned, stream

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_flatten((args, kwargs))[0]
        own = [one for one in given if isinstance(one, Pretended)]
        if self._pinned is not None and not own:
            if func is torch.empty and kwargs.get("pin_memory"):
                return self._pinned.take(torch.empty(*args, **kwargs | {"pin_memory": False}))
            if func == Tensor.pin_memory:
                return self._pinned.take(args[0].clone())
            if func == Tensor.is_pinned:
                return self._pinned.holds(args[0])
        if func == Tensor.new_tensor and own:  # which torch puts on the device past everybody
            made = Pretended(torch.tensor(args[1], dtype=kwargs.get("dtype", own[0].dtype)), self._device)
            made.stream = own[0].stream
            self._memory.take(made, "new_tensor")
            return made
        if own and func in (Tensor.tolist, Tensor.numpy):
            if func == Tensor.numpy:
                raise TypeError(f"can't convert a tensor of {self._device} to numpy")
            return own[0].there.tolist()
        if own and func == Tensor.__getitem__ and isinstance(args[1], list):  # likewise
            args = (args[0], torch.tensor(args[1]))
        asks = func.__name__ == "__get__" and func != Tensor.T.__get__  # type: ignore[attr-defined]
        if asks or func is torch.device:
            return func(*args, **kwargs)
        now = Pretended.stream if self._stream is None else self._stream.now
        assert all(one.stream == now for one in own), f"{func.__name__} of a tensor that another stream made"
        twins = {id(one): Pretended(one.there) for one in own}
        originals = {id(twins[id(one)]): one for one in own}
        names = {self._device, str(self._device)}
        if not self._device.index:  # that of a kind that is meant where none is named
            names.add(self._device.type)

        def there(one: Any) -> Any:
            return twins.get(id(one), DEVICE if isinstance(one, torch.device | str) and one in names else one)

        def here(one: Any) -> Any:
            if not isinstance(one, Pretended) or id(one) in originals:
                return originals.get(id(one), one)
            made = Pretended(one.there, self._device)
            made.stream = now
            self._memory.take(made, func.__name__)
            return made

        return tree_map(here, func(*tree_map(there, args), **tree_map(there, kwargs)))


_ABSENT_ON_MPS = ("linalg_eigh", "linalg_svd", "linalg_qr", "linalg_cholesky", "linalg_solve")


def _refuse_as_mps(name: str, args: Any, kwargs: Any) -> None:
    if name.removeprefix("_").startswith(_ABSENT_ON_MPS):
        raise NotImplementedError(f"{name} is not implemented for MPS")
    if name.startswith("index_add") and args[0].dtype == torch.int64:  # before PyTorch 2.9
        raise RuntimeError("index_add(): Expected non int64 dtype for source.")


@contextmanager
def pretended_mps() -> Iterator[None]:
    """Apple's GPU, for this thread: without float64 and without decompositions."""
    memory = Memory(dtypes=(torch.float64,))
    with _Device(_refuse_as_mps, memory, kind="MPS"), _Named(MPS, memory):
        yield


class _Stream:
    """That of a thread. All that is asked of the device is done at once, but no tensor may be used where another stream
    made it."""

    def __init__(self, log: Counter[str], pinned: Pinned) -> None:
        self._log, self._pinned, self.now = log, pinned, Pretended.stream

    def __enter__(self) -> None:
        self._log["stream"] += 1
        self.now = "its own"

    def __exit__(self, *error: object) -> None:
        self.now = Pretended.stream

    def synchronize(self) -> None:
        self._log["synchronize"] += 1
        self._pinned.done()


@contextmanager
def pretended_cuda(
    monkeypatch: Any,
    memory: Memory | None = None,
    watch: Watch | None = None,
    pinned: Pinned | None = None,
    index: int = 0,
) -> Iterator[Counter[str]]:
    """A machine with a CUDA device, `cuda:0`, for this thread; yields how often torch was asked for what.

    The memory of the host that this thread pins is read and written by the device as late as it may.

    Args:
        monkeypatch: of pytest.
        memory: as for `pretended_device`.
        watch: likewise.
        pinned: the memory of the host that is pinned.
        index: of the device; what is asked of one before it, or of whichever is the current one, fails.
    """
    host = Pinned() if pinned is None else pinned
    asked: Counter[str] = Counter()

    def say(name: str, answer: Any) -> None:
        def answered(*given: Any, **more: Any) -> Any:
            asked[name] += 1
            return answer

        monkeypatch.setattr(torch.cuda, name, answered)

    for name in ("_lazy_init", "synchronize", "set_per_process_memory_fraction", "empty_cache"):
        say(name, None)
    say("get_per_process_memory_fraction", 1.0)
    for name in ("memory_reserved", "memory_allocated"):
        say(name, 0)
    say("is_available", True)
    say("is_initialized", True)
    say("device_count", index + 1)
    say("get_device_name", "a pretended card")
    say("mem_get_info", (10**10, 10**10))
    stream = _Stream(asked, host)
    for name in ("current_stream", "Stream", "stream"):
        say(name, stream)
    monkeypatch.setattr("loraport.engine.on_device._own", threading.local())
    monkeypatch.setattr("loraport.engine.on_device._idle_streams", {})
    if hasattr(torch.accelerator, "empty_host_cache"):
        monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: asked.update(["empty_host_cache"]))
    counted = Memory() if memory is None else memory
    with _Device(watch, counted, host) as device, _Named(torch.device("cuda", index), counted, host, stream):
        yield asked
        asked["waits"] = sum(device.waits.values())
