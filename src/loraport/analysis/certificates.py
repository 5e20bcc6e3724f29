"""What a gap between singular values proves: how far an update can have turned a cluster of directions at most.

Wedin's theorem in the Frobenius norm, which holds for any two sets of singular values that are apart: with delta the
distance between the changed singular values of a cluster and all others of the old weight,

    sqrt(||sin Theta_U||^2 + ||sin Theta_V||^2) <= sqrt(2) min(||E||_F, sqrt(d) ||E||_op) / delta,

and a singular value moves by ||E||_op at most (Weyl), so delta >= gap - ||E||_op. Where the weight is not square, zero
is among the others.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loraport.methods.casa.clusters import Clusters


def gaps(S: Float[Tensor, " p"], clusters: Clusters, *, square: bool) -> Float[Tensor, " count"]:
    """Distance of each cluster's singular values to all others.

    Args:
        S: all singular values of the weight, descending.
        clusters: of the first of them.
        square: whether the weight is.
    """
    k = len(clusters.labels)
    labels = torch.full((len(S),), -1, dtype=torch.int64, device=S.device)
    labels[:k] = clusters.labels
    apart = (S[:k, None] - S[None, :]).abs_()
    apart.masked_fill_(labels[:k, None] == labels[None, :], torch.inf)
    nearest = apart.min(dim=1).values
    nearest = torch.minimum(nearest, S[:k]) if not square else torch.where(nearest.isinf(), S[:k], nearest)
    least = torch.full((clusters.count,), torch.inf, dtype=S.dtype, device=S.device)
    return least.scatter_reduce_(0, clusters.labels, nearest, "amin")


def bounds(
    gap: Float[Tensor, " count"], sizes: Int[Tensor, " count"], size: float, largest: float
) -> Float[Tensor, " count"]:
    """Wedin's bound for each cluster; infinite where the update closes the gap.

    Args:
        gap: of `gaps`.
        sizes: directions in each cluster.
        size: Frobenius norm of the update.
        largest: its largest singular value.
    """
    apart = gap.double() - largest
    reach = math.sqrt(2.0) * (sizes.double().sqrt() * largest).clamp_max(size)
    return torch.where(apart > 0, reach / apart.clamp_min(1e-300), torch.inf)
