"""Who sends to whom: densities and maps of routing matrices over clusters of directions, at most `CELLS` a side.

A map's cell is a cluster, or several that are neighbours in the spectrum where there are many, so that what is kept of
a layer has a fixed size.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loraport.core import labelled
from loraport.methods.casa.clusters import Clusters, block_sum

CELLS = 16


@dataclass(frozen=True)
class Cells:
    """The head's directions in the cells of a map.

    Args:
        labels: cell of every head direction.
        sizes: directions in each cell.
    """

    labels: Int[Tensor, " k"]
    sizes: Int[Tensor, " g"]

    @property
    def count(self) -> int:
        """Number of cells."""
        return len(self.sizes)

    @classmethod
    def of(cls, clusters: Clusters, most: int = CELLS) -> "Cells":
        """A cell a cluster; of many clusters, neighbours together, so that cells hold about as many directions."""
        sizes = clusters.sizes
        place = torch.arange(clusters.count, device=sizes.device)
        if clusters.count > most:
            middle = sizes.cumsum(0) - (sizes + 1) // 2
            place = (middle * most) // int(sizes.sum())
        _, labels = torch.unique(place[clusters.labels], return_inverse=True)
        return cls(labels, torch.bincount(labels))

    def mean(self, values: Float[Tensor, " k"]) -> Float[Tensor, " g"]:
        """Mean over the directions of each cell."""
        return labelled.sums(values, self.labels, self.count) / self.sizes

    def sums(self, X: Float[Tensor, "k k"]) -> Float[Tensor, "g g"]:
        """Sum over every pair of cells."""
        return block_sum(X, self.labels, self.labels, self.count)

    @property
    def areas(self) -> Float[Tensor, "g g"]:
        """Entries of every pair of cells."""
        return (self.sizes[:, None] * self.sizes[None, :]).double()


def densities(C: Float[Tensor, "k k"]) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """How much each direction of the head sends and receives within the head (Eq. 5, 6)."""
    squares = C.square()
    return squares.sum(0).sqrt(), squares.sum(1).sqrt()


def root_mean_square(C: Float[Tensor, "k k"], cells: Cells) -> Float[Tensor, "g g"]:
    """Of the entries between every pair of cells: receiving downwards, sending to the right."""
    return (cells.sums(C.square()).double() / cells.areas).clamp_min(0).sqrt()


def interaction(lora: Float[Tensor, "k k"], drift: Float[Tensor, "k k"], cells: Cells) -> Float[Tensor, "g g"]:
    """Mean of |C_lora C_drift| between every pair of cells."""
    return cells.sums((lora * drift).abs()).double() / cells.areas


def alignment(lora: Float[Tensor, "k k"], drift: Float[Tensor, "k k"], cells: Cells) -> Float[Tensor, "g g"]:
    """Cosine of the two within every pair of cells; 0 where one of them is zero."""
    product, own, other = (cells.sums(X).double() for X in (lora * drift, lora.square(), drift.square()))
    scale = (own * other).clamp_min(0).sqrt()
    return torch.where(scale > 0, product / scale.clamp_min(1e-300), 0.0).clamp(-1, 1)


def alignment_of_noise(cells: Cells) -> float:
    """Expected mean over the cells of the cosine's absolute value, for a drift that is Gaussian: large where a cell has
    few entries."""
    return sum(_mean_cosine(int(entries)) for entries in cells.areas.reshape(-1).tolist()) / cells.count**2


def _mean_cosine(n: int) -> float:
    """Of a fixed direction and a random one in n dimensions."""
    return math.exp(math.lgamma(n / 2) - math.lgamma((n + 1) / 2)) / math.sqrt(math.pi)


def leading(k: int) -> int:
    """How many directions are the leading tenth of a head."""
    return max(-(-k // 10), 1)


def area(shape: tuple[int, int], h: int) -> float:
    """Share of a layer's entries that lie in the rows and columns of its first h directions."""
    m, n = shape
    return 1 - (m - h) * (n - h) / (m * n)


def concentration(C: Float[Tensor, "p p"], rest: Float[Tensor, " p"], rows: int, h: int) -> float:
    """Share of an update's energy in the rows and columns of the first h directions, over their share of the area.

    Args:
        C: routing matrix of a layer that is at least as tall as wide.
        rest: energy of each column outside of the thin column space.
        rows: m of the layer.
        h: number of directions.
    """
    p = len(C)
    columns = torch.linalg.vector_norm(C[:, :h], dim=1).square().sum() + rest[:h].sum()
    part = float(columns + torch.linalg.vector_norm(C[:h, h:], dim=1).square().sum())
    whole = float(torch.linalg.vector_norm(C, dim=1).square().sum() + rest.sum())
    return part / whole / area((rows, p), h) if whole > 0 else 0.0


def share_in_first(X: Float[Tensor, "k k"], h: int) -> float:
    """Share of a sum of positive entries in the first h rows and columns, over their share of the area."""
    k, whole = len(X), float(X.sum())
    part = float(X[:h].sum() + X[h:, :h].sum())
    return part / whole / (1 - ((k - h) / k) ** 2) if whole > 0 else 0.0


def sign_agreement(lora: Float[Tensor, "p p"], drift: Float[Tensor, "p p"]) -> tuple[float, float]:
    """Share of the entries with one sign among those where neither is zero, and one standard deviation of it for signs
    that are independent."""
    product = lora * drift
    agree, differ = int((product > 0).sum()), int((product < 0).sum())
    count = agree + differ
    return (agree / count, 0.5 / math.sqrt(count)) if count else (0.5, 0.0)


def share_by_cell(marks: Bool[Tensor, " p"], cells: Cells, size: int) -> Float[Tensor, " t"]:
    """Share of marked directions in each cell, and among all beyond the head.

    Args:
        marks: of the directions of the thin basis; there are none beyond it.
        cells: of the head.
        size: directions of that side of the layer.
    """
    k = len(cells.labels)
    inside = cells.mean(marks[:k].double())
    beyond = marks[k:].double().sum() / max(size - k, 1)
    return torch.cat([inside, beyond[None]])


def hits_by_cell(hits: Int[Tensor, " h"], columns: int, cells: Cells, shape: tuple[int, int]) -> Float[Tensor, "t t"]:
    """Share of the entries between two cells that are hit; the last row and column stand for all beyond the head.

    Args:
        hits: flat indices into the thin routing matrix.
        columns: of that matrix.
        cells: of the head.
        shape: of the layer.
    """
    g, k = cells.count, len(cells.labels)
    label = torch.full((columns,), g, dtype=torch.int64, device=hits.device)
    label[:k] = cells.labels
    at = label[hits // columns] * (g + 1) + label[hits % columns]
    counts = torch.bincount(at, minlength=(g + 1) ** 2).reshape(g + 1, g + 1).double()
    sides = [torch.cat([cells.sizes, cells.sizes.new_tensor([side - k])]).double() for side in shape]
    return counts / (sides[0][:, None] * sides[1][None, :]).clamp_min(1)
