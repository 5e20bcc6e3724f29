"""Cross-LoRA-style (and LoRA-X-style) transfer: project the update on the target's leading singular subspaces."""

from typing import ClassVar

from pydantic import Field

from loraport.core.lowrank import LowRank
from loraport.core.measures import cosine
from loraport.methods import base
from loraport.methods.prolora import target_basis


class CrossLoraParams(base.Params):
    """energy: share of the target's squared singular values that its leading subspaces hold."""

    energy: float = Field(0.99, gt=0, le=1)


class CrossLora(base.TransferMethod):
    """D' = U_t U_t^T D V_t V_t^T with the target's first k singular vectors.

    For models of equal shape the least-squares alignment of Cross-LoRA is exact, and what remains is this projection,
    which is also the transfer step of LoRA-X. "-style": neither has official code.
    """

    name: ClassVar[str] = "cross-lora"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "project on the target's leading subspaces (Cross-LoRA- and LoRA-X-style)"
    reference: ClassVar[str] = "after Cross-LoRA, arXiv 2508.05232, and LoRA-X, arXiv 2501.16559"
    Params: ClassVar[type[base.Params]] = CrossLoraParams

    def needs(self, params: CrossLoraParams) -> base.Needs:
        """Both weights."""
        return base.Needs(basis=True, drift=True)

    def transfer(self, inputs: base.LayerInputs, params: CrossLoraParams) -> base.LayerOutput:
        """Two projections of thin factors."""
        target, update = target_basis(inputs), inputs.update
        k = target.head(params.energy)
        U, Vh = target.U[:, :k], target.Vh[:k]
        new = LowRank(U @ (U.T @ update.B), (update.A @ Vh.T) @ Vh)
        return base.LayerOutput(new, {"subspace": k, "cosine": cosine(update, new)}, new)
