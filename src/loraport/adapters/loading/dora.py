"""The direction of the changed weight at a magnitude that was learned."""

import torch
from jaxtyping import Float32
from torch import Tensor

from loraport.adapters.kinds.base import KINDS
from loraport.adapters.kinds.dora import Dora, inner_kind, inputs_of
from loraport.adapters.loading.base import Numbers, Parts, change, finite_update, load
from loraport.containers.tensors import read_float
from loraport.core.lowrank import LowRank


@change.register(Dora)
def redirected(kind: Dora, parts: Parts, weight: Float32[Tensor, "m n *kernel"], settings: Numbers) -> LowRank:
    """One matrix as large as the weight."""
    inner, own = inner_kind(parts), weight.reshape(len(weight), -1)
    shape = (len(own), own.shape[1])
    added = load(KINDS[inner], {role: ref for role, ref in parts.items() if role not in kind.essential}, shape)
    changed = torch.addmm(own, added.B, added.A, alpha=settings["scale"])
    part = next(part for part in kind.essential if part in parts)
    magnitude = read_float(parts[part]).reshape(-1)
    inputs = inputs_of(parts[part], part, *shape)
    if not inputs:
        changed *= _ratio(magnitude, torch.linalg.vector_norm(changed, dim=1))[:, None]
    else:
        kernel = changed.view(len(changed), inputs, -1)
        kernel *= _ratio(magnitude, torch.linalg.vector_norm(kernel, dim=(0, 2)))[:, None]
    return finite_update(changed.sub_(own), parts[part])


def _ratio(magnitude: Float32[Tensor, " k"], norm: Float32[Tensor, " k"]) -> Float32[Tensor, " k"]:
    """What to multiply with; what is zero has no direction and stays zero."""
    return torch.where(norm > 0, magnitude / norm.clamp_min(torch.finfo(norm.dtype).tiny), 1.0)
