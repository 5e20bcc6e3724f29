"""The mathematics of prolora."""

from jaxtyping import Float
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.core.operators import cosine
from loraport.methods import base
from loraport.methods.baselines.prolora import ProLoraParams


def transfer(inputs: base.LayerInputs, params: ProLoraParams) -> base.LayerOutput:
    """Four products with thin matrices; rank r, or 2 r without the mixed terms."""
    source, target = inputs.require_basis(), inputs.require_target_basis()
    k, update = source.head(params.energy), inputs.update
    left_in = _onto(target.U[:, :k], _onto(source.U[:, :k], update.B))
    left_out = _off(target.U[:, :k], _off(source.U[:, :k], update.B))
    right_in = _onto(target.Vh[:k].T, _onto(source.Vh[:k].T, update.A.T)).T
    right_out = _off(target.Vh[:k].T, _off(source.Vh[:k].T, update.A.T)).T
    if params.mixed:
        new = LowRank(left_in + left_out, right_in + right_out)
    else:
        new = LowRank.sum([LowRank(left_in, right_in), LowRank(left_out, right_out)])
    return base.LayerOutput(new, {"main_subspace": k, "cosine": cosine(update, new)}, new)


def _onto(U: Float[Tensor, "m k"], X: Float[Tensor, "m r"]) -> Float[Tensor, "m r"]:
    return U @ (U.T @ X)


def _off(U: Float[Tensor, "m k"], X: Float[Tensor, "m r"]) -> Float[Tensor, "m r"]:
    return X - U @ (U.T @ X)
