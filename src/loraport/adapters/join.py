"""Layers that one weight holds in the output's naming: their updates become one, exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loraport.adapters.stored_weights import held_in, places_in, weights_of
from loraport.models.architecture import Architecture, LayerName
from loraport.models.joining import join, join_factors
from loraport.models.placement import Rows, is_whole


@dataclass(frozen=True)
class Factors:
    """The two factors of a layer as they will be written, with the alpha that goes with them (None: the rank).

    Matrices, or what the input stores in their place (convolutions with a kernel of size 1).
    """

    up: Shaped[Tensor, "m r *one"]
    down: Shaped[Tensor, "r n *one"]
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What a reader multiplies the product with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def join_layers(
    factors: Mapping[LayerName, Factors],
    matrices: Mapping[LayerName, Float[Tensor, "_ _"]],
    naming: str,
    architecture: Architecture,
) -> tuple[dict[LayerName, Factors], dict[LayerName, Float[Tensor, "_ _"]]]:
    """The updates of stored weights from those of layers.

    A weight that holds several layers is called by the first of them that has an update. Its rank is the sum of
    theirs, unless they share their A.

    Args:
        factors: canonical layer -> factors.
        matrices: canonical layer -> whole matrix.
        naming: of the output.
        architecture: the model.
    """
    whole_factors: dict[LayerName, Factors] = {}
    whole_matrices: dict[LayerName, Tensor] = {}
    for names in weights_of([*factors, *matrices], naming, architecture):
        first = names[0]
        held = held_in(first, naming, architecture)
        if is_whole(held):
            if first in factors:
                whole_factors[first] = factors[first]
            else:
                whole_matrices[first] = matrices[first]
            continue
        sizes = {name: (factors[name].up if name in factors else matrices[name]).shape[0] for name in names}
        rows, places = places_in(held, sizes, architecture)
        if all(name in matrices for name in names):
            whole_matrices[first] = join([(places[name], matrices[name]) for name in names], rows)
        else:
            pairs = {name: factors[name] if name in factors else factored(matrices[name]) for name in names}
            whole_factors[first] = _join_pairs({name: (places[name], pair) for name, pair in pairs.items()}, rows)
    return whole_factors, whole_matrices


def join_rows(
    pieces: Sequence[tuple[str, Shaped[Tensor, "..."]]], naming: str, architecture: Architecture
) -> Shaped[Tensor, "..."]:
    """A tensor with a row for every output of a stored weight (a bias, mostly), from those of its modules.

    Args:
        pieces: canonical module, and its tensor.
        naming: of the output.
        architecture: the model.
    """
    module, tensor = pieces[0]
    held = held_in(module, naming, architecture)
    if is_whole(held):
        return tensor
    rows, places = places_in(held, {name: len(piece) for name, piece in pieces}, architecture)
    return join([(places[name], piece) for name, piece in pieces], rows)


def factored(matrix: Float[Tensor, "m n"]) -> Factors:
    """A whole matrix as two factors, exactly."""
    m, n = matrix.shape
    eye = torch.eye(min(m, n)).to(matrix.dtype)
    return Factors(matrix, eye) if n <= m else Factors(eye, matrix)


def without_zeros(
    up: Shaped[Tensor, "m r"], down: Shaped[Tensor, "r n"]
) -> tuple[Shaped[Tensor, "m s"], Shaped[Tensor, "s n"]]:
    """The factors without the columns of `up` that are all zero, and their rows of `down`: the same product exactly.

    A layer that was taken out of a joined weight has them where the other layers have their blocks.
    """
    kept = (up != 0).any(dim=0)
    return (up[:, kept], down[kept]) if kept.any() else (up[:, :1], down[:1])


def _join_pairs(pairs: Mapping[str, tuple[Rows, Factors]], rows: int) -> Factors:
    scales = {pair.scale for _, pair in pairs.values()}
    if len(scales) == 1:
        up, down = join_factors([(places, pair.up, pair.down) for places, pair in pairs.values()], rows)
        scale = scales.pop()
        return Factors(up, down, None if scale == 1.0 else scale * down.shape[0])
    # One alpha cannot say several scales.
    scaled = [(places, (pair.up.float() * pair.scale).to(pair.up.dtype), pair.down) for places, pair in pairs.values()]
    return Factors(*join_factors(scaled, rows))
