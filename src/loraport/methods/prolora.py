"""ProLoRA-style projection: the part inside the source's main subspaces goes to the target's, the rest to the rest."""

from typing import ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.measures import cosine
from loraport.methods import base


class ProLoraParams(base.Params):
    """energy: share of the squared singular values of the source that makes the main subspace.

    mixed: keep the terms between the main subspace and the rest, which the published equations drop.
    """

    energy: float = Field(0.9, gt=0, le=1)
    mixed: bool = False


class ProLora(base.TransferMethod):
    """D' = sum over a, b of P_t^a P_s^a D P_s^b P_t^b; P projects on the main subspace (a = b, "||") or off it.

    "-style": there is no official code, and the published rule for the size of the main subspace is not given.
    """

    name: ClassVar[str] = "prolora"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "project on the target's main subspaces and their complements (ProLoRA-style)"
    reference: ClassVar[str] = "after ProLoRA, arXiv 2506.04244 (ICML 2025)"
    Params: ClassVar[type[base.Params]] = ProLoraParams

    def needs(self, params: ProLoraParams) -> base.Needs:
        """Both weights."""
        return base.Needs(basis=True, drift=True)

    def transfer(self, inputs: base.LayerInputs, params: ProLoraParams) -> base.LayerOutput:
        """Four products with thin matrices; rank r, or 2 r without the mixed terms."""
        source, target = inputs.basis, target_basis(inputs)
        assert source is not None
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


def target_basis(inputs: base.LayerInputs) -> SpectralBasis:
    """The target weight's basis; from source basis and drift if it was not given."""
    if inputs.target_basis is not None:
        return inputs.target_basis
    basis, drift = inputs.basis, inputs.drift
    assert basis is not None
    assert drift is not None
    return SpectralBasis.from_weight((basis.U * basis.S) @ basis.Vh + drift.dense(), name=inputs.name)


def _onto(U: Float[Tensor, "m k"], X: Float[Tensor, "m r"]) -> Float[Tensor, "m r"]:
    return U @ (U.T @ X)


def _off(U: Float[Tensor, "m k"], X: Float[Tensor, "m r"]) -> Float[Tensor, "m r"]:
    return X - U @ (U.T @ X)
