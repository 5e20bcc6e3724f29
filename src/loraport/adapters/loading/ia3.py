"""Rows or inputs times a vector."""

from jaxtyping import Float32
from torch import Tensor

from loraport.adapters.kinds.ia3 import FACTOR, OF_INPUTS, Ia3, misfit
from loraport.adapters.loading.base import Numbers, Parts, change, finite_update
from loraport.containers.tensors import read_float
from loraport.core.lowrank import LowRank


@change.register(Ia3)
def multiplied(kind: Ia3, parts: Parts, weight: Float32[Tensor, "m n *kernel"], settings: Numbers) -> LowRank:
    """One matrix as large as the weight."""
    ((role, ref),) = parts.items()
    added = read_float(ref).reshape(-1) - (1.0 if role.startswith(FACTOR) else 0.0)
    rows, inputs = len(weight), weight.shape[1]
    if len(added) != (inputs if role.endswith(OF_INPUTS) else rows):
        raise misfit(ref)
    by = added[:, None] if role.endswith(OF_INPUTS) else added[:, None, None]
    return finite_update((weight.reshape(rows, inputs, -1) * by).reshape(rows, -1), ref)
