"""ProLoRA-style projection: the part inside the source's main subspaces goes to the target's, the rest to the rest."""

from pydantic import Field

from loraport.methods import base
from loraport.methods.columns import COSINE, Column
from loraport.methods.cost import Cost, factors, product


class ProLoraParams(base.Params):
    """Settings of prolora.

    Args:
        energy: share of the squared singular values of the source that makes the main subspace.
        mixed: keep the terms between the main subspace and the rest, which the published equations drop.
    """

    energy: float = Field(default=0.9, gt=0, le=1)
    mixed: bool = False


@base.register
class ProLora(base.TransferMethod[ProLoraParams]):
    """D' = sum over a, b of P_t^a P_s^a D P_s^b P_t^b; P projects on the main subspace (a = b, "||") or off it.

    "-style": there is no official code, and the published rule for the size of the main subspace is not given.
    """

    name = "prolora"
    version = 1
    summary = "project on the target's main subspaces and their complements (ProLoRA-style)"
    reference = "after ProLoRA, arXiv 2506.04244 (ICML 2025)"
    Params = ProLoraParams
    columns = (Column("main_subspace", "main subspace", "number of leading directions of the source", "count"), COSINE)

    def needs(self, params: ProLoraParams) -> base.Needs:
        """The bases of both weights."""
        return base.Needs(basis=True, target_basis=True)

    def transfer(self, inputs: base.LayerInputs, params: ProLoraParams) -> base.LayerOutput:
        """Four products with thin matrices; rank r, or 2 r without the mixed terms."""
        from loraport.methods.baselines import prolora_steps  # loads torch

        return prolora_steps.transfer(inputs, params)

    def cost(self, shape: tuple[int, int], rank: int, params: ProLoraParams, warm: bool) -> Cost:
        """Eight projections of thin factors, and a decomposition of factors of twice the rank."""
        m, n = shape
        return product(m + n, min(m, n), rank, 8) + factors(m, n, 2 * rank)

    def most_rank(self, shape: tuple[int, int], rank: int, params: ProLoraParams) -> int:
        """The part inside the main subspaces and the rest are a term each."""
        return rank if params.mixed else 2 * rank
