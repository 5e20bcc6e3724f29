"""From a recipe to work orders, from headers alone: names, shapes, dtypes and costs, no tensor data.

Every key of the input LoRA ends in exactly one place: a job, passed through, or dropped. Anything else is an error
before any work has begun.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.carried import check_passthrough
from loraport.adapters.consumers import Content, content_of
from loraport.adapters.dialect import SAME_AS_INPUT, check_profile, profile_of
from loraport.adapters.loaders import loader_notes
from loraport.adapters.passthrough import Passthrough
from loraport.adapters.update import LayerUpdate
from loraport.containers.dtypes import written_as
from loraport.containers.references import TensorRef, common_dtype
from loraport.engine.job import LayerJob
from loraport.engine.job_cost import (
    ChosenMethod,
    cached_bytes,
    card_bytes,
    cold_cost,
    function_bytes,
    peak_bytes,
    rank_bound,
)
from loraport.engine.match import Inputs, Pair, open_inputs, weights_of
from loraport.engine.rank import RankRule
from loraport.engine.recipe import Recipe
from loraport.engine.target import Added
from loraport.errors import MismatchError, UsageError
from loraport.methods import registry
from loraport.models.checkpoint import Checkpoint
from loraport.wording import count

_SAMPLE = 4  # layers that are looked at before the work


@dataclass(frozen=True)
class TransferPlan:
    """What a run will do.

    Attributes:
        recipe: the request.
        method: the method, resolved from it.
        params: the method's settings.
        adapter: the input LoRA.
        source: the model it was trained on.
        target: checkpoint of the target; None if LoRAs make it from the source.
        added: the distillation LoRAs added to the target, or to the source.
        source_added: the LoRAs that are part of the source only.
        jobs: one per layer, in the model's order.
        passthrough: tensors passed on unchanged.
        dropped: keys left out.
        rank: the rank rule, settled.
        dtype: torch name of the output's dtype.
        extra_source: weights that only the source has.
        extra_target: weights that only the target has.
        content: what in the output decides which programs take it.
        warnings: sentences for the user.
        identities: file -> `file_identity` of every file that is read, as it was when opened.
    """

    recipe: Recipe
    method: str
    params: dict[str, Any]
    adapter: LoraAdapter
    source: Checkpoint
    target: Checkpoint | None
    added: tuple[Added, ...]
    source_added: tuple[Added, ...]
    jobs: tuple[LayerJob, ...] = field(repr=False)
    passthrough: tuple[Passthrough, ...]
    dropped: tuple[str, ...]
    rank: RankRule
    dtype: str
    extra_source: tuple[str, ...]
    extra_target: tuple[str, ...]
    content: Content
    warnings: tuple[str, ...]
    identities: Mapping[Path, str]

    @property
    def cost(self) -> float:
        """Operations expected when nothing is cached."""
        return sum(job.cost for job in self.jobs)

    @property
    def rank_out(self) -> int:
        """Rank of the output at most."""
        return max(rank_bound(job) for job in self.jobs)

    @property
    def output_bytes(self) -> int:
        """Size of the output's layers if the rank is known beforehand (full rank otherwise)."""
        size = 4 if self.dtype == "float32" else 2
        return size * self.rank_out * sum(sum(job.shape) for job in self.jobs)

    @property
    def cache_bytes(self) -> int:
        """Size in the cache of the decompositions of all layers and of what the method makes from them."""
        return sum(cached_bytes(job) for job in self.jobs)


