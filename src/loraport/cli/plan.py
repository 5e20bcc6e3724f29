"""`loraport plan`: what a transfer would do and cost. Reads headers, changes nothing."""

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from loraport.cli import options, text
from loraport.cli.console import Console
from loraport.cli.experts import pair_of
from loraport.cli.flags import Given, command
from loraport.engine.experts.asked import Experts
from loraport.engine.many.asked import find_loras, holds_many
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe
from loraport.wording import count

EXAMPLE = """What it would take, before it starts:

    loraport plan style.safetensors -s Wan2.1-T2V-14B/ -t lightx2v.safetensors --max-memory 16GB"""


@command(Recipe, Experts, RunOptions)
def plan(
    given: Given,
    console: Console,
    output: options.Output = None,
    recursive: options.Recursive = False,
    skip_existing: options.SkipExisting = False,
) -> None:
    """Say what a transfer would do: coverage, time, memory, disk. Takes the same options, changes nothing."""
    several = len(given.loras) > 1 or holds_many(given.loras[0], recursive=recursive)
    if several:
        asked = find_loras(given.loras, Path(output or ""), recursive=recursive)
        loras = tuple(each.lora for each in asked if not (skip_existing and each.output.exists()))
        given = Given(given.models, given.values, loras, given.file)
    pairs, run_options = {lora: pair_of(given, lora) for lora in given.loras}, given.make(RunOptions)
    plain = [lora for lora, pair in pairs.items() if pair is None]
    recipes = {} if several else {lora: given.recipe(lora) for lora in plain}
    from loraport.engine.estimate import estimate, estimate_together
    from loraport.engine.experts.plan import make_experts_plan
    from loraport.engine.many.plan import make_many_plan
    from loraport.engine.plan import make_plan

    start = 0.0

    def told(made: Any, *, begins: bool = True) -> dict[str, Any]:
        nonlocal start
        start = start or time.process_time()
        facts = describe(made, estimate(made, run_options, start if begins else 0.0))
        show(facts, console)
        return facts

    documents: list[dict[str, Any]] = []
    for lora, pair in pairs.items():
        if pair is not None:
            both = make_experts_plan(pair)
            facts = {expert: told(one, begins=expert == "high") for expert, one in both.plans.items()}
            documents.append({"experts": facts, "cost": together(facts.values()), "warnings": list(both.warnings)})
            show_together(documents[-1], console)
        elif not several:
            documents.append(told(make_plan(recipes[lora])))
    if not several:
        console.document(documents[0])
        return
    many = make_many_plan(dict(enumerate(plain)), given.recipe)
    cost: dict[str, Any] = {}
    if many.plans:
        start = start or time.process_time()
        cost = asdict(estimate_together(list(many.plans.values()), run_options, start))
    documents += show_many(plain, many, cost, console)
    console.document({"plans": documents, "cost": cost, "failed": len(many.failures)})
    if many.failures:
        raise typer.Exit(next(iter(many.failures.values())).exit_code)


def show_many(loras: list[str], many: Any, cost: dict[str, Any], console: Console) -> list[dict[str, Any]]:
    """The plan of one job on many LoRAs: a row for each, and what all take together.

    Args:
        loras: as they were named.
        many: their plans by number, and why some have none.
        cost: what is expected of the job, by the fields of `RunEstimate`.
        console: where to say it.

    Returns:
        A document for each LoRA.
    """
    rows, documents = [], []
    warned: dict[str, list[str]] = {}
    for number, lora in enumerate(loras):
        if number in many.failures:
            error = many.failures[number]
            rows.append([lora, "no", "", "", "", text.reason(error)])
            documents.append({"lora": lora, "error": error.to_json()})
            continue
        one = many.plans[number]
        documents.append(describe(one))
        rank = f"{one.adapter.max_rank} -> {one.rank}"
        rows.append([lora, "yes", str(len(one.jobs)), rank, text.size(one.output_bytes), ""])
        for message in one.warnings:
            warned.setdefault(message, []).append(lora)
    console.table(["LoRA", "fits", "layers", "rank", "output", "why not"], rows)
    for message, whose in warned.items():
        console.warning(message if len(whose) == len(many.plans) else f"{text.listing(whose)}: {message}")
    if cost:
        console.result(
            f"{count(len(many.plans), 'LoRA')} in one job",
            f"  work      about {text.duration(cost['seconds'])}; each layer is read and decomposed once",
            f"  memory    {text.memory(cost)}",
            f"  disk      {text.size(cost['output_bytes'])} for the outputs and as much again meanwhile, "
            f"{text.size(cost['cache_bytes'])} for the cache",
        )
    return documents


