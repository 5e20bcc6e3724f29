"""A transfer in a handful of figures, to hold cells of a sweep against each other."""

import math
from collections.abc import Iterable

from loraport.engine.results import LayerReport, Summary, TransferReport
from loraport.methods.columns import Column

FIGURES = (
    Column("layers", "layers", "number of layers in the output", "count"),
    Column("rank_in", "rank in", "largest rank in the LoRA", "count"),
    Column("rank_out", "rank", "rank of the output", "count"),
    Column("energy_kept", "kept", "share of all exact updates' squared norms that the rank holds", "share"),
    Column("energy_kept_min", "least kept", "the same, in the layer with the smallest share", "share"),
    Column("change", "change", "norm of what the method changed of the LoRA, over its norm; 0 is direct reuse"),
    Column("cosine", "cosine", "cosine between the whole new update and the LoRA's, before it is cut to a rank"),
    Column("update", "update", "norm of the LoRA's update over that of the weight, in the mean layer", "share"),
    Column("drift", "drift", "norm of target minus source over that of the source, in the mean layer", "share"),
)  # fmt: skip
"""Of a cell; those that the method has not both weights for, or does not tell, are left out."""


def figures_of(report: TransferReport) -> dict[str, float]:
    """The figures of a transfer, by the keys of `FIGURES`."""
    facts, layers = report.summary, report.layers
    found: dict[str, float | None] = {
        "layers": facts.layers,
        "rank_in": facts.rank_in,
        "rank_out": facts.rank_out,
        "energy_kept": facts.energy_kept_total,
        "energy_kept_min": facts.energy_kept_min,
        **_against_the_input(layers, facts),
        "update": _mean(layers, "update_rel"),
        "drift": _mean(layers, "drift_rel"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _mean(layers: Iterable[LayerReport], key: str) -> float | None:
    values = [float(layer.stats[key]) for layer in layers if key in layer.stats]
    return sum(values) / len(values) if values else None


def _against_the_input(layers: Iterable[LayerReport], facts: Summary) -> dict[str, float]:
    """Change and cosine of all layers together, where each tells enough.

    A layer tells cosine c and ratio of norms r of the method in full, and the norm of what it came to at the amount a:
    D + a (D' - D), of squared norm |D|^2 ((1 - a)^2 + a^2 r^2 + 2 a (1 - a) r c).
    """
    a, given, made, along = facts.amount, 0.0, 0.0, 0.0
    for layer in layers:
        exact = float(layer.stats["exact_norm"])
        if exact == 0.0 and "norm_ratio" not in layer.stats:
            continue  # the LoRA leaves it alone
        told = _method(layer, facts)
        if told is None:
            return {}
        ratio, cosine = told
        square = (1 - a) ** 2 + (a * ratio) ** 2 + 2 * a * (1 - a) * ratio * cosine
        if square <= 0.0:
            return {}
        own = exact**2 / square
        given, made, along = given + own, made + exact**2, along + own * (1 - a + a * ratio * cosine)
    if given <= 0.0 or made <= 0.0:
        return {}
    change = math.sqrt(max(given + made - 2 * along, 0.0) / given)
    return {"change": change, "cosine": along / math.sqrt(given * made)}


def _method(layer: LayerReport, facts: Summary) -> tuple[float, float] | None:
    """Ratio of norms and cosine, new over the input's, of the method in full."""
    if layer.method == "direct":
        strength = float(facts.params["strength"]) if facts.method == "direct" else 1.0
        return abs(strength), math.copysign(1.0, strength)
    if not {"norm_ratio", "cosine"} <= layer.stats.keys():
        return None
    return float(layer.stats["norm_ratio"]), float(layer.stats["cosine"])
