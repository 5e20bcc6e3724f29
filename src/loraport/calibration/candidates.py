"""The choice: every candidate is sampled to the end on held-out noise and compared with source + LoRA. No labels."""

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


@dataclass(frozen=True, eq=False)
class Judge:
    """What candidates are compared with, on prompts and noise that no fit has seen.

    Attributes:
        noise, conditions: held out. aim: what source + LoRA makes of them.
        sure: see `SURE`; 0 takes the nearest, whatever the noise.
        tick: told after each candidate.
    """

    stage: Stage
    noise: Float[Tensor, "m ..."]
    conditions: Conditions
    aim: Float[Tensor, "m ..."]
    sure: float = SURE
    tick: Callable[[int, int], None] = lambda done, total: None

    def score(self, candidates: Sequence[Candidate], first: int = 0, last: int | None = None) -> list[Scored]:
        """Each candidate on a part of the noises, all by default."""
        end = len(self.noise) if last is None else last
        rows, some = slice(first, end), self.conditions.take(first, end - first)
        made = []
        for number, each in enumerate(candidates, start=1):
            clips = rolled(self.stage, each.update, self.noise[rows], some, seed=first)
            made.append(Scored(each, (clips - self.aim[rows]).flatten(1).square().mean(1)))
            self.tick(number, len(candidates))
        return made

    def choose(self, plain: Sequence[Scored], fits: Sequence[Candidate]) -> Choice:
        """Race the fits: all of them on a third of the noises, the best few on the rest.

        Args:
            plain: candidates without a fit, scored on all noises; at least one.
            fits: the others.
        """
        first = max(2, len(self.noise) // 3)
        heat = sorted(self.score(fits, 0, first), key=lambda each: each.distance)
        finalists, dropped = heat[:FINALISTS], heat[FINALISTS:]
        if first < len(self.noise):
            rest = self.score([each.candidate for each in finalists], first)
            finalists = [
                Scored(old.candidate, torch.cat([old.distances, new.distances]))
                for old, new in zip(finalists, rest, strict=True)
            ]
        ranking = tuple(sorted([*plain, *finalists], key=lambda each: each.distance))
        best, best_plain = ranking[0], min(plain, key=lambda each: each.distance)
        if best.candidate.plain:
            return Choice(best, best_plain, ranking, tuple(dropped), "nothing that was fitted comes nearer")
        gain, error = best.gain_over(best_plain)
        if gain <= self.sure * error:
            why = f"the best fit ({best.candidate.label}) is nearer only within the noise"
            return Choice(best_plain, best_plain, ranking, tuple(dropped), why)
        why = f"{100 * gain / best_plain.distance:.0f} % nearer to source + LoRA than {best_plain.candidate.label}"
        return Choice(best, best_plain, ranking, tuple(dropped), why)


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
