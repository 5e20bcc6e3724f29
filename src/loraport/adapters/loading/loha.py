"""The elementwise product of two low-rank matrices."""

import torch
from jaxtyping import Float32
from torch import Tensor

from loraport.adapters.kinds.loha import Loha
from loraport.adapters.loading.base import Parts, Stored, load, stored, unfold_core
from loraport.containers.tensors import read_float
from loraport.core.lowrank import LowRank

BLOCK_ROWS = 256


@load.register(Loha)
def product(kind: Loha, parts: Parts, shape: tuple[int, int]) -> LowRank:
    """Rank r1 r2, or the matrix where that is more than its smaller side."""
    (w1_a, w1_b), (w2_a, w2_b) = _pair(parts, "hada_w1", shape), _pair(parts, "hada_w2", shape)
    rank = w1_a.shape[1] * w2_a.shape[1]
    if rank > min(shape):
        return LowRank.from_dense(_dense(w1_a, w1_b, w2_a, w2_b))
    up = (w1_a[:, :, None] * w2_a[:, None, :]).reshape(shape[0], rank)
    down = (w1_b[:, None, :] * w2_b[None, :, :]).reshape(rank, shape[1])
    return LowRank(up, down)


@stored.register(Loha)
def product_as_stored(kind: Loha, parts: Parts, shape: tuple[int, int]) -> Stored:
    """Multiplied out in float32."""
    first, second = _pair(parts, "hada_w1", shape), _pair(parts, "hada_w2", shape)
    rank = len(first[1]) * len(second[1])
    if rank > min(shape) or not kind.factored(shape, rank):
        return _dense(*first, *second)
    update = load(kind, parts, shape)
    return update.B, update.A


def _pair(parts: Parts, name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    up, down = parts[f"{name}_a"], parts[f"{name}_b"]
    core = parts.get(name.replace("w", "t"))
    if core is not None:
        return read_float(up).T, unfold_core(read_float(core), read_float(down))
    return read_float(up).reshape(shape[0], -1), read_float(down).reshape(-1, shape[1])


def _dense(
    w1_a: Float32[Tensor, "m r1"],
    w1_b: Float32[Tensor, "r1 n"],
    w2_a: Float32[Tensor, "m r2"],
    w2_b: Float32[Tensor, "r2 n"],
) -> Float32[Tensor, "m n"]:
    # In blocks of rows, so that the second matrix never lies beside the first.
    result = torch.mm(w1_a, w1_b)
    for start in range(0, len(result), BLOCK_ROWS):
        result[start : start + BLOCK_ROWS] *= w2_a[start : start + BLOCK_ROWS] @ w2_b
    return result
