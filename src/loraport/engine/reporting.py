"""The report of a run: what was asked for, what became of each layer, and how to use the output."""

from math import fsum
from pathlib import Path

from loraport.adapters.loaders import ways_to_load
from loraport.engine.inputs import input_digests, inputs_of
from loraport.engine.plan import TransferPlan
from loraport.engine.results import (
    Column,
    LayerReport,
    Summary,
    TransferReport,
    energy_kept_in_total,
    layer_columns,
    layer_maps,
)
from loraport.engine.target import known_target, target_usage, used_together, used_with
from loraport.engine.worker import LayerResult
from loraport.methods.maps import LayerMap


def make_report(
    plan: TransferPlan, path: Path | None, results: list[LayerResult], warnings: list[str], seconds: float
) -> TransferReport:
    """Put together what a finished run tells. `path` is None for one that wrote nothing."""
    layers = tuple(result.report for result in results)
    kept = [layer.energy_kept for layer in layers]
    summary = Summary(
        method=plan.method,
        params=plan.params,
        amount=plan.recipe.amount,
        strength=plan.recipe.strength,
        scale=plan.recipe.scale,
        layers=len(layers),
        rank_in=plan.adapter.max_rank,
        rank_out=max(result.update.rank for result in results),
        rank_rule=plan.recipe.rank,
        energy_kept_min=min(kept),
        energy_kept_mean=fsum(kept) / len(kept),
        energy_kept_total=energy_kept_in_total(layers),
        dtype=plan.dtype,
        to=plan.recipe.to,
        lora=str(plan.adapter.path),
        training=plan.adapter.training.to_json(),
        source=str(plan.source.path),
        source_title=plan.source.architecture.title,
        target=None if plan.target is None else str(plan.target.path),
        target_title=plan.source.architecture.title if plan.target is None else plan.target.architecture.title,
        target_usage=target_usage(plan.target),
        source_lora=tuple(used_with(each, plan.recipe) for each in plan.source_added),
        target_lora=tuple(used_with(each, plan.recipe) for each in plan.added),
        extra_source=plan.extra_source,
        extra_target=plan.extra_target,
        cached_layers=sum(layer.cached for layer in layers),
        seconds=seconds,
        target_known=known_target(plan.source, plan.target, plan.added, plan.recipe),
        flags=plan.recipe.flags(),
    )
    return TransferReport(
        output=path,
        summary=summary,
        columns=tuple(column for column in plan_columns(plan) if any(_has(layer, column.key) for layer in layers)),
        layers=layers,
        passthrough=tuple(key for item in plan.passthrough for key in item.keys),
        dropped=plan.dropped,
        load=() if path is None else _how_to_load(path, plan, summary),
        warnings=tuple(warnings),
        inputs=tuple(inputs_of(plan, input_digests(results))),
        maps=tuple(each for each in plan_maps(plan) if any(each.key in layer.maps for layer in layers)),
    )


def plan_columns(plan: TransferPlan) -> tuple[Column, ...]:
    """What the figures of the layers will mean."""
    return layer_columns(dict.fromkeys(job.method for job in plan.jobs))


def plan_maps(plan: TransferPlan) -> tuple[LayerMap, ...]:
    """What the maps of the layers will show."""
    return layer_maps(dict.fromkeys(job.method for job in plan.jobs))


def _has(layer: LayerReport, key: str) -> bool:
    return key in layer.stats or hasattr(layer, key)


def _how_to_load(path: Path, plan: TransferPlan, summary: Summary) -> tuple[str, ...]:
    ways = tuple(ways_to_load(path, plan.content, expert=plan.recipe.expert))
    return (*ways, *used_together(summary.target_lora, None if plan.target is None else plan.target.path))
