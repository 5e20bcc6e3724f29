"""The choice: every candidate is sampled to the end on held-out noise and compared with source + LoRA. No labels."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.calibration.attach import Attached
from loraport.calibration.directions import Direction, Directions
from loraport.calibration.rollout import Conditions, Stage
from loraport.core.lowrank import LowRank

SURE = 1.0
"""A fitted candidate is taken only if it beats the best plain one by this many standard errors of the difference."""
FINALISTS = 6


@dataclass(frozen=True, eq=False)
class Candidate:
    """One possible result.

    Attributes:
        label: for people. kind: `direct`, `transfer` (weight space) or `calibrated`.
        update: what would be written. settings: how it was made.
    """

    label: str
    kind: str
    update: dict[str, LowRank]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether it needed no fit."""
        return self.kind != "calibrated"


@dataclass(frozen=True, eq=False)
class Scored:
    """A candidate with its mean squared distance to source + LoRA, one value a held-out noise."""

    candidate: Candidate
    distances: Float[Tensor, " m"]

    @property
    def distance(self) -> float:
        """Mean over the noises."""
        return float(self.distances.double().mean())

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return _error(self.distances)

    def gain_over(self, other: "Scored") -> tuple[float, float]:
        """By how much it is nearer than another, with the standard error of the paired difference."""
        count = min(len(self.distances), len(other.distances))
        difference = other.distances[:count].double() - self.distances[:count].double()
        return float(difference.mean()), _error(difference)


@dataclass(frozen=True, eq=False)
class Choice:
    """What was taken, and all others, nearest first.

    Attributes:
        chosen: the result. best_plain: the best candidate without a fit.
        ranking: all that went to the last round, nearest first; dropped: those that fell out in the first.
        reason: one sentence.
    """

    chosen: Scored
    best_plain: Scored
    ranking: tuple[Scored, ...]
    dropped: tuple[Scored, ...]
    reason: str


def choose(
    stage: Stage,
    candidates: Sequence[Candidate],
    noise: Float[Tensor, "m ..."],
    conditions: Conditions,
    aim: Float[Tensor, "m ..."],
    *,
    sure: float = SURE,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Choice:
    """Race the candidates: all of them on a part of the noise, the plain ones and the best few on the rest.

    Args:
        candidates: at least one of them plain.
        noise, conditions: held out, never seen by a fit. aim: what source + LoRA makes of them.
        sure: see `SURE`; 0 takes the nearest, whatever the noise.
    """
    first = max(2, len(noise) // 3)
    heats = [0, first, len(noise)]
    running = [Scored(each, torch.empty(0)) for each in candidates]
    dropped: list[Scored] = []
    total = len(running) + sum(each.plain for each in candidates) + FINALISTS
    done = 0
    for begin, end in itertools.pairwise(heats):
        if begin == end:
            continue
        if begin:
            fitted = sorted((each for each in running if not each.candidate.plain), key=lambda each: each.distance)
            dropped = fitted[FINALISTS:]
            running = [each for each in running if each.candidate.plain] + fitted[:FINALISTS]
        rows = slice(begin, end)
        some = conditions.take(begin, end - begin)
        grown = []
        for each in running:
            clips = rolled(stage, each.candidate.update, noise[rows], some, seed=begin)
            new = (clips - aim[rows]).flatten(1).square().mean(1)
            grown.append(Scored(each.candidate, torch.cat([each.distances, new])))
            done += 1
            tick(done, total)
        running = grown
    ranking = sorted(running, key=lambda each: each.distance)
    plain = next(each for each in ranking if each.candidate.plain)
    best = ranking[0]
    if best is plain:
        return Choice(best, plain, tuple(ranking), tuple(dropped), "nothing that was fitted comes nearer")
    gain, error = best.gain_over(plain)
    if gain <= sure * error:
        why = f"the best fit ({best.candidate.label}) is nearer only within the noise"
        return Choice(plain, plain, tuple(ranking), tuple(dropped), why)
    why = f"{100 * gain / plain.distance:.0f} % nearer to source + LoRA than {plain.candidate.label}"
    return Choice(best, plain, tuple(ranking), tuple(dropped), why)


def rolled(
    stage: Stage,
    update: dict[str, LowRank],
    noise: Float[Tensor, "m ..."],
    conditions: Conditions,
    *,
    seed: int = 0,
) -> Float[Tensor, "m ..."]:
    """Clips of a model with an update."""
    whole = Directions((Direction("all", "gain", 1.0, update),))
    with Attached(stage.denoiser, whole) as attached:
        attached.put_on(whole.start())
        return stage.roll_out(noise, conditions, seed=seed)


def _error(values: Tensor) -> float:
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
