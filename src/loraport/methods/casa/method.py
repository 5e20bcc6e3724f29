"""Cluster-Aware Spectral Arbitration (CASA, arXiv 2605.01929): undo the drift, except where it dominates.

In the coordinates of the source weight W_source = U S Vh, with C_lora and C_fft the routing matrices of the LoRA
update and of the drift W_target - W_source:

1. *head*: the k directions that hold 90 % of the energy of S                                          (Eq. 3)
2. *clusters*: head directions that the update mixes, |C_lora| / |S_i - S_j| > tau                      (Eq. 4)
3. *dominant*: clusters whose mean density of C_fft is in the upper half, as receivers or as senders    (Eq. 5, 6)
4. *restore*: where neither row nor column is dominant, subtract C_fft: the source's weight comes back
5. *arbitrate*: on the strongest entries that agree in sign elsewhere, keep only the larger of the two

Without step 5 this is D' = D - (I - U_d U_d^T) drift (I - V_d V_d^T) with the dominant singular vectors U_d, V_d,
which also says what happens outside the thin basis of a rectangular layer.
"""

from typing import TYPE_CHECKING

from loraport.methods import base
from loraport.methods.casa.params import CasaParams
from loraport.methods.columns import COSINE, DRIFT_UNDONE, NORM_RATIO, Column
from loraport.methods.cost import (
    Cost,
    basis_bytes,
    elementwise,
    matrix_bytes,
    product,
    thin_product,
    total,
    truncation,
)
from loraport.methods.maps import LayerMap, bands

if TYPE_CHECKING:
    from torch import Tensor

_AXES = ("receiving directions", "sending directions")  # of the source's weight, strongest first
_CHANGES = ("drift", "LoRA")


