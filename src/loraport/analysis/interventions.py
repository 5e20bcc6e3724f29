"""The paper's two interventions on a distilled weight: what of the drift they take away, or add once more.

Both are masks on the drift's routing matrix, with every direction a cluster of its own, since no LoRA says which
directions belong together.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.core.operators import Operator
from loraport.methods.casa.clusters import quantile
from loraport.methods.casa.routing import DriftRouting


def nondominant_drift(
    basis: SpectralBasis, routing: DriftRouting, drift: Operator | None, q: float
) -> Float[Tensor, "m n"]:
    """(I - U_d U_d^T) D (I - V_d V_d^T): the drift but for its dominant directions (Eq. 22, U ((1 - D_q) * C) V^T).

    Dominant are the receivers and senders of the head whose density reaches the q-quantile, each among its kind.

    Args:
        basis: of the source weight, m >= n.
        routing: of the drift.
        drift: needed where m > n, for what of it lies outside of the basis.
        q: 0 leaves nothing of the head, so that directions beyond it alone are touched; 1 leaves the strongest only.
    """
    k = len(routing.receivers)
    rows, cols = (
        torch.nn.functional.pad(density >= quantile(density, q), (0, len(basis.S) - k))
        for density in (routing.receivers, routing.senders)
    )
    if basis.U.shape[0] == basis.U.shape[1]:
        masked = routing.C * (~rows)[:, None] * ~cols
        return basis.U @ masked @ basis.Vh
    assert drift is not None, "a rectangular layer needs its drift"
    U, Vh = basis.U[:, rows], basis.Vh[cols]
    left = drift.dense() - U @ drift.apply_t(U).T
    return left - (left @ Vh.T) @ Vh


def strongest_head_blocks(basis: SpectralBasis, routing: DriftRouting, share: float) -> Float[Tensor, "m n"]:
    """What the drift does between directions of the head where it does most: U (M * C) V^T.

    Args:
        basis: of the source weight, m >= n.
        routing: of the drift.
        share: of the entries of the head's k x k block; those of the largest energy.
    """
    k = len(routing.receivers)
    C = routing.C[:k, :k]
    size = C.abs().reshape(-1)
    threshold = quantile(size, 1 - share)
    return basis.U[:, :k] @ (C * (C.abs() >= threshold) * (C != 0)) @ basis.Vh[:k]