def together(plans: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What two plans cost that are carried out one after the other."""
    costs = [facts["cost"] for facts in plans]
    total = {
        name: sum(cost[name] for cost in costs) for name in ("operations", "seconds", "output_bytes", "cache_bytes")
    }
    return total | {name: max(cost[name] for cost in costs) for name in ("peak_bytes", "card_bytes")}


def show_together(facts: dict[str, Any], console: Console) -> None:
    """The two plans of both experts in sum, for people."""
    cost = facts["cost"]
    console.result(
        "both experts",
        f"  work      about {text.duration(cost['seconds'])}",
        f"  memory    {text.memory(cost)}",
        f"  disk      {text.size(cost['output_bytes'])} for the outputs, "
        f"{text.size(cost['cache_bytes'])} for the cache",
    )
    for message in facts["warnings"]:
        console.warning(message)


def describe(plan: Any, expected: Any = None) -> dict[str, Any]:
    """A plan as plain values, and what is expected of it alone, if anything is."""
    adapter = plan.adapter
    cost = {"operations": plan.cost}
    if expected is not None:
        cost |= asdict(expected) | {"cache_pays": expected.cache_pays}
    return {
        "lora": str(adapter.path),
        "training": adapter.training.to_json(),
        "trained": adapter.training.sentence(),
        "source": _model(plan.source),
        "target": None if plan.target is None else _model(plan.target),
        "source_lora": [
            {"file": str(each.adapter.path), "strength": each.given.strength} for each in plan.source_added
        ],
        "target_lora": [{"file": str(each.adapter.path), "strength": each.given.strength} for each in plan.added],
        "method": plan.method,
        "params": plan.params,
        "amount": plan.recipe.amount,
        "coverage": {
            "keys": len(adapter.keys),
            "layers": len(plan.jobs),
            "passthrough": [key for item in plan.passthrough for key in item.keys],
            "dropped": list(plan.dropped),
        },
        "rank": str(plan.rank),
        "rank_in": adapter.max_rank,
        "dtype": plan.dtype,
        "to": plan.recipe.to,
        "extra_source": list(plan.extra_source),
        "extra_target": list(plan.extra_target),
        "cost": cost,
        "warnings": list(plan.warnings),
        "layers": [
            {
                "name": job.name,
                "shape": list(job.shape),
                "rank_in": job.update.rank,
                "method": job.method,
                "operations": job.cost,
                "peak_bytes": job.peak_bytes,
            }
            for job in plan.jobs
        ],
    }


def show(facts: dict[str, Any], console: Console) -> None:
    """A plan for people."""
    cover, cost = facts["coverage"], facts["cost"]
    own, added = (
        "".join(f" plus {each['file']} at strength {each['strength']:g}" for each in facts[side])
        for side in ("source_lora", "target_lora")
    )
    target = facts["target"]["name"] if facts["target"] else "the source"
    lines = [
        f"{facts['lora']}",
        *([f"  trained   {facts['trained']}"] if facts["trained"] else []),
        f"  from      {facts['source']['name']}  ({facts['source']['path']}){own}",
        f"  to        {target}" + (f"  ({facts['target']['path']})" if facts["target"] else "") + added,
        f"  method    {facts['method']}" + (f" at amount {facts['amount']:g}" if facts["amount"] != 1 else ""),
        f"  coverage  {count(cover['layers'], 'layer')}, from {count(cover['keys'], 'key')} in the file; "
        f"{count(len(cover['passthrough']), 'key')} passed through, {len(cover['dropped']) or 'none'} dropped",
        f"  rank      {facts['rank_in']} in, {facts['rank']} out, {facts['dtype']}, names: {facts['to']}",
        f"  work      about {text.duration(cost['seconds'])}, {_state(cost, cover['layers'])}",
        f"  memory    {text.memory(cost)}",
        f"  disk      {text.size(cost['output_bytes'])} for the output, {text.size(cost['cache_bytes'])} for the cache",
        f"  cache     {_advice(cost, cover['layers'])}",
    ]
    for side in ("source", "target"):
        extra = facts[f"extra_{side}"]
        if extra:
            lines.append(f"  only in the {side}: {text.listing(extra)}")
    console.result(*lines)
    for message in facts["warnings"]:
        console.warning(message)
    if console.verbose:
        console.table(
            ["layer", "shape", "rank", "method", "operations", "memory"],
            [
                [
                    layer["name"],
                    " x ".join(map(str, layer["shape"])),
                    str(layer["rank_in"]),
                    layer["method"],
                    text.operations(layer["operations"]),
                    text.size(layer["peak_bytes"]),
                ]
                for layer in facts["layers"]
            ],
        )


def _state(cost: dict[str, Any], layers: int) -> str:
    """What of the work the cache has done already."""
    if cost["finished"] == layers:
        return "all of it done already, in the cache"
    parts = []
    if cost["finished"]:
        parts.append(f"{count(cost['finished'], 'layer')} finished in the cache")
    if cost["warm"]:
        parts.append(f"{count(cost['warm'], 'layer')} decomposed in the cache")
    if not parts and not cost["known"]:
        return "from nothing"
    return ", ".join(parts) or "nothing of it in the cache"


def _advice(cost: dict[str, Any], layers: int) -> str:
    """Whether it is worth its room."""
    with_it, without = text.duration(cost["next_seconds"]), text.duration(cost["next_seconds_without"])
    if cost["cache_pays"]:
        room = f" (kept of {cost['kept_layers']} of {layers} layers)" if cost["kept_layers"] < layers else ""
        return f"pays: another LoRA for this pair takes about {with_it} with it, {without} without{room}"
    return f"gains little: another LoRA for this pair takes about {with_it} with it, {without} without (--cache off)"


def _model(checkpoint: Any) -> dict[str, str]:
    return {"path": str(checkpoint.path), "name": checkpoint.architecture.title}
