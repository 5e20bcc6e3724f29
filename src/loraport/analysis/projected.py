"""A layer in the coordinates of its source basis: what all figures are made of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from loraport.analysis import routing_maps, subspaces
from loraport.analysis.coordinates import Coordinates, Turned
from loraport.analysis.kept import grid
from loraport.analysis.nulls import Rounding
from loraport.analysis.quantities import Matrix
from loraport.core.operator import norm
from loraport.methods.casa.params import CasaParams
from loraport.methods.casa.routing import DriftRouting


@dataclass(frozen=True)
class Layer:
    """What every figure of a layer needs.

    Args:
        S: singular values of the source weight.
        shape: with the long side first.
        wide: whether that is the transposed layer.
        k: directions of the head.
        params: CASA's thresholds.
    """

    S: Float[Tensor, " p"]
    shape: tuple[int, int]
    wide: bool
    k: int
    params: CasaParams

    @property
    def square(self) -> bool:
        """Whether the weight is."""
        return self.shape[0] == self.shape[1]

    @property
    def given_shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.shape[1], self.shape[0]) if self.wide else self.shape

    @property
    def weight(self) -> float:
        """Frobenius norm of the source weight."""
        return norm(self.S)

    def spread(self, size: float) -> float:
        """Mean square of an entry of an update of this norm."""
        return size**2 / (self.shape[0] * self.shape[1])

    @property
    def leading(self) -> int:
        """Directions of the leading tenth of the head."""
        return routing_maps.leading(self.k)

    def grid(self, X: Tensor) -> Matrix:
        """Turned back, for people."""
        return grid(X.T if self.wide else X)


@dataclass(frozen=True)
class ProjectedLora:
    """A LoRA's update of the layer: coordinates, squared singular values, rank of its factors, and <update, drift>."""

    update: Coordinates
    energies: Float[Tensor, " q"]
    rank: int
    along: float


@dataclass(frozen=True)
class Projected:
    """A layer in the coordinates of its source basis: no matrix is larger than p x p, with p the shorter side.

    Args:
        about: spectrum, size and thresholds.
        name: of the layer.
        drift: target minus source.
        routing: of the drift, with its densities.
        random: a Gaussian drift of the same norm.
        noise: what the rounding of the stored numbers does; None where it means nothing.
        floor: its norm over that of the weight; None where there is none.
        loras: by label.
        generator: of further null models.
    """

    about: Layer
    name: str
    drift: Coordinates
    routing: DriftRouting
    random: Coordinates
    noise: Rounding | None
    floor: float | None
    loras: Mapping[str, ProjectedLora]
    generator: Generator


@dataclass(frozen=True)
class Angles:
    """What old direction i has of the squared length of new direction j.

    Args:
        left: of the longer side.
        right: of the other.
        left_rest: what new directions of the longer side have outside of all of these.
        right_rest: the same of the other side.
    """

    left: Float[Tensor, "p p"]
    right: Float[Tensor, "p p"]
    left_rest: Float[Tensor, " p"]
    right_rest: Float[Tensor, " p"]

    @classmethod
    def measured(cls, after: Turned) -> "Angles":
        """From the decomposition of the changed weight."""
        return cls(after.left.square(), after.right.square(), after.left_rest, after.right_rest)

    @classmethod
    def predicted(cls, S: Float[Tensor, " p"], update: Coordinates) -> "Angles":
        """To first order, from the update alone."""
        left, right, rest = subspaces.mixing(S, update)
        return cls(left, right, rest, torch.zeros_like(rest))

    def leaving(self, labels: Int[Tensor, " p"], count: int) -> Float[Tensor, " count"]:
        """||sin Theta_U||^2 + ||sin Theta_V||^2 of every group."""
        left = subspaces.leaving(self.left, labels, count, self.left_rest)
        return left + subspaces.leaving(self.right, labels, count, self.right_rest)

    def aligned(self, first: int, width: int) -> float:
        """Mean of |<u_i, u'_i>| over a window of directions, both sides."""
        lost = [lost + within - own for lost, within, own in self._window(first, width)]
        return float(torch.stack([(1 - each).clamp_min(0).sqrt().mean() for each in lost]).mean())

    def inside(self, first: int, width: int) -> float:
        """Mean share of the new directions of a window that lies in the span of its old ones, both sides."""
        lost = torch.stack([lost.mean() for lost, _, _ in self._window(first, width)])
        return max(1 - float(lost.mean()), 0.0)

    def _window(self, first: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each side what the new directions of a window have outside of it, within it, and of their own old one."""
        at = slice(first, first + width)
        for side, rest in ((self.left, self.left_rest), (self.right, self.right_rest)):
            within = side[at, at].sum(0)
            yield side[:, at].sum(0) - within + rest[at], within, side.diagonal()[at]


@dataclass(frozen=True)
class Proof:
    """What certificates are held against.

    Args:
        measured: angles of the drift.
        predicted: to first order.
        size: norm of the drift.
        largest: its largest singular value.
    """

    measured: Angles
    predicted: Angles
    size: float
    largest: float
