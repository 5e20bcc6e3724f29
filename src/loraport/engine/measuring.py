"""Measuring how fast this machine is: the work behind `rates.py`, in about a second."""

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from loraport.containers.tensors import open_tensors, read_float_with_digest
from loraport.engine.precision import full_precision
from loraport.engine.rates import Rates
from loraport.errors import FileError
from loraport.store.store import Store
from loraport.threads import threads_of_torch

_PRODUCT = 1024  # side of a square matrix: large enough for the full speed, 15 ms on a core;
_PRODUCT_ON_A_DEVICE = 4096  # there, 3 ms of an H200
_EIGENPROBLEM = 768  # likewise, 50 ms;
_EIGENPROBLEMS = 1024, 4096  # there, 11 and 90 ms of an H200: twelve times as much work a second in the larger one
_ENOUGH = 2.0  # seconds of one kind of work, on a slow device
_SWEEP = 16_000_000  # entries: beyond any processor's cache
_FILE = 32_000_000  # bytes


def measure(device: str, root: Path | None) -> Rates:
    """Measure now. The files that this takes are in the cache folder for as long as it lasts, or in the system's."""
    clock = time.thread_time if device == "cpu" else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    product = _PRODUCT if device == "cpu" else _PRODUCT_ON_A_DEVICE
    factor = torch.ones(product, product, dtype=torch.float32, device=device)
    one, other = (torch.ones(_SWEEP, dtype=torch.float32, device=device) for _ in range(2))
    with threads_of_torch(1), full_precision:
        products = 2 * product**3 / _fastest(lambda: _done(factor @ factor), clock)
        sizes = (_EIGENPROBLEM,) if device == "cpu" else _EIGENPROBLEMS
        spent = {n: _fastest(partial(_decompose, _gram(n, generator, device)), clock) for n in sizes}
        passes = 3 * 4 * _SWEEP / _fastest(lambda: _done(one.add_(other)), clock)
        read, keep, fetch = _files(root)
    operations, column = of_eigenproblems(spent)
    return Rates(products, 9 / operations, passes, read, keep, fetch, column)


def of_eigenproblems(spent: Mapping[int, float]) -> tuple[float, float]:
    """(a, b) where an eigenproblem of n columns takes a n^3 + b n seconds; of one size, b is 0.

    Args:
        spent: seconds by size, one or two of them.
    """
    (small, quick), (large, slow) = min(spent.items()), max(spent.items())
    if small == large:
        return slow / large**3, 0.0
    cubic = (slow * small - quick * large) / (large**3 * small - small**3 * large)
    if cubic <= 0:  # the times make no sense together
        return slow / large**3, 0.0
    return cubic, max(slow / large - cubic * large**2, 0.0)


def _gram(n: int, generator: torch.Generator, device: str) -> torch.Tensor:
    square = torch.randn(n, n, generator=generator, dtype=torch.float32).to(device)
    return square.T @ square


def _decompose(gram: torch.Tensor) -> None:
    _done(torch.linalg.eigh(gram).eigenvalues)


def _fastest(work: Callable[[], object], clock: Callable[[], float]) -> float:
    times: list[float] = []
    while len(times) < 2 or (len(times) < 3 and sum(times) < _ENOUGH):  # the first one may load the library
        began = clock()
        work()
        times.append(clock() - began)
    return max(min(times), 1e-6)


def _done(result: torch.Tensor) -> float:
    return float(result.reshape(-1)[0])  # waits for an accelerator


def _files(root: Path | None) -> tuple[float, float, float]:
    """Rates of reading a weight, of keeping an entry, of fetching it."""
    here = None
    if root is not None:
        with contextlib.suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            here = root
    try:
        with tempfile.TemporaryDirectory(prefix=".measure-", dir=here) as folder:
            return _file_rates(Path(folder))
    except (OSError, FileError):
        with tempfile.TemporaryDirectory(prefix="loraport-") as folder:
            return _file_rates(Path(folder))


def _file_rates(folder: Path) -> tuple[float, float, float]:
    weight = torch.ones(_FILE // 2, dtype=torch.bfloat16).reshape(-1, 1000)
    save_file({"w": weight}, folder / "w.safetensors")
    (group,) = open_tensors(folder / "w.safetensors").groups.values()
    read = _fastest(lambda: read_float_with_digest(group["w"]), time.thread_time)
    entry = {"w": torch.ones(_FILE // 4, dtype=torch.float32)}
    store = Store(folder / "store", reserve_bytes=0)
    keys = iter([hashlib.sha256(str(n).encode()).hexdigest() for n in range(3)])
    keep = _fastest(lambda: store.put("basis", next(keys), entry), time.perf_counter)
    key = hashlib.sha256(b"0").hexdigest()
    fetch = _fastest(lambda: store.get("basis", key), time.thread_time)
    return _FILE / read, _FILE / keep, _FILE / fetch
