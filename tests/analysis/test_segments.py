"""Random updates decomposed segment by segment, against the same updates decomposed whole."""

import pytest
import torch
from torch import Generator, Tensor

from loraport.analysis import nulls, segments, spectrum, subspaces
from loraport.analysis.coordinates import Turned, turned
from loraport.analysis.projected import Angles
from loraport.analysis.segments import turned_at_random


def spectrum_of(p: int) -> Tensor:
    """Like that of an attention weight of Wan2.1-1.3B: a steep head, a plateau, a long slope, a tail near zero."""
    knots = torch.tensor([0.0, 0.033, 0.26, 0.293, 0.911, 0.944, 1.0]) * (p - 1)
    values = torch.tensor([8.0, 2.0, 1.56, 1.48, 0.11, 0.07, 0.04])
    at = torch.arange(p, dtype=torch.float32)
    right = torch.searchsorted(knots, at, right=True).clamp(1, len(knots) - 1)
    share = (at - knots[right - 1]) / (knots[right] - knots[right - 1])
    jitter = 1 + 0.002 * torch.randn(p, generator=Generator().manual_seed(1))
    return (torch.lerp(values[right - 1], values[right], share) * jitter).sort(descending=True).values


def both(p: int, longer: int, size: float, rank: int | None, seed: int = 2) -> tuple[Tensor, Turned, Turned]:
    """A random update of a spectrum, decomposed whole and in segments."""
    S = spectrum_of(p)
    norm = size * float(S.norm())
    update = nulls.gaussian((longer, p), norm, S, Generator().manual_seed(seed), rank=rank)
    largest = 0.0 if rank is None else norm / rank**0.5
    return S, turned(S, update), turned_at_random(S, update, norm**2 / (longer * p), largest)


def figures(S: Tensor, after: Turned, width: int) -> dict[str, float]:
    """All that is told of a random update."""
    angles, p = Angles.measured(after), len(S)
    found = {"rigidity": spectrum.rigidity(S, after.S) * 10, "intruders": subspaces.intruders(after.left)}
    for place, first in (("head", 0), ("middle", (p - width) // 2), ("tail", p - width)):
        found[f"aligned {place}"] = angles.aligned(first, width)
        found[f"inside {place}"] = angles.inside(first, width)
    starts = subspaces.groups(p, 32)
    labels = subspaces.labels_of(starts, p)
    turns = (angles.leaving(labels, len(starts)) / (2 * torch.bincount(labels))).sqrt()
    return found | {f"rotation {first}": float(turn) for first, turn in zip(starts, turns, strict=True)}


def differences(p: int, ratio: float, size: float, rank: int | None, draws: int, width: int) -> dict[str, float]:
    """By how much the two ways differ in the mean over draws."""
    total: dict[str, float] = {}
    for seed in range(draws):
        S, *ways = both(p, round(ratio * p), size, rank, seed)
        one, other = (figures(S, way, width) for way in ways)
        for name in one:
            total[name] = total.get(name, 0.0) + (other[name] - one[name]) / draws
    return total


@pytest.mark.parametrize("case", [(1.0, 0.05, None), (5.8, 0.05, None), (1.0, 0.02, 32)])
def test_a_random_update_in_segments_tells_what_the_whole_does(case, monkeypatch):
    monkeypatch.setattr(segments, "SMALL", 0)
    decomposed = []
    monkeypatch.setattr(
        segments, "turned", lambda S, *more, **named: decomposed.append(len(S)) or turned(S, *more, **named)
    )
    found = differences(240, *case, draws=4, width=24)
    assert max(decomposed) == 60  # never the whole
    assert {name: value for name, value in found.items() if abs(value) > 0.02} == {}


@pytest.mark.slow
@pytest.mark.parametrize("case", [(1.0, 0.1, None), (5.8, 0.05, None), (1.0, 0.03, 128)])
def test_within_a_hundredth_at_the_width_of_a_real_layer(case):
    found = differences(1536, *case, draws=2, width=24)
    tolerance = {name: 0.02 if name.startswith("aligned") else 0.01 for name in found}  # of 24 numbers, by chance
    assert {name: value for name, value in found.items() if abs(value) > tolerance[name]} == {}


@pytest.mark.parametrize(("size", "rank"), [(0.5, None), (0.05, 4)])
def test_where_much_goes_far_the_whole_is_decomposed(size, rank):
    _, whole, found = both(400, 400, size, rank)
    assert torch.equal(found.S, whole.S)
    assert torch.equal(found.left, whole.left)


def test_where_nothing_lies_apart_the_whole_is_decomposed():
    level = torch.ones(400)
    update = nulls.gaussian((400, 400), 0.1, level, Generator().manual_seed(2))
    assert torch.equal(turned_at_random(level, update, 0.01 / 400**2, 0.0).S, turned(level, update).S)
