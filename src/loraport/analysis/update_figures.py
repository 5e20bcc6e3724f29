"""What is told of one update by itself: the drift, or a LoRA's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.analysis import nulls, routing_maps, spectrum, subspaces
from loraport.analysis.coordinates import Coordinates, Turned, turned
from loraport.analysis.kept import curve, grid, measured, ratio, sampled, short
from loraport.analysis.projected import Angles, Layer, Projected, ProjectedLora, Proof
from loraport.analysis.quantities import Curve, Energy, Measured, Rotation, UpdateAnalysis, Window
from loraport.analysis.segments import turned_at_random

WINDOW = 24
"""Directions of a window at most; a third of all where there are fewer than three windows of that width."""
GROUPS = 32
"""Groups of neighbours in which rotations are told."""
POINTS = 48
"""Singular values that are kept."""


@dataclass(frozen=True)
class _Side:
    """An update or its null model; what it makes of the weight; its own largest singular value, and squared ones."""

    update: Coordinates
    after: Turned
    angles: Angles
    largest: float
    energies: Tensor


def drift_figures(layer: Projected, after: Turned, energies: Float[Tensor, " p"], proof: Proof) -> UpdateAnalysis:
    """The null model is decomposed like the drift."""
    about, size = layer.about, layer.drift.norm
    other = turned_at_random(about.S, layer.random, about.spread(size), 0.0, name=layer.name)
    flat, largest = spectrum.energies_of_noise(about.shape), spectrum.largest_of_noise(size, about.shape)
    own = _Side(layer.drift, after, proof.measured, proof.largest, energies)
    null = _Side(layer.random, other, Angles.measured(other), largest, flat)
    return _figures(about, own, null, proof.predicted, None, layer.floor, layer.noise)


def lora_figures(layer: Projected, lora: ProjectedLora) -> UpdateAnalysis:
    """The null model, Gaussian factors of the same rank, is decomposed like the LoRA.

    Beside a prediction to first order, which turns directions less, every LoRA would seem to turn them more than chance
    does (docs/log-running.md).
    """
    about, update, generator = layer.about, lora.update, layer.generator
    S, size, rank = about.S, lora.update.norm, min(lora.rank, len(about.S))
    random = nulls.gaussian(about.shape, size, S, generator, rank=rank)
    after = turned(S, update, name=layer.name)
    other = turned_at_random(S, random, about.spread(size), size / max(rank, 1) ** 0.5, name=layer.name)
    energies = lora.energies if len(lora.energies) else S.new_zeros(1)
    flat = nulls.energies_of_factors(about.shape, max(rank, 1), generator)
    flat = flat * (size**2 / float(flat.sum()))
    own = _Side(update, after, Angles.measured(after), float(energies[0]) ** 0.5, energies)
    null = _Side(random, other, Angles.measured(other), float(flat[0]) ** 0.5, flat)
    return _figures(about, own, null, Angles.predicted(S, update), lora.rank)


def _figures(
    about: Layer,
    own: _Side,
    null: _Side,
    predicted: Angles,
    rank: int | None,
    floor: float | None = None,
    noise: nulls.Rounding | None = None,
) -> UpdateAnalysis:
    """Every figure of an update beside those of its null model, and of rounding where that means anything."""
    S, p, size = about.S, len(about.S), own.update.norm

    def beside(figure: Callable[[_Side], float], rounding: float | None = None) -> Measured:
        return measured(figure(own), figure(null), rounding)

    return UpdateAnalysis(
        norm=short(size),
        relative=measured(ratio(size, about.weight), ratio(size, about.weight), floor),
        largest=beside(lambda side: ratio(side.largest, float(S[0]))),
        rank=rank,
        rigidity=beside(lambda side: spectrum.rigidity(S, side.after.S), None if noise is None else noise.rigidity),
        head_concentration=beside(
            lambda side: routing_maps.concentration(
                side.update.C, side.update.rest_energy, about.shape[0], about.leading
            ),
            None if noise is None else noise.concentration,
        ),
        intruders=beside(lambda side: subspaces.intruders(_outputs(about, side.after))),
        windows=tuple(_window(about, own, null, *place) for place in _windows(p)),
        rotation=_rotation(own.angles, predicted, null.angles),
        energy=_energy(spectrum.ranks_up_to(p if rank is None else max(min(rank, p), 1)), own.energies, null.energies),
        singular_values=sampled(own.after.S, subspaces.groups(p, POINTS)),
    )


def _outputs(about: Layer, after: Turned) -> Float[Tensor, "p p"]:
    """<u_i, u'_j> of the output directions."""
    return after.right if about.wide else after.left


def _window(
    about: Layer, own: _Side, null: _Side, place: Literal["head", "middle", "tail"], first: int, width: int
) -> Window:
    at = slice(first, first + width)
    similarity, at_random = (grid(_outputs(about, side.after)[at, at].abs(), digits=3) for side in (own, null))
    aligned, inside = (
        measured(*(figure(side.angles, first, width) for side in (own, null)))
        for figure in (Angles.aligned, Angles.inside)
    )
    return Window(place, first, similarity, at_random, aligned, inside)


def _windows(p: int) -> tuple[tuple[Literal["head", "middle", "tail"], int, int], ...]:
    width = max(min(WINDOW, p // 3), 1)
    return ("head", 0, width), ("middle", (p - width) // 2, width), ("tail", p - width, width)


def _rotation(own: Angles, predicted: Angles, null: Angles) -> Rotation:
    p = len(own.left_rest)
    first = subspaces.groups(p, GROUPS)
    labels = subspaces.labels_of(first, p).to(own.left_rest.device)
    sizes = torch.bincount(labels)

    def sines(angles: Angles) -> Curve:
        return curve((angles.leaving(labels, len(first)) / (2 * sizes)).clamp_min(0).sqrt())

    return Rotation(first, sines(own), sines(predicted), sines(null))


def _energy(ranks: tuple[int, ...], own: Tensor, null: Tensor) -> Energy:
    curves = (tuple(map(short, spectrum.energy_kept(each, ranks))) for each in (own, null))
    return Energy(ranks, *curves)
