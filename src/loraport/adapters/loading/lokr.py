"""The Kronecker product of two small matrices."""

import torch
from torch import Tensor

from loraport.adapters.kinds.lokr import HALVES, Lokr
from loraport.adapters.loading.base import Parts, Stored, load, stored, unfold_core
from loraport.containers.tensors import TensorRef, read_float
from loraport.core.lowrank import LowRank


@load.register(Lokr)
def product(kind: Lokr, parts: Parts, shape: tuple[int, int]) -> LowRank:
    """Kronecker products of the factors of w1 and w2."""
    w1, w2 = (_half(parts, half) for half in HALVES)
    return LowRank(torch.kron(w1.B, w2.B), torch.kron(w1.A, w2.A))


@stored.register(Lokr)
def product_as_stored(kind: Lokr, parts: Parts, shape: tuple[int, int]) -> Stored:
    """Multiplied out in float32."""
    w1, w2 = (_half(parts, half) for half in HALVES)
    if not kind.factored(shape, w1.rank * w2.rank):
        return torch.kron(w1.dense(), w2.dense())
    return torch.kron(w1.B, w2.B), torch.kron(w1.A, w2.A)


def _half(parts: Parts, half: str) -> LowRank:
    if half in parts:
        return LowRank.from_dense(_matrix(parts[half]))
    up, down = _matrix(parts[f"{half}_a"]), _matrix(parts[f"{half}_b"])
    if half == "lokr_w2" and "lokr_t2" in parts:
        up, down = up.T.contiguous(), unfold_core(read_float(parts["lokr_t2"]), down)
    if down.shape[0] > min(up.shape[0], down.shape[1]):
        return LowRank.from_dense(up @ down)
    return LowRank(up, down)


def _matrix(ref: TensorRef) -> Tensor:
    return read_float(ref).reshape(ref.shape[0], -1)
