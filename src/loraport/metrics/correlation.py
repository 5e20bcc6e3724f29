"""How well the places of one frame agree with those of another around where a flow leads: what RAFT and AMT-S read."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

LEVELS = 4  # sizes in which it is read
AT_ONCE = 1 << 23  # pairs of places whose products are made at a time


class Correlation:
    """Products of the features of every place with those of every other, in four sizes.

    Means over two by two others make the next size. They are taken of the features, which comes to the same.

    Args:
        features: of one frame.
        others: of the other.
        radius: how far around a target it is read.
        keep: the products, 4/3 of the square of the number of places, for a reader who comes often; or else they are
            made anew for each reading, a part at a time, which for a few readings is faster and takes no memory.
    """

    def __init__(
        self, features: Float[Tensor, "n c h w"], others: Float[Tensor, "n c h w"], radius: int, *, keep: bool
    ):
        self._features = features.flatten(2)
        self._others = [others]
        for _ in range(LEVELS - 1):
            self._others.append(functional.avg_pool2d(self._others[-1], 2))
        steps = torch.arange(-radius, radius + 1, device=features.device, dtype=features.dtype)
        self._around = torch.cartesian_prod(steps, steps)
        self._keep = keep
        self._kept: dict[int, list[Tensor]] = {}

    def around(self, targets: Float[Tensor, "n 2 h w"]) -> Float[Tensor, "n d h w"]:
        """What is found around the target of each place.

        Args:
            targets: x and y of the place of the other frame that each leads to.

        Returns:
            For each size, each step of x from -radius to radius and each of y: the product of the features over the
            root of their number; 0 beyond the edge.
        """
        n, _, high, wide = targets.shape
        found = []
        for level, others in enumerate(self._others):
            points = targets.flatten(2).transpose(1, 2)[:, :, None] / 2**level + self._around
            points = 2 * points / points.new_tensor([others.shape[3] - 1, others.shape[2] - 1]) - 1
            read = []
            for products, at in zip(self._products(level), points.split(self._rows(level), 1), strict=True):
                table = products.flatten(0, 1)[:, None]
                taken = functional.grid_sample(table, at.flatten(0, 1)[:, None], align_corners=True)
                read.append(taken.view(n, -1, len(self._around)))
            found.append(torch.cat(read, 1))
        return torch.cat(found, 2).transpose(1, 2).unflatten(2, (high, wide)) / self._features.shape[1] ** 0.5

    def _rows(self, level: int) -> int:
        return max(1, AT_ONCE // self._others[level][:, 0].numel())

    def _products(self, level: int) -> Iterable[Float[Tensor, "n p i j"]]:
        if level not in self._kept:
            parts = self._features.split(self._rows(level), 2)
            made = (torch.einsum("ncp,nchw->nphw", part, self._others[level]) for part in parts)
            if not self._keep:
                return made
            self._kept[level] = list(made)
        return self._kept[level]


def places(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "2 h w"]:
    """x and y of each place of a picture."""
    down, right = (torch.arange(side, device=x.device, dtype=x.dtype) for side in x.shape[2:])
    return torch.stack(torch.meshgrid(right, down, indexing="xy"))
