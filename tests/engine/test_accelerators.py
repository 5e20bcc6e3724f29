"""A device as it may fail: no room, libraries that give up, products that lost their digits, none there at all."""

import contextlib
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from loraport.core.thin_svd import thin_svd
from loraport.engine import accelerators, measuring, on_device, precision
from loraport.engine.accelerators import (
    pick,
    pinned,
    usable_bytes,
)
from loraport.engine.executor import Limits, local_slots
from loraport.engine.on_device import with_the_cpu_behind
from loraport.engine.precision import full_precision
from loraport.engine.rates import rates_of
from loraport.errors import NumericalError, UsageError, is_device_full
from pretended_device import DEVICE, pretended_device

MATMUL = torch.backends.cuda.matmul
OF_A_CARD = getattr(torch, "AcceleratorError", RuntimeError)
"""What torch raises for what a card says; 2.6 has no type for it."""


@pytest.fixture
def streams(monkeypatch) -> list[str]:
    """Names of the streams that are made, in order, and `in NAME` where one is entered."""
    log: list[str] = []

    def made(device: str) -> str:
        log.append(f"{device} #{sum(not each.startswith('in ') for each in log)}")
        return log[-1]

    def entered(stream: str) -> contextlib.AbstractContextManager[None]:
        log.append(f"in {stream}")
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", made)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(on_device, "_own", threading.local())
    monkeypatch.setattr(on_device, "_idle_streams", {})
    return log


def _told() -> list[str]:
    return [text for _, text in precision._precisions()]


@pytest.fixture(autouse=True)
def as_it_was():
    before = _told()
    yield
    torch.set_float32_matmul_precision("highest")
    for (backend, _), text in zip(precision._precisions(), before, strict=True):
        if backend is not None:
            backend.fp32_precision = text


def _by_the_newer_name() -> None:
    if not hasattr(MATMUL, "fp32_precision"):
        pytest.skip("this torch has the older names only")
    MATMUL.fp32_precision = "tf32"


@pytest.mark.parametrize(
    "choose",
    [
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(MATMUL, "allow_tf32", True),
        _by_the_newer_name,
        lambda: None,
    ],
)
def test_products_have_all_digits_and_the_setting_comes_back(choose):
    choose()
    chosen = _told()
    seen, _ = with_the_cpu_behind(lambda device: (_told(), MATMUL.allow_tf32), "cpu")
    assert set(seen[0]) <= {"ieee", "none", "highest"}
    assert seen[1] is False
    assert _told() == chosen


def test_the_setting_comes_back_when_the_last_has_left():
    torch.set_float32_matmul_precision("high")
    chosen, entered, leave = _told(), threading.Event(), threading.Event()

    def first() -> None:
        with full_precision:
            entered.set()
            assert leave.wait(10)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(first)
        assert entered.wait(10)
        with full_precision:
            assert not MATMUL.allow_tf32
        assert not MATMUL.allow_tf32
        leave.set()
        done.result()
    assert _told() == chosen


@pytest.mark.parametrize(
    ("said", "room"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("MPS backend out of memory", False),
        ("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnXsyevd(handle)`", False),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", False),
        ("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`", False),
        ("cusolver error: CUSOLVER_STATUS_INVALID_VALUE, when calling `cusolverDnXsyevd_bufferSize(handle)`", True),
        ("CUDA error: an illegal memory access was encountered", True),
    ],
)
def test_what_the_libraries_say_when_there_is_no_room(said, room):
    assert is_device_full(RuntimeError(said)) != room


_REFUSES = "cusolver error: CUSOLVER_STATUS_INVALID_VALUE, when calling `cusolverDnXsyevd_bufferSize(handle)`"


def _refusing(real, error):
    def refuse(A, *args, **kwargs):
        if A.device == DEVICE:
            raise error
        return real(A, *args, **kwargs)

    return refuse


@pytest.mark.parametrize(
    ("failing", "error", "driver"),
    [
        (["eigh"], RuntimeError(_REFUSES), "gesdd"),
        (["eigh"], torch.linalg.LinAlgError("the algorithm failed to converge"), "gesdd"),
        (["eigh", "svd"], RuntimeError(_REFUSES), "gram on the CPU"),
        (["eigh", "svd"], NotImplementedError("not implemented for this device"), "gram on the CPU"),
    ],
)
def test_a_library_of_a_device_that_gives_up_is_done_without(failing, error, driver, monkeypatch):
    W = torch.randn(200, 150, generator=torch.Generator().manual_seed(0))
    for name in failing:
        monkeypatch.setattr(torch.linalg, name, _refusing(getattr(torch.linalg, name), error))
    with pretended_device():
        found = thin_svd(W.to(DEVICE))
        assert found.driver == driver
        assert found.U.device == DEVICE
        assert torch.allclose(((found.U * found.S) @ found.Vh).cpu(), W, atol=1e-4)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("out of memory"), RuntimeError("CUSOLVER_STATUS_ALLOC_FAILED"), RuntimeError("CUDA error")],
)
def test_a_device_without_room_or_broken_is_no_library_that_gives_up(error, monkeypatch):
    monkeypatch.setattr(torch.linalg, "eigh", _refusing(torch.linalg.eigh, error))
    with pretended_device(), pytest.raises(type(error)):
        thin_svd(torch.eye(150).to(DEVICE))


