"""What is tried: a recipe each, and the update that the engine makes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from loraport.calibration.settings import CalibrationSettings, method_parts
from loraport.core.lowrank import LowRank
from loraport.engine.plan import TransferPlan, make_plan
from loraport.engine.recipe import Recipe, RunOptions
from loraport.engine.run import compute


@dataclass(frozen=True, eq=False)
class Candidate:
    """One possible result.

    Attributes:
        label: for people.
        plan: what the engine would do; `plan.recipe` makes the file.
        update: layer by layer, in float32, of the numbers that would be written.
    """

    label: str
    plan: TransferPlan
    update: dict[str, LowRank]


def plans_for(recipe: Recipe, settings: CalibrationSettings) -> dict[str, TransferPlan]:
    """A plan for everything that is tried, by label; reuse as it is comes first.

    Args:
        recipe: files and output; its method and strength are replaced.
        settings: strengths and methods.

    Raises:
        LoraportError: whatever a transfer by one of these recipes would be refused for, before any model runs.
    """
    tried = [("direct", strength) for strength in (1.0, *settings.strengths)]
    tried += [method_parts(spec) for spec in settings.methods]
    return {
        label_of(method, strength): make_plan(recipe.model_copy(update={"method": method, "strength": strength}))
        for method, strength in dict.fromkeys(tried)
    }


def label_of(method: str, strength: float) -> str:
    """What a method at a strength is called."""
    return method if strength == 1 else f"{method} x{strength:g}"


def computed(
    plans: dict[str, TransferPlan], options: RunOptions, tick: Callable[[int, int], None]
) -> Sequence[Candidate]:
    """Every plan's update, in memory."""
    made = []
    for number, (label, plan) in enumerate(plans.items(), start=1):
        update = compute(plan, options)
        made.append(Candidate(label, plan, {name: term.to(torch.float32) for name, term in update.items()}))
        tick(number, len(plans))
    return made
