"""The mathematics of cluster-transport."""

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.core.operator import wide
from loraport.core.operators import cosine
from loraport.methods import base
from loraport.methods.baselines.cluster_transport import ClusterTransportParams


def transfer(inputs: base.LayerInputs, params: ClusterTransportParams) -> base.LayerOutput:
    """A small polar decomposition a cluster; the factors' rank does not change."""
    source, target = inputs.require_basis(), inputs.require_target_basis()
    update = inputs.update
    labels = spectral_clusters(source.S, params.gap, params.largest)
    B = _turned(update.B, source.U, target.U, labels)
    A = _turned(update.A.T, source.Vh.T, target.Vh.T, labels).T
    new = LowRank(B, A.contiguous())
    scale = update.norm()
    stats: dict[str, base.Stat] = {
        "clusters": int(labels.max()) + 1,
        "cosine": cosine(update, new),
        "norm_ratio": new.norm() / scale if scale > 0 else 0.0,
    }
    return base.LayerOutput(new, stats, new)


def spectral_clusters(S: Float[Tensor, " p"], gap: float, largest: int) -> Tensor:
    """Cluster number of each direction: runs of neighbours with close singular values, at most `largest` long."""
    labels, number, size = torch.zeros(len(S), dtype=torch.int64), 0, 1
    values = wide(S.cpu()).tolist()
    for i in range(1, len(values)):
        close = values[i - 1] - values[i] <= gap * values[i - 1]
        number, size = (number, size + 1) if close and size < largest else (number + 1, 1)
        labels[i] = number
    return labels


def _turned(
    X: Float[Tensor, "m r"], U_s: Float[Tensor, "m p"], U_t: Float[Tensor, "m p"], labels: Tensor
) -> Float[Tensor, "m r"]:
    rest = X - U_s @ (U_s.T @ X)
    moved = rest - U_t @ (U_t.T @ rest)
    for number in range(int(labels.max()) + 1):
        chosen = (labels == number).to(X.device)
        a, b = U_s[:, chosen], U_t[:, chosen]
        turn = b.T @ a
        left, _, right = torch.linalg.svd(turn.cpu() if turn.device.type == "mps" else turn)
        left, right = left.to(X.device), right.to(X.device)
        moved = moved + b @ (left @ (right @ (a.T @ X)))
    return moved
