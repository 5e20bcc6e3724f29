"""Which singular directions an update mixes, and sums over the resulting blocks.

An update rotates singular vectors i and j into each other by about |C_ij| / |S_i - S_j|. Directions that
are rotated by more than tau are joined by an edge; the connected components of that graph are the clusters.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_GAP_FLOOR = 1e-6  # of the published code: keeps repeated singular values apart from a division by zero
_SIZE_FLOOR = 1e-6  # likewise, in the mean over a cluster


@dataclass(frozen=True)
class Clusters:
    """`labels[i]` is the cluster of head direction i; clusters are numbered by their first member."""

    labels: Int[Tensor, " k"]
    count: int

    @property
    def sizes(self) -> Int[Tensor, " count"]:
        """Number of directions in each cluster."""
        return torch.bincount(self.labels, minlength=self.count)

    def mean(self, density: Float[Tensor, " k"]) -> Float[Tensor, " count"]:
        """Mean density of each cluster (Eq. 5 and 6)."""
        sums = torch.zeros(self.count, dtype=density.dtype, device=density.device)
        sums.index_add_(0, self.labels, density)
        return sums / (self.sizes.to(density.dtype) + _SIZE_FLOOR)

    def dominant(self, density: Float[Tensor, " k"], q: float) -> Bool[Tensor, " k"]:
        """Members of the clusters whose mean density reaches the q-quantile over clusters, each counted once."""
        means = self.mean(density)
        return (means >= quantile(means, q))[self.labels]


def perturbation_edges(C: Float[Tensor, "k k"], S: Float[Tensor, " k"], tau: float) -> Bool[Tensor, "k k"]:
    """Where |C_ij| / (|S_i - S_j| + 1e-6) exceeds tau; not symmetrised, diagonal empty."""
    reach = (S[:, None] - S[None, :]).abs_().add_(_GAP_FLOOR)
    edges = C.abs().div_(reach) > tau
    edges.fill_diagonal_(False)
    return edges


def connected_components(edges: Bool[Tensor, "k k"]) -> Clusters:
    """Clusters of the undirected graph in which i and j are joined if either direction has an edge.

    Every node points at the smallest label its neighbours know and then at what that one points at, so labels
    travel doubling distances: a few rounds, each linear in the edges, also for long chains.
    """
    k = edges.shape[0]
    tail, head = edges.nonzero(as_tuple=True)
    parent = torch.arange(k, device=edges.device)
    while True:
        low = torch.minimum(parent[tail], parent[head])
        after = parent.clone()
        for node in (tail, head):
            after.scatter_reduce_(0, node, low, "amin")
            after.scatter_reduce_(0, parent[node], low, "amin")
        after = after[after]
        if torch.equal(after, parent):
            break
        parent = after
    roots, labels = torch.unique(parent, return_inverse=True)
    return Clusters(labels, roots.numel())


def block_sum(
    X: Float[Tensor, "a b"], rows: Int[Tensor, " a"], cols: Int[Tensor, " b"], count: int
) -> Float[Tensor, "count count"]:
    """Sum of X over every pair (row cluster, column cluster), by two index_add: O(a b), no one-hot products."""
    by_row = torch.zeros(count, X.shape[1], dtype=X.dtype, device=X.device).index_add_(0, rows, X)
    by_col = torch.zeros(count, count, dtype=X.dtype, device=X.device).index_add_(0, cols, by_row.T.contiguous())
    return by_col.T


def quantile(values: Float[Tensor, " N"], q: float) -> Float[Tensor, ""]:
    """The q-quantile with linear interpolation, exact, for any number of values (torch.quantile stops at 16 M)."""
    ordered = values.sort().values
    position = torch.tensor(q, dtype=values.dtype, device=values.device) * (values.numel() - 1)
    low = position.floor()
    high = position.ceil()
    return torch.lerp(ordered[low.long()], ordered[high.long()], position - low)
