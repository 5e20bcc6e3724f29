"""The choice: the candidate whose clips leave the smallest gap to source + LoRA. No labels.

The LoRA as it is stays unless another is clearly nearer, and none is taken that shows less of the LoRA: a source can
find clips likely because little is left of what they were to show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from loraport.calibration.candidates import Candidate
from loraport.calibration.diagnosis import Effect, Shown
from loraport.calibration.gap import Gap, LatentDistance, LikelihoodGap
from loraport.calibration.measure import SourceAnswers, TargetAnswers
from loraport.core.bootstrap import Bootstrap, Estimate

CLEAR = 2.0
"""A gap is smaller when it is so by more than this many standard errors of the difference."""
LESS = 0.05
"""A candidate shows less of the LoRA when its share in finished clips is lower by more than this."""
DRAWS = 200
"""Bootstrap draws of the samples behind every error; shared, so that differences are paired."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A candidate with its gap to source + LoRA.

    Attributes:
        candidate: what was tried.
        gap: the measure of the choice.
        latents: mean squared difference of finished latents to source + LoRA.
        effect: what the target shows of the LoRA with it.
    """

    candidate: Candidate
    gap: Estimate
    latents: Estimate
    effect: Effect

    @property
    def label(self) -> str:
        """What the candidate is called."""
        return self.candidate.label

    @property
    def rank(self) -> tuple[float, float]:
        """What candidates are sorted by: the gap; where that is equal, the distance of latents."""
        return self.gap.value, self.latents.value

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        recipe = self.candidate.plan.recipe
        return {
            "label": self.label,
            "method": recipe.method,
            "strength": recipe.strength,
            "amount": recipe.amount,
            "gap": self.gap.value,
            "error": self.gap.error,
            "latents": self.latents.value,
            "share_in_clips": self.effect.clips.share,
        }


@dataclass(frozen=True, eq=False)
class Choice:
    """What was taken, and all others, nearest first.

    Attributes:
        ranking: the first was taken; the others by gap.
        as_it_is: the LoRA as it is.
        measure: what the gap is, for people.
    """

    ranking: tuple[Scored, ...]
    as_it_is: Scored
    measure: str

    @property
    def chosen(self) -> Scored:
        """What was taken."""
        return self.ranking[0]

    @property
    def reason(self) -> str:
        """Why, in one sentence."""
        first, second = self.chosen, self.ranking[1] if len(self.ranking) > 1 else None
        if first is self.as_it_is:
            why = "nothing that was tried is clearly nearer to source + LoRA and shows as much of the LoRA"
        else:
            gain = self.as_it_is.gap - first.gap
            why = f"its gap is {gain.value:.3f} ± {gain.error:.3f} smaller than that of the LoRA as it is"
        if second is not None:
            lead = second.gap - first.gap
            if lead.value <= lead.error:
                near = "is nearer" if lead.value < -CLEAR * lead.error else "is as near within the noise"
                lacks = "" if _shows_enough(second, self.as_it_is) else ", but shows less of the LoRA"
                why += f"; {second.label} {near}{lacks}"
        nearest = min(self.ranking, key=lambda each: each.latents.value)
        if nearest is not first:
            why += f"; by the distance of finished latents, which favours weak effects, it would be {nearest.label}"
        return why


def choose(
    candidates: Sequence[Candidate],
    target: TargetAnswers,
    source: SourceAnswers,
    times: Sequence[float],
    gap: Gap,
) -> Choice:
    """Rank the candidates.

    Args:
        candidates: the first one is the LoRA as it is.
        target, source: what the models said.
        times: of the target's states.
        gap: the measure.
    """
    bootstrap = Bootstrap.of(len(source.aim), draws=DRAWS)
    plain, few = LatentDistance(), len(source.alone)
    wanted = source.aim[:few] - source.alone
    scored = []
    for number, each in enumerate(candidates):
        clips = target.clips[number]
        distances = (clips - source.aim).flatten(1).square().mean(1)[None]
        columns = distances if isinstance(gap, LatentDistance) else source.errors[number]
        in_clips = Shown.of("finished clips", clips[:few] - target.alone, wanted)
        scored.append(
            Scored(
                each,
                bootstrap.estimate(partial(gap.values, columns)),
                bootstrap.estimate(partial(plain.values, distances)),
                Effect.of(in_clips, target.responses[number], source.response, times),
            )
        )
    return Choice(ranked(scored), scored[0], gap.words)


def ranked(scored: Sequence[Scored]) -> tuple[Scored, ...]:
    """What is taken, then the others by gap.

    Args:
        scored: the LoRA as it is comes first.
    """
    as_it_is, by_gap = scored[0], sorted(scored, key=lambda each: each.rank)
    taken = next((each for each in by_gap if _better(each, as_it_is)), as_it_is)
    return taken, *(each for each in by_gap if each is not taken)


def _better(one: Scored, as_it_is: Scored) -> bool:
    """Whether a candidate is to be preferred to the LoRA as it is."""
    gain = as_it_is.gap - one.gap
    return gain.value > CLEAR * gain.error and _shows_enough(one, as_it_is)


def _shows_enough(one: Scored, as_it_is: Scored) -> bool:
    """Whether finished clips show as much of the LoRA as with the LoRA as it is, or as much as in the source."""
    return one.effect.clips.share >= min(1.0, as_it_is.effect.clips.share) - LESS


def gap_for(source: SourceAnswers) -> Gap | None:
    """The measure; None where the source does not tell its own clips with the LoRA from those without."""
    return LatentDistance() if source.own_errors is None else LikelihoodGap.of(*source.own_errors)
