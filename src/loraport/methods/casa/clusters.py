"""Which singular directions an update mixes, and sums over the resulting blocks.

An update rotates singular vectors i and j into each other by about |C_ij| / |S_i - S_j|. Directions that
are rotated by more than tau are joined by an edge; the connected components of that graph are the clusters.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loraport.core import labelled
from loraport.core.operator import sent

_GAP_FLOOR = 1e-6  # of the published code: keeps repeated singular values apart from a division by zero
_SIZE_FLOOR = 1e-6  # likewise, in the mean over a cluster
_ROWS = 64  # rows whose entries are looked at together


@dataclass(frozen=True)
class Clusters:
    """`labels[i]` is the cluster of head direction i; clusters are numbered by their first member."""

    labels: Int[Tensor, " k"]
    count: int

    @property
    def sizes(self) -> Int[Tensor, " count"]:
        """Number of directions in each cluster."""
        return labelled.sums(torch.ones_like(self.labels), self.labels, self.count)

    def mean(self, density: Float[Tensor, " k"]) -> Float[Tensor, " count"]:
        """Mean density of each cluster (Eq. 5 and 6)."""
        sums = labelled.sums(density, self.labels, self.count)
        return sums / (self.sizes.to(density.dtype) + _SIZE_FLOOR)

    def dominant(self, density: Float[Tensor, " k"], q: float) -> Bool[Tensor, " k"]:
        """Members of the clusters whose mean density reaches the q-quantile over clusters, each counted once."""
        means = self.mean(density)
        return (means >= quantile(means, q))[self.labels]


def edges(C: Float[Tensor, "k k"], S: Float[Tensor, " k"], tau: float) -> Bool[Tensor, "k k"]:
    """Whether the update turns direction i into j by more than tau (radians): |C_ij| / (|S_i - S_j| + 1e-6); not
    symmetric.

    Args:
        C: its routing matrix.
        S: singular values, descending.
        tau: in radians.
    """
    found = torch.zeros_like(C, dtype=torch.bool)
    for rows, cols in _near(S, _reach(C, tau)):
        torch.gt(_rotations(C[rows, cols], S[rows], S[cols]), tau, out=found[rows, cols])
    return found.fill_diagonal_(False)


def redrawn_edges(C: Float[Tensor, "k k"], S: Float[Tensor, " k"], tau: float, error: float) -> Bool[Tensor, "k k"]:
    """The edges as another decomposition with errors of this size could give them: its routing matrix and its
    singular values are slightly other ones.

    The draw is the same every time and on every device. Arguments as of `edges`.
    """
    draws = torch.randn(3, len(S), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    farthest = error * float(draws[2].abs().max())
    draws = sent(draws.to(S.dtype), S)
    turned, into = turns(S, error)
    as_rows, as_cols = turned * draws[0], turned * draws[1]
    moved_S = S + error * draws[2]
    grown = 1 + as_rows.abs().max() + as_cols.abs().max()
    found = torch.zeros_like(C, dtype=torch.bool)
    for rows, cols in _near(S, _reach(C, tau) * grown + 3 * farthest):
        moved = torch.addcmul(C[rows, cols], as_rows[rows, None], C[:, cols].index_select(0, into[rows]))
        moved.addcmul_(as_cols[None, cols], C[rows].index_select(1, into[cols]))
        torch.gt(_rotations(moved, moved_S[rows], moved_S[cols]), tau, out=found[rows, cols])
    return found.fill_diagonal_(False)


def _rotations(C: Float[Tensor, "a b"], rows: Float[Tensor, " a"], cols: Float[Tensor, " b"]) -> Float[Tensor, "a b"]:
    return C.abs().div_((rows[:, None] - cols[None, :]).abs_().add_(_GAP_FLOOR))


def _reach(C: Float[Tensor, "k k"], tau: float) -> Float[Tensor, ""]:
    """The gap beyond which no entry makes an edge, with room for rounding."""
    return 1.01 * C.abs().max() / tau


def _near(S: Float[Tensor, " k"], reach: Float[Tensor, ""]) -> Iterator[tuple[slice, slice]]:
    """Strips of rows, and the columns whose singular values may lie within `reach` of them.

    An accelerator takes all at once: it would wait for `reach`, and has a matrix looked at before that is known.
    """
    k = len(S)
    if S.device.type != "cpu" or not k or not bool(reach < torch.inf):
        yield slice(0, k), slice(0, k)
        return
    first = torch.arange(0, k, _ROWS)
    last = (first + _ROWS - 1).clamp_max_(k - 1)
    rising = -S
    begin = torch.searchsorted(rising, rising[first] - reach)
    end = torch.searchsorted(rising, rising[last] + reach, right=True)
    for low, high, left, right in zip(first.tolist(), last.tolist(), begin.tolist(), end.tolist(), strict=True):
        yield slice(low, high + 1), slice(left, right)


def turns(S: Float[Tensor, " p"], error: float) -> tuple[Float[Tensor, " p"], Int[Tensor, " p"]]:
    """About how far (radians, 1 at most) errors of the singular values turn each direction, and into which neighbour.

    To first order, error over gap, to the nearer neighbour.
    """
    steps = torch.cat([S.new_full((1,), torch.inf), -S.diff(), S.new_full((1,), torch.inf)])
    nearest = torch.arange(len(S), device=S.device) + torch.where(steps[1:] < steps[:-1], 1, -1)
    gap = torch.minimum(steps[:-1], steps[1:]).clamp_min_(_GAP_FLOOR)
    return (error / gap).clamp_max_(1.0), nearest.clamp_(0, len(S) - 1)


def connected_components(edges: Bool[Tensor, "k k"]) -> Clusters:
    """Clusters of the undirected graph in which i and j are joined if there is an edge in either direction.

    Few pairs are joined, and the CPU lists them. An accelerator would wait to hear how many there are: it takes every
    node and one of its edges first, which finds most of every cluster, then the edges that still lead from one to
    another.
    """
    if edges.device.type == "mps":  # which lacks some of the operations on integers
        found = connected_components(edges.cpu())
        return Clusters(found.labels.to(edges.device), found.count)
    own = torch.arange(len(edges), device=edges.device)
    if edges.device.type == "cpu":
        joined = torch.from_numpy(edges.numpy().reshape(-1).nonzero()[0])  # seven times as quick as torch's own
        row = joined // len(edges)
        labels = _merged(own, row, joined - row * len(edges))
    else:
        joined, partner = edges.max(dim=1)
        labels = _merged(own, own, torch.where(joined, partner, own))
        leaving = edges & (labels[:, None] != labels[None, :])
        labels = _merged(labels, *leaving.nonzero(as_tuple=True))
    first = labels == own
    numbers = first.cumsum(0) - 1
    return Clusters(numbers[labels], int(numbers[-1]) + 1)


def _merged(labels: Int[Tensor, " k"], a: Int[Tensor, " e"], b: Int[Tensor, " e"]) -> Int[Tensor, " k"]:
    """Labels after joining the cluster of node a[e] with that of node b[e] for every e.

    A cluster's label is its smallest member. Every cluster points at the smallest label among those it is joined
    with, and pointers are followed to their ends, until nothing changes: an accelerator waits once a round, and few
    rounds do also for a long chain.
    """
    own = torch.arange(len(labels), device=labels.device)
    while True:
        left, right = labels[a], labels[b]
        low = torch.minimum(left, right)
        parent = own.scatter_reduce(0, left, low, "amin").scatter_reduce_(0, right, low, "amin")
        for _ in range(len(labels).bit_length()):
            parent = parent[parent]
        after = parent[labels]
        if torch.equal(after, labels):
            return labels
        labels = after


def block_sum(
    X: Float[Tensor, "a b"], rows: Int[Tensor, " a"], cols: Int[Tensor, " b"], count: int
) -> Float[Tensor, "count count"]:
    """Sum of X over every pair (row cluster, column cluster): O(a b), no one-hot products."""
    return labelled.sums(labelled.sums(X, rows, count), cols, count, dim=1)


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
        ordered.numpy().partition(low)  # shares memory: puts this one where sorting would, and the larger ones behind
        if high > low:
            ordered[high] = ordered[high:].min()
        pair = ordered[low], ordered[high]
    elif values.numel() < _SORTED or values.dtype != torch.float32 or values.device.type == "mps":
        ordered = values.sort().values
        pair = ordered[low], ordered[high]
    else:
        at = _ranked(values, low)
        pair = at, at if high == low else _next(values, at, high)
    return torch.lerp(*pair, float(position - position.floor()))


_SORTED = 1 << 23  # so many values a device sorts; of more, that takes seven times the memory of the values
_STRIP = 1 << 24
_LOWEST = -0x7F800001  # the key of minus infinity; what lies below is no number


def _ranked(values: Float[Tensor, " N"], rank: int) -> Float[Tensor, ""]:
    """The value that sorting would put at this place, found bit by bit: a pass for each, and nobody waits."""
    above = len(values) - rank  # so many are at least as large
    key = torch.full((), -(2**31), dtype=torch.int64, device=values.device)  # integers in the order of the values
    for bit in reversed(range(32)):
        more = key + 2**bit
        enough = (values >= _of_key(more)).sum() >= above
        key = torch.where(enough, more, key)
    return _of_key(key.clamp_min(_LOWEST))


def _of_key(key: Int[Tensor, ""]) -> Float[Tensor, ""]:
    """The float32 at this place among all of them, negative ones before zero."""
    return torch.where(key < 0, key ^ 0x7FFFFFFF, key).to(torch.int32).view(torch.float32)


def _next(values: Float[Tensor, " N"], at: Float[Tensor, ""], rank: int) -> Float[Tensor, ""]:
    """The value at this place, that at the one before it given."""
    larger = torch.stack([torch.where(part > at, part, torch.inf).min() for part in values.split(_STRIP)]).min()
    return torch.where((values <= at).sum() > rank, at, larger)
