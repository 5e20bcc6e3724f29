"""What is tried: a recipe each, and the update that the engine makes of it. Coarsely first, then around the best."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from loraport.calibration.progress import Advance
from loraport.calibration.settings import CalibrationSettings, Tried
from loraport.core.lowrank import LowRank
from loraport.engine.options import RunOptions
from loraport.engine.plan import TransferPlan, make_plan
from loraport.engine.recipe import Recipe
from loraport.engine.run import compute

AS_IT_IS = Tried("direct")


@dataclass(frozen=True, eq=False)
class Candidate:
    """One possible result.

    Attributes:
        tried: method, strength and amount.
        plan: what the engine would do; `plan.recipe` makes the file.
        update: layer by layer, in float32, of the numbers that would be written.
    """

    tried: Tried
    plan: TransferPlan = field(repr=False)
    update: dict[str, LowRank] = field(repr=False)

    @property
    def label(self) -> str:
        """For people."""
        return self.tried.label


def coarse(settings: CalibrationSettings) -> tuple[Tried, ...]:
    """The first round: reuse at every strength, and what is named besides; reuse as it is comes first."""
    reuse = (Tried("direct", strength) for strength in settings.strengths)
    return tuple(dict.fromkeys([AS_IT_IS, *reuse, *map(Tried.of, settings.methods)]))


def around(best: Tried, tried: Iterable[Tried], settings: CalibrationSettings) -> tuple[Tried, ...]:
    """A further round: half-way from the best to its neighbours among what was tried, by strength and by amount.

    Amount 0 of any method is reuse, so where reuse is the best, every named method is tried half and whole.
    """
    known = set(tried)
    strengths = {each.strength for each in known if (each.method, each.amount) == (best.method, best.amount)}
    found = [best._replace(strength=strength) for strength in _between(best.strength, strengths)]
    if best.method == "direct":
        names = dict.fromkeys(Tried.of(spec).method for spec in settings.methods)
        found += [Tried(name, best.strength, amount) for name in names for amount in (0.5, 1.0)]
    else:
        amounts = {each.amount for each in known if (each.method, each.strength) == (best.method, best.strength)}
        found += [best._replace(amount=amount) for amount in _between(best.amount, {0.0, *amounts})]
    return tuple(each for each in dict.fromkeys(found) if each not in known)


def _between(best: float, others: Iterable[float]) -> list[float]:
    """Half-way to the nearest on either side."""
    return [round((a + b) / 2, 4) for a, b in itertools.pairwise(sorted({best, *others})) if best in (a, b)]


def plan_for(recipe: Recipe, tried: Tried) -> TransferPlan:
    """The plan of what is tried.

    Args:
        recipe: files and output; its method, strength and amount are replaced.
        tried: these.

    Raises:
        LoraportError: whatever a transfer by this recipe would be refused for.
    """
    return make_plan(recipe.model_copy(update=tried._asdict()))


def computed(plans: dict[Tried, TransferPlan], options: RunOptions, tick: Advance) -> list[Candidate]:
    """Every plan's update, in memory."""
    made = []
    for number, (tried, plan) in enumerate(plans.items(), start=1):
        update = compute(plan, options)
        made.append(Candidate(tried, plan, {name: term.to(torch.float32) for name, term in update.items()}))
        tick(number, len(plans))
    return made