@base.register
class Casa(base.TransferMethod[CasaParams]):
    """What the method says of itself; its mathematics is in `steps.py`."""

    name = "casa"
    version = 3
    summary = "undo the drift outside its dominant directions, and arbitrate on them"
    reference = "CASA, arXiv 2605.01929 (ICML 2026)"
    Params = CasaParams
    columns = (
        Column("head", "head", "number of leading singular directions of the source that are looked at", "count"),
        Column("clusters", "clusters", "sets of head directions that the LoRA mixes with each other", "count"),
        Column("largest_cluster", "largest", "directions in the largest of these clusters", "count"),
        Column("dominant_share", "dominant", "share of the routing matrix in dominant rows and columns", "share"),
        Column(
            "arbitrated_share",
            "arbitrated",
            "share of its entries where only the larger of LoRA and drift stays",
            "share",
        ),
        Column(
            "unsettled_share",
            "unsettled",
            "share of it that other rounding errors, such as those of another device, would decide otherwise",
            "share",
        ),
        Column(
            "unsettled_hits", "unsettled hits", "share of the arbitrated entries that such errors would change", "share"
        ),
        DRIFT_UNDONE,
        COSINE,
        NORM_RATIO,
        Column("svd_driver", "driver", "which algorithm decomposed the source weight", "text"),
    )
    maps = (
        LayerMap(
            "drift",
            "The drift",
            "Bands of singular directions of the source's weight, strongest first. In strong cells the distillation "
            "changed the layer most; 1 is an even spread.",
            *_AXES,
            high=2.0,
        ),
        LayerMap(
            "update",
            "The LoRA's update",
            "A strong upper or left edge means that the LoRA works on the strongest directions; 1 is an even spread.",
            *_AXES,
            high=2.0,
        ),
        LayerMap(
            "restored",
            "Drift undone",
            "Filled cells go back to the source; blank rows and columns are dominant and left to the target.",
            *_AXES,
            unit="share",
            high=1.0,
        ),
        LayerMap(
            "arbitrated",
            "Entries arbitrated",
            "In strong cells LoRA and drift most often push the same way, and only the larger of the two stays.",
            *_AXES,
            unit="share",
        ),
        LayerMap(
            "sends",
            "What the directions send",
            "A falling line means that mostly the response to the strongest inputs changes; 1 is an even spread.",
            "norm relative to an even spread",
            "sending direction",
            lines=_CHANGES,
            level=1.0,
        ),
        LayerMap(
            "receives",
            "What the directions receive",
            "A falling line means that mostly the layer's strongest outputs change; 1 is an even spread.",
            "norm relative to an even spread",
            "receiving direction",
            lines=_CHANGES,
            level=1.0,
        ),
    )

    def needs(self, params: CasaParams) -> base.Needs:
        """The source basis and the drift."""
        return base.Needs(basis=True, drift=True)

    def prepared_key(self, params: CasaParams) -> str | None:
        """The routing of the drift depends on the head and on the kind of density only."""
        return (
            f"density={params.density},head_energy={params.head_energy!r},"
            f"cut_nonsquare={params.cut_nonsquare},complete_basis={params.complete_basis}"
        )

    def reads_drift(self, shape: tuple[int, int], params: CasaParams) -> bool:
        """Square layers lie in the basis with all they have; the others need the drift outside of it."""
        return shape[0] != shape[1] and params.restore and not params.complete_basis

    def prepare(self, inputs: base.LayerInputs, params: CasaParams) -> "dict[str, Tensor]":
        """The routing of the drift."""
        from loraport.methods.casa import steps  # loads torch

        return steps.prepare(inputs, params)

    def transfer(self, inputs: base.LayerInputs, params: CasaParams) -> base.LayerOutput:
        """The new update of one layer; the steps are at the top of this file, and done in `steps.py`."""
        from loraport.methods.casa import steps

        return steps.transfer(inputs, params)

    def cost(self, shape: tuple[int, int], rank: int, params: CasaParams, warm: bool) -> Cost:
        """Routing of the drift unless it is there, routing of the update, decisions, and the cut in the core."""
        return total(self.steps(shape, rank, params, warm).values())

    def steps(self, shape: tuple[int, int], rank: int, params: CasaParams, warm: bool) -> dict[str, Cost]:
        """As in `steps.py`; the cut is the engine's."""
        p, longer = min(shape), max(shape)
        side = longer if params.complete_basis else p
        found = {}
        if not warm:
            found["routing of the drift"] = product(side, longer, p) + product(side, p, p) + elementwise(side, p, 3)
            if side != longer:
                rest = product(p, longer, p, 5 / 8) + product(p, p, p, 2.6)
                found["Gram matrix of the rest"] = rest + elementwise(p, p, 16)
        found["routing of the update"] = thin_product(p + longer, p, rank) + thin_product(side, p, rank, 2)
        # edges, components, densities, scores and their quantile; and the decisions once more
        found["decisions"] = elementwise(side, p, 50) + elementwise(p, p, 11)
        there_and_back = thin_product(p + longer, p, rank, 2)  # the LoRA into the coordinates of the core, the cut out
        if side == longer:
            found["truncated SVD"] = truncation(side, p, rank) + there_and_back
        else:
            found["outside the thin basis"] = thin_product(longer, p, rank, 2) + thin_product(p, p, rank)
            end = thin_product(longer, p, rank + 8, 2)  # the layer itself is applied once
            found["truncated SVD"] = truncation(p, p, rank, products=3) + end + thin_product(p, p, rank, 2)
        return found

    def memory(self, shape: tuple[int, int], rank: int, params: CasaParams) -> int:
        """Drift and basis; the two routing matrices, the residual Gram matrix, and what the decisions hold of them.

        A basis that is completed has a square of the longer side, twice while it is made.
        """
        m, n = shape
        p, longer = min(shape), max(shape)
        thin = matrix_bytes(m + n, rank, 6)
        if params.complete_basis and longer > p:
            making = matrix_bytes(longer, longer, 2) + matrix_bytes(m, n, 3)
            using = matrix_bytes(longer, longer) + matrix_bytes(m, n, 7)
            return max(making, using) + matrix_bytes(p, p) + thin
        return basis_bytes(m, n) + matrix_bytes(m, n) + matrix_bytes(p, p, 5) + thin

    def kept_bytes(self, shape: tuple[int, int], params: CasaParams) -> int:
        """The basis and the routing of the drift, with the residual Gram matrix of a rectangular layer."""
        p, longer = min(shape), max(shape)
        side = longer if params.complete_basis else p
        residual = 0 if side == longer else p * p
        return basis_bytes(*shape) + matrix_bytes(1, side * p + residual + 2 * p + bands(p) ** 2)


base.preset("casa", "casa", "the paper's rules, 90 % energy on every layer, nothing arbitrary outside the thin basis")
base.preset(
    "released-code",
    "casa",
    "the published code: energy cut on square layers only, arbitration also in a completed null space, rank 32",
    {"cut_nonsquare": False, "complete_basis": True},
    rank=32,
)
base.preset("restore-only", "casa", "casa without arbitration", {"arbitrate": False})
base.preset("arbitrate-only", "casa", "casa without restoration", {"restore": False})
