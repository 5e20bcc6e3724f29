"""What is told of one update by itself: the drift, or a LoRA's."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.analysis import nulls, routing_maps, spectrum, subspaces
from loraport.analysis.coordinates import Coordinates, Turned, turned
from loraport.analysis.kept import curve, grid, measured, ratio, sampled, short
from loraport.analysis.projected import Angles, Layer, Projected, ProjectedLora, Proof
from loraport.analysis.quantities import Curve, Energy, Matrix, Rotation, UpdateAnalysis, Window
from loraport.analysis.segments import turned_at_random

WINDOW = 24
"""Directions of a window at most; a third of all where there are fewer than three windows of that width."""
GROUPS = 32
"""Groups of neighbours in which rotations are told."""
POINTS = 48
"""Singular values that are kept."""


def drift_figures(layer: Projected, after: Turned, energies: Float[Tensor, " p"], proof: "Proof") -> UpdateAnalysis:
    """The null model is decomposed like the drift."""
    about, noise, size = layer.about, layer.noise, layer.drift.norm
    S = about.S
    other = turned_at_random(S, layer.random, about.spread(size), 0.0, name=layer.name)
    angles = (proof.measured, Angles.measured(other))
    return UpdateAnalysis(
        norm=short(size),
        relative=measured(ratio(size, about.weight), ratio(size, about.weight), layer.floor),
        largest=measured(
            ratio(proof.largest, float(S[0])), ratio(spectrum.largest_of_noise(size, about.shape), float(S[0]))
        ),
        rank=None,
        rigidity=measured(
            spectrum.rigidity(S, after.S),
            spectrum.rigidity(S, other.S),
            None if noise is None else noise.rigidity,
        ),
        head_concentration=measured(
            _concentration(about, layer.drift),
            _concentration(about, layer.random),
            None if noise is None else noise.concentration,
        ),
        intruders=measured(_intruders(about, after), _intruders(about, other)),
        windows=_seen_through(about, after, other, angles),
        rotation=_rotation(proof.measured, proof.predicted, angles[1]),
        energy=_energy(spectrum.ranks_up_to(len(S)), energies, spectrum.energies_of_noise(about.shape)),
        singular_values=sampled(after.S, subspaces.groups(len(S), POINTS)),
    )


def lora_figures(layer: Projected, lora: ProjectedLora) -> UpdateAnalysis:
    """The null model, Gaussian factors of the same rank, is decomposed like the LoRA. Beside a prediction to first
    order, which turns directions less, every LoRA would seem to turn them more than chance does (docs/log.md)."""
    about, update, generator = layer.about, lora.update, layer.generator
    S, size, rank = about.S, lora.update.norm, min(lora.rank, len(about.S))
    random = nulls.gaussian(about.shape, size, S, generator, rank=rank)
    after = turned(S, update, name=layer.name)
    other = turned_at_random(S, random, about.spread(size), size / max(rank, 1) ** 0.5, name=layer.name)
    angles = (Angles.measured(after), Angles.measured(other))
    own = lora.energies if len(lora.energies) else S.new_zeros(1)
    flat = nulls.energies_of_factors(about.shape, max(rank, 1), generator)
    flat = flat * (size**2 / float(flat.sum()))
    leading = (own[0], flat[0])
    return UpdateAnalysis(
        norm=short(size),
        relative=measured(ratio(size, about.weight), ratio(size, about.weight)),
        largest=measured(*(ratio(float(each) ** 0.5, float(S[0])) for each in leading)),
        rank=lora.rank,
        rigidity=measured(spectrum.rigidity(S, after.S), spectrum.rigidity(S, other.S)),
        head_concentration=measured(_concentration(about, update), _concentration(about, random)),
        intruders=measured(_intruders(about, after), _intruders(about, other)),
        windows=_seen_through(about, after, other, angles),
        rotation=_rotation(angles[0], Angles.predicted(S, update), angles[1]),
        energy=_energy(spectrum.ranks_up_to(max(rank, 1)), own, flat),
        singular_values=sampled(after.S, subspaces.groups(len(S), POINTS)),
    )


def _concentration(about: Layer, update: Coordinates) -> float:
    return routing_maps.concentration(update.C, update.rest_energy, about.shape[0], about.leading)


def _outputs(about: Layer, after: Turned) -> Float[Tensor, "p p"]:
    """<u_i, u'_j> of the output directions."""
    return after.right if about.wide else after.left


def _intruders(about: Layer, after: Turned) -> float:
    return subspaces.intruders(_outputs(about, after))


def _seen_through(about: Layer, after: Turned, other: Turned, angles: tuple[Angles, Angles]) -> tuple[Window, ...]:
    """The windows of head, middle and tail: the update beside its null."""
    return tuple(
        Window(
            place,
            first,
            _window(about, after, first, width),
            _window(about, other, first, width),
            measured(*(each.aligned(first, width) for each in angles)),
            measured(*(each.inside(first, width) for each in angles)),
        )
        for place, first, width in _windows(len(about.S))
    )


def _window(about: Layer, after: Turned, first: int, width: int) -> Matrix:
    at = slice(first, first + width)
    return grid(_outputs(about, after)[at, at].abs(), digits=3)


def _windows(p: int) -> tuple[tuple[Literal["head", "middle", "tail"], int, int], ...]:
    width = max(min(WINDOW, p // 3), 1)
    return ("head", 0, width), ("middle", (p - width) // 2, width), ("tail", p - width, width)


def _rotation(measured: Angles, predicted: Angles, expected: Angles) -> Rotation:
    p = len(measured.left_rest)
    first = subspaces.groups(p, GROUPS)
    labels = subspaces.labels_of(first, p).to(measured.left_rest.device)
    sizes = torch.bincount(labels)

    def sines(angles: Angles) -> Curve:
        return curve((angles.leaving(labels, len(first)) / (2 * sizes)).clamp_min(0).sqrt())

    return Rotation(first, sines(measured), sines(predicted), sines(expected))


def _energy(ranks: tuple[int, ...], own: Tensor, expected: Tensor) -> Energy:
    curves = (tuple(map(short, spectrum.energy_kept(each, ranks))) for each in (own, expected))
    return Energy(ranks, *curves)
