"""Which layers to look at: few, but of every type and depth, and always the same ones for the same plan.

Reading a layer costs by its size; decomposing it costs by its size times its shorter side. Both have a budget, counted
in numbers and operations and not by the clock, so that a slow machine looks at the same layers as a quick one.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loraport.engine.job import LayerJob

MOST_READ = 24
READ_BUDGET = 160e6
"""Numbers of each model that are read at most: a second or two."""
DECOMPOSE_BUDGET = 4.5e11
"""Operations: about five seconds of two cores."""
_DECOMPOSITION = 22.0
"""Operations that all spectra of a layer take, in units of (longer side) * (shorter side)^2."""

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Chosen:
    """A layer to look at.

    Attributes:
        job: the layer.
        kind: its type, the name without block numbers.
        depth: 0 for the first block that the LoRA changes, 1 for the last.
        decompose: whether its spectra are looked at as well.
    """

    job: LayerJob
    kind: str
    depth: float
    decompose: bool


def kind_of_layer(name: str) -> str:
    """The name of a layer without the numbers of blocks."""
    return re.sub(r"\.{2,}", ".", _NUMBER.sub("", name)).strip(".")


def choose(jobs: Sequence[LayerJob], *, deep: bool) -> list[Chosen]:
    """The layers to look at, in the model's order.

    Args:
        jobs: all layers of the LoRA that meet the target, in the model's order.
        deep: all of them, decomposed.
    """
    depths = _depths(jobs)
    kinds = {job.name: kind_of_layer(job.name) for job in jobs}
    if deep:
        return [Chosen(job, kinds[job.name], depths[job.name], True) for job in jobs]
    read, work = 0.0, 0.0
    chosen: dict[str, bool] = {}
    for job in _spread(jobs, kinds):
        size, cost = float(job.shape[0] * job.shape[1]), decomposition_cost(job.shape)
        if len(chosen) == MOST_READ:
            break
        if chosen and read + size > READ_BUDGET:
            continue
        decompose = work + cost <= DECOMPOSE_BUDGET
        read, work = read + size, work + cost * decompose
        chosen[job.name] = decompose
    return [Chosen(job, kinds[job.name], depths[job.name], chosen[job.name]) for job in jobs if job.name in chosen]


def decomposition_cost(shape: tuple[int, int]) -> float:
    """Operations that the spectra of a layer take."""
    return _DECOMPOSITION * max(shape) * min(shape) ** 2


def _spread(jobs: Sequence[LayerJob], kinds: dict[str, str]) -> Iterator[LayerJob]:
    """All layers in an order of which any beginning is spread over types and depths.

    One of each type in turn, smaller ones first, each at another depth: at the fractions 1/2, 1/4, 3/4, 1/8, ... of its
    type's layers, of which every type begins elsewhere.
    """
    by_kind: dict[str, list[LayerJob]] = defaultdict(list)
    for job in jobs:
        by_kind[kinds[job.name]].append(job)
    order = sorted(by_kind, key=lambda kind: (by_kind[kind][0].shape[0] * by_kind[kind][0].shape[1], kind))
    number = 0
    while by_kind:
        for kind in order:
            if kind in by_kind:
                left = by_kind[kind]
                yield left.pop(min(int(_fraction(number) * len(left)), len(left) - 1))
                number += 1
                if not left:
                    del by_kind[kind]


def _fraction(number: int) -> float:
    """The van der Corput sequence: 1/2, 1/4, 3/4, 1/8, 5/8, ..."""
    number, found, step = number + 1, 0.0, 0.5
    while number:
        found += step * (number & 1)
        number, step = number >> 1, step / 2
    return found


def _depths(jobs: Sequence[LayerJob]) -> dict[str, float]:
    """Place of each layer's block among the blocks, from 0 to 1; blocks are told apart by their names."""
    blocks: dict[str, int] = {}
    found = {}
    for job in jobs:
        match = _NUMBER.search(job.name)
        block = job.name[: match.end()] if match else ""
        found[job.name] = blocks.setdefault(block, len(blocks))
    last = max(len(blocks) - 1, 1)
    return {name: number / last for name, number in found.items()}
