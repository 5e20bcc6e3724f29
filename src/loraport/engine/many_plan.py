"""The plan of a job on many LoRAs of one pair: the pair is opened once, what is wrong with one LoRA is its own.

The work is cut the other way round: a batch is one layer of all the LoRAs that change it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from loraport.adapters.dialect import check_profile
from loraport.containers.names import Expert
from loraport.engine.job import Job, LayerJob
from loraport.engine.match import Pair, expert_meant, open_pair
from loraport.engine.plan import TransferPlan, make_plan, rank_bound
from loraport.engine.recipe import Recipe
from loraport.errors import LoraportError, UsageError
from loraport.methods import registry


@dataclass(frozen=True)
class LayerBatch(Job):
    """One layer of several LoRAs, on the same weights.

    Attributes:
        shape: (out, in) of the weight.
        peak_bytes: of the largest job, since they follow each other, and of what is finished of the others.
        jobs: by the number of the LoRA.
        stopped: numbers of LoRAs that failed meanwhile, whose jobs are not begun any more. It fills during the run.
    """

    shape: tuple[int, int]
    peak_bytes: int
    jobs: Mapping[int, LayerJob]
    stopped: set[int]

    @property
    def first(self) -> LayerJob:
        """The job that reads the weights and decomposes them."""
        return next(iter(self.jobs.values()))


@dataclass(frozen=True)
class ManyPlan:
    """What a job on many LoRAs will do.

    Attributes:
        plans: by the number of the LoRA.
        failures: why a LoRA has no plan, by its number.
    """

    plans: Mapping[int, TransferPlan]
    failures: Mapping[int, LoraportError]

    def without(self, failures: Mapping[int, LoraportError]) -> "ManyPlan":
        """The same where further LoRAs have failed."""
        plans = {number: plan for number, plan in self.plans.items() if number not in failures}
        return replace(self, plans=plans, failures={**self.failures, **failures})


def make_many_plan(loras: Mapping[int, str], make: Callable[[str], Recipe]) -> ManyPlan:
    """Match every LoRA against the models, which are opened once.

    Args:
        loras: by number.
        make: the recipe for one of them; the recipes are alike but for the LoRA.

    Raises:
        LoraportError: what is wrong with the settings or the models, and so with all.
    """
    plans: dict[int, TransferPlan] = {}
    failures: dict[int, LoraportError] = {}
    pairs: dict[Expert | None, Pair] = {}
    recipes: dict[int, Recipe] = {}
    for number, lora in loras.items():
        try:
            recipes[number] = make(lora)
        except UsageError as error:
            failures[number] = error
    if failures and not recipes:
        raise next(iter(failures.values()))
    for recipe in list(recipes.values())[:1]:
        registry.resolve(recipe.method, recipe.params)
        check_profile(recipe.to)
    for number, recipe in recipes.items():
        try:
            expert = expert_meant(recipe)
        except LoraportError as error:
            failures[number] = error
            continue
        if expert not in pairs:
            pairs[expert] = open_pair(recipe, expert)
        try:
            plans[number] = make_plan(recipe, pairs[expert])
        except LoraportError as error:
            failures[number] = error
    return ManyPlan(plans, failures)


def batches_of(plans: Mapping[int, TransferPlan], stopped: set[int] | None = None) -> list[LayerBatch]:
    """One batch for every layer, in the order in which the first LoRA that has it names them.

    Args:
        plans: by number.
        stopped: which LoRAs have failed; the batches look at it when they begin.
    """
    stopped = set() if stopped is None else stopped
    found: dict[object, dict[int, LayerJob]] = {}
    for number, plan in plans.items():
        for job in plan.jobs:  # of the two experts, a layer has the same name and another weight
            found.setdefault((job.name, job.source, job.target), {})[number] = job
    return [LayerBatch(*_needs(list(jobs.values())), jobs, stopped) for jobs in found.values()]


def _needs(jobs: list[LayerJob]) -> tuple[tuple[int, int], int]:
    """Shape and memory of a batch."""
    finished = [_result_bytes(job) for job in jobs]
    return jobs[0].shape, max(job.peak_bytes for job in jobs) + sum(finished) - min(finished)


def _result_bytes(job: LayerJob) -> int:
    return rank_bound(job) * sum(job.shape) * (4 if job.dtype == "float32" else 2)
