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


def rotations(C: Float[Tensor, "k k"], S: Float[Tensor, " k"]) -> Float[Tensor, "k k"]:
    """|C_ij| / (|S_i - S_j| + 1e-6): about how far (radians) the update turns i into j; not symmetric."""
    turned = C.abs().div_((S[:, None] - S[None, :]).abs_().add_(_GAP_FLOOR))
    return turned.fill_diagonal_(0.0)


def turns(S: Float[Tensor, " p"], error: float) -> tuple[Float[Tensor, " p"], Int[Tensor, " p"]]:
    """About how far (radians, 1 at most) errors of the singular values turn each direction, and into which neighbour.

    To first order, error over gap, to the nearer neighbour.
    """
    steps = torch.cat([S.new_full((1,), torch.inf), -S.diff(), S.new_full((1,), torch.inf)])
    nearest = torch.arange(len(S), device=S.device) + torch.where(steps[1:] < steps[:-1], 1, -1)
    gap = torch.minimum(steps[:-1], steps[1:]).clamp_min_(_GAP_FLOOR)
    return (error / gap).clamp_max_(1.0), nearest.clamp_(0, len(S) - 1)


def redrawn(
    C: Float[Tensor, "k k"], S: Float[Tensor, " k"], error: float
) -> tuple[Float[Tensor, "k k"], Float[Tensor, " k"]]:
    """Routing matrix and singular values as another decomposition with errors of this size could give them.

    The draw is the same every time and on every device.
    """
    draws = torch.randn(3, len(S), generator=torch.Generator().manual_seed(0)).to(S)
    turned, into = turns(S, error)
    moved = torch.addcmul(C, (turned * draws[0])[:, None], C.index_select(0, into))
    moved.addcmul_((turned * draws[1])[None, :], C.index_select(1, into))
    return moved, S + error * draws[2]


def connected_components(edges: Bool[Tensor, "k k"]) -> Clusters:
    """Clusters of the undirected graph in which i and j are joined if there is an edge in either direction.

    Boruvka's way: every node picks one edge that leaves its cluster, the picked edges merge clusters, and so on
    until no edge leaves any. Each round looks at all edges once and at least halves the clusters that have some.
    """
    device, edges = edges.device, edges.cpu()  # many tiny steps: not for an accelerator
    labels = torch.arange(edges.shape[0])
    while True:
        leaving = edges & (labels[:, None] != labels[None, :])
        tail = leaving.any(dim=1).nonzero()[:, 0]
        if tail.numel() == 0:
            break
        head = leaving[tail].to(torch.uint8).argmax(dim=1)
        labels = _merged(labels, labels[tail], labels[head])
    roots, labels = torch.unique(labels, return_inverse=True)
    return Clusters(labels.to(device), roots.numel())


def _merged(labels: Int[Tensor, " k"], a: Int[Tensor, " e"], b: Int[Tensor, " e"]) -> Int[Tensor, " k"]:
    """Labels after joining cluster a[e] with cluster b[e] for every e; a joined cluster keeps its smallest label.

    Every label points at the smallest one that its partners point at, then at what that points at: distances
    double, so also a long chain takes few rounds.
    """
    parent = torch.arange(labels.numel())
    while True:
        low = torch.minimum(parent[a], parent[b])
        after = parent.clone()
        for node in (a, b):
            after.scatter_reduce_(0, node, low, "amin")
            after.scatter_reduce_(0, parent[node], low, "amin")
        after = after[after]
        if torch.equal(after, parent):
            return parent[labels]
        parent = after


def block_sum(
    X: Float[Tensor, "a b"], rows: Int[Tensor, " a"], cols: Int[Tensor, " b"], count: int
) -> Float[Tensor, "count count"]:
    """Sum of X over every pair (row cluster, column cluster), by two index_add: O(a b), no one-hot products."""
    by_row = torch.zeros(count, X.shape[1], dtype=X.dtype, device=X.device).index_add_(0, rows, X)
    by_col = torch.zeros(count, count, dtype=X.dtype, device=X.device).index_add_(0, cols, by_row.T.contiguous())
    return by_col.T


def quantile(values: Float[Tensor, " N"], q: float, among_largest: int | None = None) -> Float[Tensor, ""]:
    """The q-quantile with linear interpolation, exact, for any number of values (torch.quantile stops at 16 M).

    `among_largest` asks for the quantile of that many largest values instead of all.
    """
    count = values.numel() if among_largest is None else among_largest
    position = torch.tensor(q, dtype=values.dtype) * (count - 1)
    below = values.numel() - count
    low, high = below + int(position.floor()), below + int(position.ceil())
    if values.device.type == "cpu":
        ordered = values.clone()
        ordered.numpy().partition((low, high))  # shares memory: puts these two where sorting would
    else:
        ordered = values.sort().values
    return torch.lerp(ordered[low], ordered[high], (position - position.floor()).to(values.device))
