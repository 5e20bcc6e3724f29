"""What a finished transfer tells its user."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraport.adapters.loaders import ways_to_load
from loraport.cli import text
from loraport.cli.console import Console

ENOUGH = 0.9  # of the energy; below it the summary says how to keep more


def show_report(report: Any, plan: Any, console: Console, said: Sequence[str] = ()) -> None:
    """Summary for people, and the table of layers when asked for.

    Args:
        said: warnings that were shown already during the run.
    """
    if console.verbose:
        show_layers(report.layers, console)
    facts = report.summary
    target = plan.target.architecture.title if plan.target is not None else f"the source plus {facts['target']}"
    lines = [
        f"carried {Path(facts['lora']).name} over to {target}",
        f"  layers    {_layers(report)}",
        f"  keys      {text.count(len(report.carried), 'key')} carried over unchanged, "
        f"{len(report.dropped) or 'none'} dropped",
        f"  rank      {facts['rank_in']} in, {facts['rank_out']} out",
        f"  energy    {_energy(report, plan)}",
        f"  time      {text.duration(facts['seconds'])}{_cache_use(facts)}",
    ]
    if report.dropped:
        lines.append(f"  dropped   {text.listing(report.dropped)}")
    for side in ("source", "target"):
        if facts[f"extra_{side}"]:
            lines.append(f"  only in the {side} (left alone): {text.listing(facts[f'extra_{side}'])}")
    if report.output is not None:
        size = text.size(report.output.stat().st_size)
        lines.append(f"  output    {report.output}  ({size}, {facts['dtype']}, written and read back)")
        ways = ways_to_load(report.output, plan.content)
        lines += [f"  {'load it' if way == ways[0] else '':<9} {way}" for way in ways]
    console.result(*lines)
    for message in report.warnings:
        if message not in said:
            console.warning(message)


def show_layers(layers: Sequence[Any], console: Console) -> None:
    """One row a layer: how large the update and the drift are beside the weight, and what the rank kept."""
    measures = {
        "update": "update_rel",
        "drift": "drift_rel",
        "clusters": "clusters",
        "dominant": "dominant_share",
        "arbitrated": "arbitrated_share",
        "undone": "drift_undone",
        "cosine": "cosine",
    }
    columns = ["layer", "shape", "rank", "energy", *measures, "time"]
    rows = []
    for layer in layers:
        rows.append(
            [
                layer.name,
                f"{layer.shape[0]} x {layer.shape[1]}",
                f"{layer.rank_in} -> {layer.rank_out}",
                text.share(layer.energy_kept),
                *(_stat(layer.stats, name) for name in measures.values()),
                "kept" if layer.cached else text.duration(layer.seconds),
            ]
        )
    used = [n for n in range(len(columns)) if any(row[n] != "" for row in rows)]
    console.table([columns[n] for n in used], [[row[n] for n in used] for row in rows])


def _energy(report: Any, plan: Any) -> str:
    """How much of the exact update the rank holds, and where it holds least."""
    facts = report.summary
    worst = min(report.layers, key=lambda layer: layer.energy_kept)
    if worst.energy_kept > 1 - 1e-6:  # what is missing is rounding
        return "all of the full update kept, in every layer"
    whole = any(job.name == worst.name and not job.update.factored for job in plan.jobs)
    kept = (
        f"{text.share(facts['energy_kept_total'])} of the full update kept in total, "
        f"{text.share(facts['energy_kept_mean'])} in the mean layer, "
        f"least in {worst.name}: {text.share(worst.energy_kept)}{' (a whole matrix in the input)' if whole else ''}"
    )
    return kept if facts["energy_kept_total"] >= ENOUGH else f"{kept}\n            more with a larger --rank"


def _layers(report: Any) -> str:
    """How many layers the method was applied to, and how many only came along."""
    facts = report.summary
    method = facts["method"] + (f" at amount {facts['amount']:g}" if facts["amount"] != 1.0 else "")
    changed = sum(layer.method == facts["method"] for layer in report.layers)
    rest = facts["layers"] - changed
    return f"{changed} transferred ({method})" + (f", {rest} as they were (--layers)" if rest else "")


def _cache_use(facts: dict[str, Any]) -> str:
    if not facts["cached_layers"]:
        return ""
    return f", {facts['cached_layers']} of {facts['layers']} layers from an earlier run"


def _stat(stats: dict[str, Any], name: str) -> str:
    value = stats.get(name)
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
