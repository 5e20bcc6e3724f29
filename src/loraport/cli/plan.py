"""`loraport plan`: what a transfer would do and cost. Reads headers, changes nothing."""

import time
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from loraport.cli import options, text
from loraport.cli.console import Console
from loraport.cli.experts import pair_of
from loraport.cli.flags import Given, command
from loraport.cli.outputs import asked_loras
from loraport.engine.experts.asked import Experts
from loraport.engine.many.asked import holds_many
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe
from loraport.errors import LoraportError
from loraport.wording import count, size

if TYPE_CHECKING:
    from loraport.engine.estimate import RunEstimate
    from loraport.engine.experts.plan import ExpertsPlan
    from loraport.engine.many.plan import ManyPlan
    from loraport.engine.plan import TransferPlan
    from loraport.models.checkpoint import Checkpoint

EXAMPLE = """See what a transfer would take before starting it:

    loraport plan style.safetensors -s Wan2.1-T2V-14B/ -t lightx2v.safetensors --max-memory 16GB"""


@command(Recipe, Experts, RunOptions)
def plan(
    given: Given,
    console: Console,
    output: options.Output = None,
    recursive: options.Recursive = False,
    skip_existing: options.SkipExisting = False,
) -> None:
    """Show what a transfer would do: coverage, time, memory, disk. Takes the same options and changes nothing."""
    folder = None if output is None else Path(output).absolute()
    if len(given.loras) > 1 or holds_many(given.loras[0], recursive=recursive):
        asked = asked_loras(given.loras, Path(output or ""), console, recursive=recursive)
        loras = tuple(each.lora for each in asked if not (skip_existing and each.output.exists()))
        _many(replace(given, loras=loras), folder, console)
        return
    (lora,), run_options = given.loras, given.make(RunOptions)
    pair = pair_of(given, lora)
    from loraport.engine.experts.plan import make_experts_plan
    from loraport.engine.plan import make_plan

    if pair is not None:
        console.document(_both(make_experts_plan(pair), run_options, folder, console))
    else:
        made = make_plan(given.recipe(lora))
        console.document(_told(made, run_options, folder, console, time.process_time()))


def _many(given: Given, folder: Path | None, console: Console) -> None:
    """Several LoRAs: one job, and one for each that is for both experts. What is wrong with one is its own."""
    from loraport.engine.estimate import estimate
    from loraport.engine.experts.plan import make_experts_plan
    from loraport.engine.many.plan import make_many_plan

    run_options = given.make(RunOptions)
    plain: list[str] = []
    documents: list[dict[str, Any]] = []
    failures: list[LoraportError] = []
    for lora in given.loras:
        try:
            pair = pair_of(given, lora)
            both = None if pair is None else make_experts_plan(pair)
        except LoraportError as error:
            failures.append(error)
            documents.append({"lora": lora, "error": error.to_json()})
            continue
        if both is None:
            plain.append(lora)
        else:
            documents.append(_both(both, run_options, folder, console))
    if failures and len(failures) == len(given.loras):
        raise failures[0]
    many = make_many_plan(dict(enumerate(plain)), given.recipe)
    failures += many.failures.values()
    console.errors(failures)
    cost: dict[str, Any] = {}
    if many.plans:
        cost = asdict(estimate(list(many.plans.values()), run_options, time.process_time()))
    documents += show_many(plain, many, cost, console)
    short = _short_of_room(many.plans.values(), run_options, folder, twice=True) if many.plans else []
    console.warning(*short)
    console.document({"plans": documents, "cost": cost, "warnings": short, "failed": len(failures)})
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _told(
    plan: "TransferPlan", run_options: RunOptions, output: Path | None, console: Console, start: float
) -> dict[str, Any]:
    """Say what a plan is and takes; `start` as for `estimate`."""
    from loraport.engine.estimate import estimate

    facts = describe(plan, estimate([plan], run_options, start))
    facts["warnings"] += _short_of_room([plan], run_options, output and output.parent, twice=False)
    show(facts, console, cached=run_options.cache != "off")
    return facts


def _short_of_room(
    plans: Collection["TransferPlan"], run_options: RunOptions, folder: Path | None, *, twice: bool
) -> list[str]:
    """What may be too large for this machine, as the run would say it; arguments as of `engine.room.short_of_room`."""
    from loraport.engine.executor import executor_for
    from loraport.engine.room import short_of_room

    return list(short_of_room(plans, folder, run_options, executor_for(run_options), twice=twice))


