"""The plan of a job on many LoRAs of one pair: the pair is opened once, what is wrong with one LoRA is its own.

The work is cut the other way round: a batch is one layer of all the LoRAs that change it. Several recipes for one LoRA,
and targets of one source, are planned in the same way: each recipe has a number, and a batch is what changes one
weight of the source.
"""

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace

from loraport.adapters.dialect import check_profile
from loraport.containers.names import Expert
from loraport.containers.references import TensorRef
from loraport.engine.job import Job, LayerJob
from loraport.engine.job_cost import cached_bytes, rank_bound
from loraport.engine.match import Pair, expert_meant, open_pair
from loraport.engine.plan import TransferPlan, make_plan
from loraport.engine.recipe import Recipe
from loraport.errors import LoraportError, UsageError
from loraport.methods import registry


@dataclass(frozen=True)
class LayerBatch(Job):
    """One layer of several LoRAs, or of several recipes, on the same weight of the source.

    Attributes:
        shape: (out, in) of the weight.
        peak_bytes: of the largest job, since they follow each other, and of what is finished of the others.
        jobs: by the number of the recipe; those that see the same matrices follow each other.
        stopped: numbers of recipes that failed meanwhile, whose jobs are not begun any more. It fills during the run.
        groups: by the same numbers, which of them see the same matrices: those of one target, method and settings.
    """

    shape: tuple[int, int]
    peak_bytes: int
    jobs: Mapping[int, LayerJob]
    stopped: set[int]
    groups: Mapping[int, int] = field(default_factory=dict)

    def bytes_on(self, device: str) -> int:
        """See `Job.bytes_on`. What is finished lies on the host."""
        return max(job.bytes_on(device) for job in self.jobs.values()) if device.startswith("cuda") else self.peak_bytes

    @property
    def title(self) -> str:
        """As that of its jobs."""
        return self.first.title

    @property
    def refs(self) -> dict[str, TensorRef]:
        """Those of all its jobs."""
        return {f"{number}.{role}": ref for number, job in self.jobs.items() for role, ref in job.refs.items()}

    @property
    def first(self) -> LayerJob:
        """The job that reads the weights and decomposes them."""
        return next(iter(self.jobs.values()))

    @property
    def lasting(self) -> LayerJob:
        """The job of which the most is kept for later runs."""
        return max((self.jobs[number] for number in self.leading), key=cached_bytes)

    @property
    def leading(self) -> frozenset[int]:
        """The first of each group, which brings the matrices together."""
        first: dict[int, int] = {}
        for number in self.jobs:
            first.setdefault(self.groups.get(number, 0), number)
        return frozenset(first.values())


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


class Pairs:
    """The models of recipes, each pair of them opened once."""

    def __init__(self) -> None:
        self._opened: dict[Hashable, Pair | LoraportError] = {}

    def of(self, recipe: Recipe, expert: Expert | None) -> Pair:
        """The models of a recipe. Raises as `open_pair`, each time that they are asked for."""
        key = (expert, *_models_of(recipe))
        if key not in self._opened:
            try:
                self._opened[key] = open_pair(recipe, expert)
            except LoraportError as error:
                self._opened[key] = error
        found = self._opened[key]
        if isinstance(found, LoraportError):
            raise found
        return found

    def refused(self, error: LoraportError) -> bool:
        """Whether this is what `of` raised."""
        return any(found is error for found in self._opened.values())


def _models_of(recipe: Recipe) -> tuple[Hashable, ...]:
    """All of a recipe that `open_pair` looks at."""
    return (
        *(recipe.source, recipe.target, recipe.source_lora, recipe.target_lora),
        *(recipe.nested_source, recipe.nested_target, recipe.architecture),
        *(recipe.expert, recipe.adapter, recipe.drop, recipe.allow_partial),
    )


def plan_recipes(recipes: Mapping[int, Recipe], *, alike: bool = False) -> ManyPlan:
    """Match recipes that may differ in everything but their source. What is wrong with one of them is its own.

    Args:
        recipes: by number.
        alike: they differ in the LoRA alone, so that what is wrong with the models is wrong with all, and raised.

    Raises:
        LoraportError: of recipes that are alike.
    """
    plans: dict[int, TransferPlan] = {}
    failures: dict[int, LoraportError] = {}
    pairs = Pairs()
    for number, recipe in recipes.items():
        try:
            plans[number] = make_plan(recipe, pairs.of(recipe, expert_meant(recipe)))
        except LoraportError as error:
            if alike and pairs.refused(error):
                raise
            failures[number] = error
    return ManyPlan(plans, failures)


def make_many_plan(loras: Mapping[int, str], make: Callable[[str], Recipe]) -> ManyPlan:
    """Match every LoRA against the models, which are opened once.

    Args:
        loras: by number.
        make: the recipe for one of them; the recipes are alike but for the LoRA.

    Raises:
        LoraportError: what is wrong with the settings or the models, and so with all.
    """
    failures: dict[int, LoraportError] = {}
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
    plan = plan_recipes(recipes, alike=True)
    return replace(plan, failures={**failures, **plan.failures})


def batches_of(plans: Mapping[int, TransferPlan], stopped: set[int] | None = None) -> list[LayerBatch]:
    """One batch for every weight of the source, in the order in which the first plan that has it names them.

    Args:
        plans: by number.
        stopped: which of them have failed; the batches look at it when they begin.
    """
    stopped = set() if stopped is None else stopped
    groups = _groups_of(plans)
    found: dict[object, dict[int, LayerJob]] = {}
    for number in sorted(plans, key=groups.__getitem__):  # a stable order: within a group that of the plans
        for job in plans[number].jobs:  # of the two experts, a layer has the same name and another weight
            found.setdefault((job.name, job.source), {})[number] = job
    return [
        LayerBatch(*_needs(list(jobs.values())), jobs, stopped, {number: groups[number] for number in jobs})
        for jobs in found.values()
    ]


def _groups_of(plans: Mapping[int, TransferPlan]) -> dict[int, int]:
    """Plans whose methods see the same matrices have the same group: same models, method and settings."""
    known: dict[Hashable, int] = {}
    found = {}
    for number, plan in plans.items():
        matrices = (*_models_of(plan.recipe), plan.method, json.dumps(plan.params, sort_keys=True))
        found[number] = known.setdefault(matrices, len(known))
    return found


def _needs(jobs: list[LayerJob]) -> tuple[tuple[int, int], int]:
    """Shape and memory of a batch."""
    finished = [_result_bytes(job) for job in jobs]
    return jobs[0].shape, max(job.peak_bytes for job in jobs) + sum(finished) - min(finished)


def _result_bytes(job: LayerJob) -> int:
    return rank_bound(job) * sum(job.shape) * (4 if job.dtype == "float32" else 2)
