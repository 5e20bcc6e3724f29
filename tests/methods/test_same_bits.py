"""What is computed on a device is computed by operations that give the same bits in every run.

Which do not, torch says itself, in the documentation of `use_deterministic_algorithms`.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.core.truncation import truncated_svd
from loraport.methods import registry
from loraport.methods.base import LayerInputs
from pretended_device import DEVICE, pretended_device

M, N, RANK = 96, 64, 4


def _unique(indices: Any) -> bool:
    """Whether no place is named twice."""
    named = [each for each in indices if each is not None]
    if any(each.dtype == torch.bool for each in named):
        return True
    flat = torch.stack(torch.broadcast_tensors(*named)).flatten(1)
    return flat.unique(dim=1).shape[1] == flat.shape[1]


def _accumulates(args: tuple[Any, ...], kwargs: dict[str, Any], at: int = 3) -> bool:
    return bool(args[at] if len(args) > at else kwargs.get("accumulate", False))


def _reduce(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return str(args[4] if len(args) > 4 else kwargs["reduce"])


CHANGING: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], bool]] = {
    "index_put": lambda args, kwargs: not _accumulates(args, kwargs) and not _unique(args[1]),
    "put_": lambda args, kwargs: True,
    "scatter_add_": lambda args, kwargs: args[0].is_floating_point(),
    "index_add": lambda args, kwargs: args[0].is_floating_point(),
    "index_copy": lambda args, kwargs: not _unique([args[2]]),
    "scatter": lambda args, kwargs: isinstance(args[3], Tensor),
    "scatter_reduce": lambda args, kwargs: _reduce(args, kwargs) in ("sum", "mean", "prod"),
    "histc": lambda args, kwargs: True,
    "bincount": lambda args, kwargs: (args[1] if len(args) > 1 else kwargs.get("weights")) is not None,
    "median": lambda args, kwargs: len(args) > 1,
    "cumsum": lambda args, kwargs: args[0].is_floating_point(),
    "index_reduce": lambda args, kwargs: True,
    "kthvalue": lambda args, kwargs: True,
}
"""Of the operations that torch names, when one of them may give other bits on CUDA."""
NOT_ALWAYS = {"index_reduce", "kthvalue"}
"""Not named by torch 2.13; by 2.6, or by 2.15."""
ELSEWHERE = {"bmm", "mm", "mv", "__getitem__", "gather", "index_select", "repeat_interleave", "resize_"}
"""Named for sparse or quantised tensors, or for what is differentiated, which nothing is here."""
_CALLED = {name.strip("_"): changes for name, changes in CHANGING.items()}


def test_the_list_is_that_of_this_version_of_torch():
    told = torch.use_deterministic_algorithms.__doc__ or ""
    named = set(re.findall(r":(?:func|class):`torch\.(?:Tensor\.)?([a-z_]+)`", told))
    assert named - {"set_deterministic_debug_mode"} <= CHANGING.keys() | ELSEWHERE
    assert CHANGING.keys() - NOT_ALWAYS <= named


def refuse_changing(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    changes = _CALLED.get(name.removeprefix("_").partition(".")[0].rstrip("_"))
    assert changes is None or not changes(args, kwargs), f"{name} gives other bits in another run"


def _random(m: int, n: int, seed: int) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def _inputs(m: int, n: int) -> LayerInputs:
    """A layer in which several clusters have several directions."""
    p = min(m, n)
    S, Vh = torch.linspace(2, 0.1, p), torch.linalg.qr(_random(n, p, 5)).Q.T
    basis, target = (
        SpectralBasis(torch.linalg.qr(_random(m, p, at)).Q.to(DEVICE), S.to(DEVICE), Vh.to(DEVICE)) for at in (0, 1)
    )
    update = LowRank(_random(m, RANK, 3) * 0.02, _random(RANK, n, 4) * 0.02).to(device=DEVICE)
    weights = [DenseOperator((_random(m, n, at) * 0.1).to(DEVICE)) for at in (6, 7)]
    drift = DenseOperator(weights[1].W - weights[0].W)
    return LayerInputs("layer", update, basis, target, drift, None, *weights)


@pytest.mark.parametrize("shape", [(N, N), (M, N)], ids=str)
@pytest.mark.parametrize("name", sorted({*registry.names(), "released-code"}))
def test_every_method_gives_the_same_bits(name, shape):
    method, params = registry.resolve(name)
    with pretended_device(refuse_changing):
        found = method.transfer(_inputs(*shape), params)
        truncated_svd(found.update, rank=RANK, start=found.start)
        truncated_svd(found.update, energy=0.9, start=found.start)


def test_decompositions_give_the_same_bits():
    with pretended_device(refuse_changing):
        thin_svd((_random(200, 150, 0) * torch.logspace(0, -2.5, 150)).to(DEVICE))
        truncated_svd(DenseOperator(_random(200, 150, 0).to(DEVICE)), rank=RANK)


def test_what_adds_in_any_order_would_be_seen():
    with pretended_device(refuse_changing):
        x, at = _random(8, 8, 0).to(DEVICE), torch.tensor([0, 1, 1, 2, 3, 3, 3, 0]).to(DEVICE)
        for odd in (
            lambda: x.index_add_(0, at, x.clone()),
            lambda: torch.zeros(4, 8, device=DEVICE).scatter_add_(0, at[:, None].expand(8, 8), x),
            lambda: x.cumsum(0),
            lambda: x.index_put_((at,), x.clone()),
            lambda: at.bincount(x[0]),
            lambda: torch.zeros(4, 8, device=DEVICE).scatter_reduce(0, at[:, None].expand(8, 8), x, "sum"),
        ):
            with pytest.raises(AssertionError, match="other bits"):
                odd()
        x.index_put_((at[:2],), x[:2].clone())
        torch.zeros(4, 8, device=DEVICE).scatter_reduce(0, at[:, None].expand(8, 8), x, "amin")