def make_plan(recipe: Recipe, pair: Pair | None = None) -> TransferPlan:
    """Match the files of a recipe with each other and write the work orders.

    Args:
        recipe: files and settings.
        pair: its models, if they are already open.

    Raises:
        FileError, UnsupportedError: a file cannot be read or is of a kind that is refused, or the output profile has
            no spelling for something that must be written.
        MismatchError, UnmatchedKeysError: the files do not fit each other.
        UsageError: an unknown method, parameter or profile, or a `layers` pattern that matches nothing.
    """
    method, params = registry.resolve(recipe.method, recipe.params)
    if recipe.amount == 0.0:
        method, params = registry.resolve("direct", {})
    check_profile(recipe.to)
    inputs = open_inputs(recipe, pair)
    adapter = inputs.adapter
    family = inputs.source.architecture.family
    if family.unnamed and recipe.to == Recipe.model_fields["to"].default:
        # What ComfyUI or diffusers would call its layers is not known; what read the input reads the output.
        recipe = recipe.model_copy(update={"to": SAME_AS_INPUT})
    check_passthrough(adapter.passthrough, profile_of(recipe.to, adapter.dialect).of(family), family)
    dropped = list(adapter.dropped)
    warnings = list(inputs.notes)
    chosen, as_it_is = ChosenMethod(method, params), ChosenMethod(*registry.resolve("direct", {}))
    rank = _settle_rank(recipe, adapter.max_rank, keeps=method.keeps_rank or chosen.needs.nothing)
    dtype = written_as(adapter.dtype) if recipe.dtype == "same" else recipe.dtype

    meant = re.compile(recipe.layers).search if recipe.layers else None
    jobs = []
    for name, update in adapter.layers.items():
        weights = weights_of(name, update, inputs, recipe)
        if weights is None:
            dropped += update.keys
            warnings.append(f"{name} is in the LoRA but not in both checkpoints; it was left out (--allow-partial)")
            continue
        way = chosen if meant is None or meant(name) else as_it_is
        jobs.append(_job(update, weights, inputs, way, recipe.amount, rank, dtype))
    if not jobs:
        raise MismatchError("no layer of the LoRA is left to transfer", where=str(adapter.path))
    one_rank = dict.fromkeys((job.name for job in jobs), 1)
    content = content_of(recipe.to, one_rank, adapter.passthrough, inputs.source.architecture, adapter.dialect)
    warnings += loader_notes(content)
    if meant is not None:
        _check_layers(meant, recipe, [job.name for job in jobs])
    extra_source, extra_target = inputs.extras
    return TransferPlan(
        recipe=recipe,
        method=method.name,
        params=params.model_dump(mode="json"),
        adapter=adapter,
        source=inputs.source,
        target=inputs.target,
        added=inputs.added,
        source_added=inputs.source_added,
        jobs=tuple(jobs),
        passthrough=adapter.passthrough,
        dropped=tuple(dropped),
        rank=rank,
        dtype=dtype,
        extra_source=extra_source,
        extra_target=extra_target,
        content=content,
        warnings=tuple(warnings),
        identities=inputs.identities,
    )


def _job(
    update: LayerUpdate,
    weights: tuple[TensorRef, TensorRef | None],
    inputs: Inputs,
    way: ChosenMethod,
    amount: float,
    rank: RankRule,
    dtype: str,
) -> LayerJob:
    """The work order of one layer: of its weights only what its method needs."""
    (source, target), needs, name = weights, way.needs, update.name
    target_updates, source_updates = (
        {at: more for at, each in enumerate(loras) if (more := each.update(name)) is not None}
        for loras in (inputs.added, inputs.source_added)
    )
    blends = not needs.nothing or way.params != type(way.params)()  # the LoRA as it is has no way to go from itself
    most = max(update.rank, rank.most(min(update.shape)))
    operations, peak, on_a_card = _expected(way, update.shape, most, update.rank, rank)
    return LayerJob(
        name=name,
        shape=update.shape,
        method=way.method.name,
        params=way.params.model_dump(mode="json"),
        update=update,
        source=None if needs.nothing else source,
        target=target if needs.target or needs.drift or needs.target_basis else None,
        target_updates={} if needs.nothing else target_updates,
        source_updates={} if needs.nothing else source_updates,
        card_bytes=on_a_card,
        has_drift=inputs.target is not None or bool(target_updates) or bool(source_updates),
        round_to=None if target is None else common_dtype(source, target),
        rank=rank,
        amount=amount if blends else 1.0,
        dtype=dtype,
        cost=operations,
        peak_bytes=peak + function_bytes(update),
    )


@lru_cache(maxsize=128)  # a model has thousands of layers of some ten sizes
def _expected(
    way: ChosenMethod, shape: tuple[int, int], most: int, rank_in: int, rule: RankRule
) -> tuple[float, int, int]:
    """Operations, memory of the host and memory of a card."""
    return cold_cost(way, shape, most), peak_bytes(way, shape, most), card_bytes(way, shape, rank_in, rule)


def sample_for_kinship(plan: TransferPlan) -> list[LayerJob]:
    """A few small layers, spread over the model, to look at before the work: are source and target of one origin?"""
    pairs = sorted((job for job in plan.jobs if job.source and job.target), key=lambda job: job.shape[0] * job.shape[1])
    small = [job for job in pairs if job.shape == pairs[0].shape]
    step = max(len(small) // _SAMPLE, 1)
    return small[::step][:_SAMPLE]


def _settle_rank(recipe: Recipe, rank_in: int, keeps: bool) -> RankRule:
    preset = registry.preset_of(recipe.method)
    if recipe.rank == "auto" and preset is not None and preset.rank is not None:
        return RankRule("fixed", preset.rank)
    return RankRule.parse(recipe.rank).for_input(rank_in, keeps)


def _check_layers(meant: Callable[[str], object], recipe: Recipe, names: list[str]) -> None:
    """A pattern that matches nothing would pass for the method while every layer is reused as it is."""
    if any(map(meant, names)):
        return
    kinds: dict[str, str] = {}  # one name of each kind of module, the block's number aside
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "", name.rpartition(".")[0]), name)
    raise UsageError(
        "no layer of the LoRA matches --layers",
        where=recipe.lora,
        values=f"{recipe.layers!r}; {count(len(names), 'layer')} in it, such as {', '.join(list(kinds.values())[:6])}",
        fix="give a regular expression that matches such names, such as self_attn or ^blocks\\.0\\.",
    )
