"""Products of float32 numbers with all their digits, whatever the program around this one chose."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch


class _FullPrecision:
    """Products of float32 numbers in float32, for as long as somebody is within."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._before: Callable[[], None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._before = _set_full_precision()
            self._within += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within and self._before is not None:
                self._before()
                self._before = None


full_precision = _FullPrecision()
"""A context in which products of float32 matrices have all digits, on every device, whatever the program around it or
the environment chose: with TF32 a GPU keeps three. It is a setting of the process, and as it was when all have left."""


def _set_full_precision() -> Callable[[], None] | None:
    """Set it; what sets it back, None where it was so."""
    own = _precisions()
    if all(told in ("ieee", "none", "highest") for _, told in own):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are to go
        try:
            plain = torch.get_float32_matmul_precision()
        except RuntimeError:  # the program used the newer names, which say more
            plain = None
        torch.set_float32_matmul_precision("highest")  # by both kinds of names

    def back() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if plain is not None:
                torch.set_float32_matmul_precision(plain)
            for (backend, before), (_, now) in zip(own, _precisions(), strict=True):
                if backend is not None and now != before:
                    backend.fp32_precision = before

    return back


def _precisions() -> list[tuple[Any, str]]:
    """What is set for products: for CUDA and for the CPU's library, or of a torch before 2.9 for both together."""
    backends = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    told = [(backend, getattr(backend, "fp32_precision", None)) for backend in backends]
    found = [(backend, str(text)) for backend, text in told if text is not None]
    return found or [(None, torch.get_float32_matmul_precision())]
