"""Cross-LoRA-style (and LoRA-X-style) transfer: project the update on the target's leading singular subspaces."""

from pydantic import Field

from loraport.methods import base
from loraport.methods.columns import COSINE, Column
from loraport.methods.cost import Cost, factors, product


class CrossLoraParams(base.Params):
    """Settings of cross-lora.

    Args:
        energy: share of the target's squared singular values that its leading subspaces hold.
    """

    energy: float = Field(default=0.99, gt=0, le=1)


@base.register
class CrossLora(base.TransferMethod[CrossLoraParams]):
    """D' = U_t U_t^T D V_t V_t^T with the target's first k singular vectors.

    For models of equal shape the least-squares alignment of Cross-LoRA is exact, and what remains is this projection,
    which is also the transfer step of LoRA-X. "-style": neither has official code.
    """

    name = "cross-lora"
    version = 1
    summary = "project on the target's leading subspaces (Cross-LoRA- and LoRA-X-style)"
    reference = "after Cross-LoRA, arXiv 2508.05232, and LoRA-X, arXiv 2501.16559"
    Params = CrossLoraParams
    columns = (Column("subspace", "subspace", "number of leading directions of the target", "count"), COSINE)

    def needs(self, params: CrossLoraParams) -> base.Needs:
        """The basis of the target weight."""
        return base.Needs(target_basis=True)

    def transfer(self, inputs: base.LayerInputs, params: CrossLoraParams) -> base.LayerOutput:
        """Two projections of thin factors."""
        from loraport.core.lowrank import LowRank  # loads torch
        from loraport.core.operators import cosine

        target, update = inputs.require_target_basis(), inputs.update
        k = target.head(params.energy)
        U, Vh = target.U[:, :k], target.Vh[:k]
        new = LowRank(U @ (U.T @ update.B), (update.A @ Vh.T) @ Vh)
        return base.LayerOutput(new, {"subspace": k, "cosine": cosine(update, new)}, new)

    def cost(self, shape: tuple[int, int], rank: int, params: CrossLoraParams, warm: bool) -> Cost:
        """Two projections of thin factors."""
        m, n = shape
        return product(m + n, min(m, n), rank, 2) + factors(m, n, rank)

    def most_rank(self, shape: tuple[int, int], rank: int, params: CrossLoraParams) -> int:
        """Projections add no direction."""
        return rank
