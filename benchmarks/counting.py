"""Counts what torch does while some work runs: operations of products and factorisations, bytes of all the rest.

Of one thread. A product of m x k with k x n is 2 m k n; a symmetric eigenproblem 9 n^3; a QR decomposition 2 m n^2 for
R and as much for Q; a Cholesky decomposition n^3 / 3 and a triangular solution m n^2. Everything else that is no view
counts the bytes of its tensors in and out; so does a product with at most 64 columns, for its largest matrix, since it
takes as long as reading that. What numpy does is not seen (the partition behind a quantile).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from loraport.methods.cost import Cost

aten = torch.ops.aten
THIN = 64
WIDE = {torch.float64: 2}
"""Operations in these count so many times."""


def _product(a: torch.Tensor, b: torch.Tensor) -> int:
    return 2 * a.shape[0] * a.shape[1] * b.shape[1] * WIDE.get(a.dtype, 1)


def _qr(a: torch.Tensor, *_: object, **__: object) -> int:
    return 4 * a.shape[0] * a.shape[1] ** 2 * WIDE.get(a.dtype, 1)


FORMULAS: dict[Any, tuple[str, Callable[..., int]]] = {
    aten.mm: ("products", lambda a, b, **_: _product(a, b)),
    aten.addmm: ("products", lambda _, a, b, **__: _product(a, b)),
    aten.addmm_: ("products", lambda _, a, b, **__: _product(a, b)),
    aten._linalg_eigh: ("decompositions", lambda a, *_, **__: 9 * a.shape[-1] ** 3 * WIDE.get(a.dtype, 1)),
    aten.linalg_qr: ("factorisations", _qr),
    aten.linalg_cholesky_ex: ("factorisations", lambda a, **_: a.shape[-1] ** 3 // 3),
    aten.linalg_solve_triangular: ("factorisations", lambda a, b, **_: a.shape[-1] ** 2 * b.shape[-2]),
    aten._linalg_svd: ("factorisations", lambda a, *_, **__: 22 * min(a.shape) ** 2 * max(a.shape)),
}
"""Kind of work and number of operations, by what torch calls it; small eigenproblems in float64 are in it, too."""


def counted(work: Callable[[], object]) -> Cost:
    """What one call of `work` does."""
    kinds: dict[str, float] = dict.fromkeys(("products", "decompositions", "factorisations"), 0.0)

    def formula(kind: str, operations: Callable[..., int]) -> Callable[..., int]:
        def count(*args: Any, out_val: object = None, **kwargs: Any) -> int:
            found = operations(*args, **kwargs)
            kinds[kind] += found
            if kind == "products":
                a, b = args[-2:]
                if min(a.shape[0], a.shape[1], b.shape[1]) <= THIN:
                    passes.bytes += max(x.numel() * x.element_size() for x in (a, b, out_val) if _is_tensor(x))
            return found

        count._get_raw = True  # type: ignore[attr-defined]  # the tensors, and not their shapes alone
        return count

    mapping = {packet: formula(kind, operations) for packet, (kind, operations) in FORMULAS.items()}
    passes = _Passes()
    with passes, FlopCounterMode(display=False, custom_mapping=mapping):
        work()
    return Cost(passes=float(passes.bytes), **kinds)


def _is_tensor(x: object) -> bool:
    return isinstance(x, torch.Tensor)


class _Passes(TorchDispatchMode):
    """Bytes in and out of everything that is neither a view nor in `FORMULAS`."""

    def __enter__(self) -> "_Passes":
        self.bytes = 0
        super().__enter__()
        return self

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        if func._overloadpacket not in FORMULAS and not func.is_view and func.name() not in _NOTHING_TO_DO:
            tensors = [x for x in tree_leaves((args, kwargs, made)) if isinstance(x, torch.Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return made


_NOTHING_TO_DO = {"aten::empty.memory_format", "aten::detach", "aten::alias"}