def _both(both: "ExpertsPlan", run_options: RunOptions, output: Path | None, console: Console) -> dict[str, Any]:
    """Say what the plans of both experts are, and take in sum; they are carried out one after the other."""
    starts = {"high": time.process_time(), "low": 0.0}
    facts = {expert: _told(plan, run_options, output, console, starts[expert]) for expert, plan in both.plans.items()}
    costs = [one["cost"] for one in facts.values()]
    summed = ("operations", "seconds", "output_bytes", "cache_bytes")
    total = {name: sum(cost[name] for cost in costs) for name in summed}
    total |= {name: max(cost[name] for cost in costs) for name in ("peak_bytes", "card_bytes")}
    console.result("both experts", *text.needs(total))
    console.warning(*both.warnings)
    return {"experts": facts, "cost": total, "warnings": list(both.warnings)}


def show_many(loras: list[str], many: "ManyPlan", cost: dict[str, Any], console: Console) -> list[dict[str, Any]]:
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
    for number, lora in enumerate(loras):
        if number in many.failures:
            error = many.failures[number]
            rows.append([lora, "no", "", "", "", text.reason(error)])
            documents.append({"lora": lora, "error": error.to_json()})
            continue
        one = many.plans[number]
        documents.append(describe(one))
        rank = f"{one.adapter.max_rank} -> {one.rank_out}"
        rows.append([lora, "yes", str(len(one.jobs)), rank, size(one.output_bytes), ""])
    console.table(["LoRA", "fits", "layers", "rank", "output", "why not"], rows)
    console.warnings_of({loras[number]: one.warnings for number, one in many.plans.items()})
    if cost:
        console.result(f"{count(len(many.plans), 'LoRA')} in one job", *text.needs(cost, shared=True))
    return documents


def describe(plan: "TransferPlan", expected: "RunEstimate | None" = None) -> dict[str, Any]:
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
        "rank_out": plan.rank_out,
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


def show(facts: dict[str, Any], console: Console, *, cached: bool) -> None:
    """A plan for people; whether the cache is worth it only where one is used."""
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
        f"  rank      {facts['rank_in']} in, {facts['rank_out']} out, {facts['dtype']}, names: {facts['to']}",
        f"  work      about {text.duration(cost['seconds'])}, {_state(cost, cover['layers'])}",
        f"  memory    {text.memory(cost)}",
        f"  disk      {size(cost['output_bytes'])} for the output, {size(cost['cache_bytes'])} for the cache",
        *([f"  cache     {_advice(cost, cover['layers'])}"] if cached else []),
    ]
    for side in ("source", "target"):
        extra = facts[f"extra_{side}"]
        if extra:
            lines.append(f"  only in the {side}: {text.listing(extra)}")
    console.result(*lines)
    console.warning(*facts["warnings"])
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
                    size(layer["peak_bytes"]),
                ]
                for layer in facts["layers"]
            ],
        )


def _state(cost: dict[str, Any], layers: int) -> str:
    """What of the work the cache has done already."""
    if cost["finished"] == layers:
        return "all of it already done, in the cache"
    parts = []
    if cost["finished"]:
        parts.append(f"{count(cost['finished'], 'layer')} finished in the cache")
    if cost["warm"]:
        parts.append(f"{count(cost['warm'], 'layer')} decomposed in the cache")
    if not parts and not cost["known"]:
        return "from scratch"
    return ", ".join(parts) or "nothing of it in the cache"


def _advice(cost: dict[str, Any], layers: int) -> str:
    """Whether it is worth its room."""
    with_it, without = text.duration(cost["next_seconds"]), text.duration(cost["next_seconds_without"])
    if cost["cache_pays"]:
        room = f" (kept of {cost['kept_layers']} of {layers} layers)" if cost["kept_layers"] < layers else ""
        return f"worth it: another LoRA for this pair takes about {with_it} with it, {without} without{room}"
    later = f"another LoRA for this pair takes about {with_it} with it, {without} without (--cache off)"
    return f"of little use: {later}; LoRAs in one command share the work"


def _model(checkpoint: "Checkpoint") -> dict[str, str]:
    return {"path": str(checkpoint.path), "name": checkpoint.architecture.title}
