"""The choice: every candidate is sampled to the end on held-out noise and held against source + LoRA. No labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from loraport.calibration.attach import Attached
from loraport.calibration.directions import Direction, Directions
from loraport.calibration.gaps import Gap
from loraport.core.lowrank import LowRank
from loraport.sampling.rollout import Conditions, Stage

SURE = 1.0
"""A fit is taken only if it beats the best plain candidate by this many standard errors of the paired difference, and
is not farther from source + LoRA in latents: two measures that err in opposite ways must agree."""
FINALISTS = 6
DRAWS = 200
"""Bootstrap draws of the held-out noises behind every error; shared, so that differences are paired."""


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
class Seen:
    """The clips of a candidate on some of the held-out noises, as far as the choice needs them.

    Attributes:
        columns: what the gap is made of, see `gaps.Gap`. latents: mean squared difference to source + LoRA, per noise.
    """

    columns: Float[Tensor, "q n"]
    latents: Float[Tensor, " n"]

    def joined(self, other: "Seen") -> "Seen":
        """These noises and those of another."""
        return Seen(torch.cat([self.columns, other.columns], 1), torch.cat([self.latents, other.latents]))


@dataclass(frozen=True, eq=False)
class Scored:
    """A candidate with its gap to source + LoRA.

    Attributes:
        seen: its clips. distance: the gap over all noises. draws: the gap in every bootstrap draw.
    """

    candidate: Candidate
    seen: Seen
    distance: float
    draws: Float[Tensor, " r"]

    @classmethod
    def of(cls, candidate: Candidate, seen: Seen, gap: Gap) -> "Scored":
        """Score what was seen."""
        count = len(seen.latents)
        picks = torch.randint(count, (DRAWS, count), generator=Generator().manual_seed(0))
        weights = torch.zeros(DRAWS, count, dtype=torch.float64)
        weights.scatter_add_(1, picks, torch.ones(DRAWS, count, dtype=torch.float64))
        once = torch.ones(1, count, dtype=torch.float64)
        values = gap.values(seen.columns.double(), torch.cat([once, weights]))
        return cls(candidate, seen, float(values[0]), values[1:])

    @property
    def error(self) -> float:
        """Standard error of the gap."""
        return float(self.draws.std())

    @property
    def rank(self) -> tuple[float, float]:
        """What candidates are sorted by: the gap; where that is equal, the distance of latents."""
        return self.distance, self.latents

    @property
    def latents(self) -> float:
        """Mean squared distance of latents to source + LoRA."""
        return float(self.seen.latents.double().mean())

    def gain_over(self, other: "Scored") -> tuple[float, float]:
        """By how much its gap is smaller than another's on as many noises, with the error of the paired difference."""
        return other.distance - self.distance, float((other.draws - self.draws).std())


@dataclass(frozen=True, eq=False)
class Choice:
    """What was taken, and all others, nearest first.

    Attributes:
        chosen: the result. best_plain: the best candidate without a fit.
        ranking: all that went to the last round, nearest first; dropped: those that fell out in the first.
        reason: one sentence. measure: what the gap is, for people.
    """

    chosen: Scored
    best_plain: Scored
    ranking: tuple[Scored, ...]
    dropped: tuple[Scored, ...]
    reason: str
    measure: str = ""


@dataclass(frozen=True, eq=False)
class Judge:
    """Holds candidates against source + LoRA on prompts and noise that no fit has seen.

    Attributes:
        gap: the measure. look: samples candidates on some of the noises. noises: how many there are.
        sure: see `SURE`; 0 takes the nearest, whatever the noise.
    """

    gap: Gap
    look: Callable[[Sequence[Candidate], slice], list[Seen]]
    noises: int
    sure: float = SURE

    def score(self, candidates: Sequence[Candidate]) -> list[Scored]:
        """Each candidate on all noises."""
        seen = self.look(candidates, slice(0, self.noises))
        return [Scored.of(each, what, self.gap) for each, what in zip(candidates, seen, strict=True)]

    def choose(self, plain: Sequence[Scored], fits: Sequence[Candidate]) -> Choice:
        """Race the fits: all of them on a third of the noises, the best few on the rest.

        Args:
            plain: candidates without a fit, scored on all noises; at least one.
            fits: the others.
        """
        first = max(2, self.noises // 3)
        seen = self.look(fits, slice(0, first))
        heat = sorted((Scored.of(*pair, self.gap) for pair in zip(fits, seen, strict=True)), key=lambda each: each.rank)
        finalists, dropped = heat[:FINALISTS], heat[FINALISTS:]
        if first < self.noises:
            rest = self.look([each.candidate for each in finalists], slice(first, self.noises))
            finalists = [
                Scored.of(old.candidate, old.seen.joined(new), self.gap)
                for old, new in zip(finalists, rest, strict=True)
            ]
        ranking = tuple(sorted([*plain, *finalists], key=lambda each: each.rank))
        best_plain = min(plain, key=lambda each: each.rank)
        nearer = [each for each in ranking if not each.candidate.plain and each.rank < best_plain.rank]
        agreed = [each for each in nearer if each.latents <= best_plain.latents]
        taken = best_plain
        if not nearer:
            why = "nothing that was fitted comes nearer"
        elif not agreed:
            why = f"the best fit ({nearer[0].candidate.label}) is nearer by one measure only"
        else:
            gain, error = agreed[0].gain_over(best_plain)
            if gain > self.sure * error:
                taken = agreed[0]
                share = f"{100 * gain / best_plain.distance:.0f} %"
                why = f"{share} nearer to source + LoRA than {best_plain.candidate.label}"
            else:
                why = f"the best fit ({agreed[0].candidate.label}) is nearer only within the noise"
        return Choice(taken, best_plain, ranking, tuple(dropped), why, self.gap.words)


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