def test_a_device_that_fails_is_said_with_what_to_do(monkeypatch, streams):
    def work(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")

    with pytest.raises(NumericalError, match="--device cpu") as raised:
        with_the_cpu_behind(work, "cuda:0")
    assert raised.value.values == "CUDA error: an illegal memory access was encountered"
    monkeypatch.setattr(on_device, "_own", threading.local())
    monkeypatch.setattr(torch.cuda, "Stream", work)
    with pytest.raises(NumericalError, match="--device cpu"):  # before the work begins
        with_the_cpu_behind(str, "cuda:0")
    monkeypatch.setattr(accelerators, "_bounded", {"cuda:0": 1.0})
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: work(DEVICE))
    accelerators.bound("cuda:0", None)  # what is cleaned up afterwards hides it not


def test_every_thread_has_a_stream_of_its_own_and_leaves_it_to_those_after_it(streams):
    inside, leave = threading.Barrier(3), threading.Event()

    def work() -> None:
        for _ in range(2):
            with on_device.own_stream("cuda:0"):
                inside.wait(10)
            assert leave.wait(10)

    with on_device.own_stream("cpu"):
        pass
    for _ in range(2):
        leave.clear()
        both = [threading.Thread(target=work) for _ in range(2)]
        for each in both:
            each.start()
        inside.wait(10)
        leave.set()
        inside.wait(10)
        for each in both:
            each.join()
        del both, each
        gc.collect()
    with on_device.own_stream("cuda:1"):
        pass
    made = [name for name in streams if not name.startswith("in ")]
    assert made == ["cuda:0 #0", "cuda:0 #1", "cuda:1 #2"]
    assert [streams.count(f"in {name}") for name in made] == [4, 4, 1]


def test_a_stream_that_another_thread_was_quicker_to_take_up_is_not_missed(streams, monkeypatch):
    class JustTaken(list[str]):
        def __len__(self) -> int:
            return 1

    monkeypatch.setattr(on_device, "_idle_streams", {"cuda:0": JustTaken()})
    with on_device.own_stream("cuda:0"):
        assert streams == ["cuda:0 #0", "in cuda:0 #0"]


def test_what_finds_no_room_by_itself_is_tried_again_when_torch_has_given_back_what_it_kept(monkeypatch, streams):
    """Libraries take memory past torch, which may hold all that is left."""
    monkeypatch.setattr(on_device, "_turns", {})
    emptied: list[str] = []
    monkeypatch.setattr(on_device, "release_memory", emptied.append)

    def work(device: torch.device) -> str:
        if not emptied:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return str(device)

    assert with_the_cpu_behind(work, "cuda:0") == ("cuda:0", False)
    assert emptied == ["cuda:0"]


def test_a_device_that_failed_cannot_hide_why_where_its_memory_is_given_back(monkeypatch):
    def fail() -> None:
        raise OF_A_CARD("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    accelerators.release_memory("cuda:0")
    if hasattr(torch.accelerator, "empty_host_cache"):
        monkeypatch.setattr(torch.accelerator, "empty_host_cache", fail)
    accelerators.release_pinned()


def test_a_card_that_this_torch_is_not_built_for_is_said(monkeypatch):
    def refuse(A):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "eye", lambda *given, device, dtype: given)
    monkeypatch.setattr(torch.linalg, "eigh", refuse)
    with pytest.raises(UsageError, match="no kernel image"):
        accelerators.warm_up("cuda:0")


@pytest.mark.parametrize("asked", ["get_device_name", "mem_get_info"])
def test_a_card_that_is_full_before_it_is_begun_with_is_said(asked, monkeypatch):
    """A process takes some hundred MB of a card before it has a tensor there."""

    def full(device: object) -> None:
        raise OF_A_CARD("CUDA error: out of memory\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a card")
    monkeypatch.setattr(torch.cuda, asked, full)
    with pytest.raises(UsageError, match="cuda:0 has no memory left") as raised:
        local_slots(Limits("auto"))
    assert raised.value.values == "CUDA error: out of memory"
    assert raised.value.fix == "use --device cpu, or stop whatever else uses it"


def test_a_device_that_cannot_be_measured_is_reckoned_as_the_cpu(tmp_path, monkeypatch):
    real = measuring.measure

    def measure(device, root):
        if device != "cpu":
            raise RuntimeError("CUDA out of memory")
        return real(device, root)

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(accelerators, "card_names", lambda: ["a card"])
    monkeypatch.setattr(accelerators, "name_of", lambda device: "a card")
    assert rates_of("cuda:0", tmp_path) == rates_of("cpu", tmp_path)
    assert len(list((tmp_path / "machine").iterdir())) == 1  # nothing is remembered of the card


def test_asking_which_cards_there_are_begins_with_none_of_them(monkeypatch):
    """torch takes hundreds of MB of each card that it begins with, and may not begin with one that another has."""

    def begin(device: str) -> None:
        raise OF_A_CARD("CUDA error: CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", begin)
    assert accelerators.card_names() == ["card 0", "card 1"]
    monkeypatch.setattr(measuring, "measure", lambda device, root: device)
    assert rates_of("cuda:1", None) == "cuda:1"


def test_what_torch_keeps_for_later_is_there_to_be_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2_000, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1_000)
    assert usable_bytes("cuda:0") == int(6_000 * accelerators._SHARE)


def test_no_memory_is_pinned_before_a_device_computes(monkeypatch):
    """torch would begin with the first device for that, though another one may be meant."""
    asked = []
    real = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *a, **more: asked.append(more.pop("pin_memory", False)) or real(*a, **more)
    )
    pinned(8)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    pinned(8)
    assert asked == [False, True]


def test_why_there_is_no_device_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    with pytest.raises(UsageError, match="without CUDA"):
        pick(("cuda",))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES is ''"):
        pick(("cuda:1",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UsageError, match=r"the last one is cuda:0; CUDA_VISIBLE_DEVICES is '3'"):
        pick(("cuda:3",))
