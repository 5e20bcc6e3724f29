"""The weight times two factors, and two more."""

import torch
from jaxtyping import Float32
from torch import Tensor

from loraport.adapters.kinds.glora import ROLES, Glora
from loraport.adapters.loading.base import Numbers, Parts, change, finite_update
from loraport.containers.tensors import read_float
from loraport.core.lowrank import LowRank


@change.register(Glora)
def products(kind: Glora, parts: Parts, weight: Float32[Tensor, "m n *kernel"], settings: Numbers) -> LowRank:
    """Rank 2 r, or the matrix where that is more than its smaller side."""
    m, rank = len(weight), parts["glora_b_down"].shape[0]
    a_up, a_down, b_up, b_down = (read_float(parts[role]).flatten(1) for role in ROLES)
    if weight.dim() > 2:
        inputs = weight.reshape(m, weight.shape[1], -1)
        dense = torch.einsum("mik,ij->mjk", inputs, a_up @ a_down).reshape(m, -1) + b_up @ b_down
        return finite_update(dense, parts["glora_b_up"])
    update = LowRank(torch.cat([weight @ a_up, b_up], dim=1), torch.cat([a_down, b_down]))
    if 2 * rank > min(weight.shape):
        return finite_update(update.dense(), parts["glora_b_up"])
    finite_update(update.B, parts["glora_a_up"])
    return update
