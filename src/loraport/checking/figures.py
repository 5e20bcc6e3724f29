"""What is measured: every figure as a ratio of sums (`look.py`), so that layers add up, with its null models."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loraport.checking.results import Null, Quantity

LayerSums = dict[str, float]
"""Of one layer or of several, by name; see `look.py`."""

GAUSSIAN = "a Gaussian update of the same norm"
GAUSSIAN_LORA = "a Gaussian update of the same norm and rank"
ROUNDING = "rounding of the stored numbers"
ONE_SIGMA = "one standard deviation of unrelated ones"


@dataclass(frozen=True)
class Ratio:
    """The square root of a ratio of sums, or the ratio itself.

    Attributes:
        above: name of the sum above.
        below: name of the sum below; with two names, the root of their product.
        root: whether the root is taken.
    """

    above: str
    below: str | tuple[str, str]
    root: bool = True

    def of(self, sums: LayerSums) -> float | None:
        """The value; None where a sum is missing or the lower one is zero."""
        names = (self.below,) if isinstance(self.below, str) else self.below
        if self.above not in sums or any(sums.get(name, 0.0) <= 0.0 for name in names):
            return None
        below = sums[names[0]] if len(names) == 1 else math.sqrt(sums[names[0]] * sums[names[1]])
        value = sums[self.above] / below
        return math.sqrt(max(value, 0.0)) if self.root else value


@dataclass(frozen=True)
class Definition:
    """One figure.

    Attributes:
        key: short name.
        title: what to call it.
        help: what it is.
        unit: "share", "factor" or "cosine".
        of: "pair", "lora" or "method".
        ratio: what it is of the sums.
        nulls: null models.
    """

    key: str
    title: str
    help: str
    unit: str
    of: str
    ratio: Ratio
    nulls: Mapping[str, Ratio | float]


DEFINITIONS = (
    Definition(
        "drift", "drift", "norm of target minus source over that of the source", "share", "pair",
        Ratio("drift2", "weight2"), {ROUNDING: Ratio("noise2", "weight2")},
    ),
    Definition(
        "rounding", "rounding in the drift", "share of the drift's squared norm that rounding explains", "share",
        "pair", Ratio("noise2", "drift2", root=False), {},
    ),
    Definition(
        "norm_ratio", "norm ratio", "norm of the target's weights over that of the source's", "factor", "pair",
        Ratio("target2", "weight2"), {},
    ),
    Definition(
        "rigidity_drift", "rigidity of the drift",
        "change of the singular values by the drift, over the norm of the weight", "share", "pair",
        Ratio("stretch2", "S2"),
        {GAUSSIAN: Ratio("stretch_gauss2", "S2"), ROUNDING: Ratio("stretch_round2", "S2")},
    ),
    Definition(
        "head_drift", "head of the drift",
        "the drift's energy in the rows and columns of the leading tenth of the head, over what an even spread has "
        "there", "factor", "pair", Ratio("head2", "head_even2", root=False),
        {GAUSSIAN: 1.0, ROUNDING: Ratio("head_round2", "head_round_even2", root=False)},
    ),
    Definition(
        "directions_drift", "directions of the drift",
        "share of all directions that hold 99 % of the drift besides rounding; small for a drift that is a LoRA",
        "share", "pair", Ratio("directions", "directions_of", root=False), {},
    ),
    Definition(
        "update", "LoRA", "norm of the LoRA's update over that of the source", "share", "lora",
        Ratio("update2", "of_weight2"), {},
    ),
    Definition(
        "update_over_drift", "LoRA over drift", "norm of the LoRA's update over that of the drift", "factor", "lora",
        Ratio("update2", "of_drift2"), {},
    ),
    Definition(
        "overlap", "overlap", "cosine of LoRA and drift; above zero where they point the same way", "cosine", "lora",
        Ratio("product", ("update2", "of_drift2"), root=False), {ONE_SIGMA: Ratio("chance2", "sizes2")},
    ),
    Definition(
        "dose", "dose in the drift",
        "how much of the LoRA the drift holds already, <drift, LoRA> / <LoRA, LoRA>; 1 for a target with the LoRA "
        "baked in", "factor", "lora", Ratio("product", "update2", root=False), {ONE_SIGMA: Ratio("chance2", "doses2")},
    ),
    Definition(
        "common", "drift on the LoRA's directions",
        "the drift's energy on the directions that the LoRA reads and writes, over what chance puts there", "factor",
        "lora", Ratio("common2", "common_even2", root=False), {GAUSSIAN: 1.0},
    ),
    Definition(
        "rigidity_lora", "rigidity of the LoRA", "change of the singular values by the LoRA, over the norm of the "
        "weight", "share", "lora", Ratio("lora_stretch2", "lora_S2"),
        {GAUSSIAN_LORA: Ratio("lora_stretch_gauss2", "lora_S2")},
    ),
    Definition(
        "head_lora", "head of the LoRA",
        "the LoRA's energy in the rows and columns of the leading tenth of the head, over what an even spread has "
        "there", "factor", "lora", Ratio("lora_head2", "lora_head_even2", root=False), {GAUSSIAN: 1.0},
    ),
    Definition(
        "change", "what the method changes", "norm of new update minus old over that of the old, before it is cut to "
        "a rank", "factor", "method", Ratio("change2", "method_of2"), {},
    ),
    Definition(
        "method_dose", "the LoRA in the method's update", "<new, old> / <old, old>: how much of the LoRA the method "
        "adds along the LoRA", "factor", "method", Ratio("method_along", "method_of2", root=False), {},
    ),
    Definition(
        "method_cosine", "cosine of new and old", "cosine between the method's update and the LoRA's own", "cosine",
        "method", Ratio("method_along", ("method2", "method_of2"), root=False), {},
    ),
)  # fmt: skip


def values(sums: LayerSums) -> dict[str, float]:
    """Every figure that these sums have, by key."""
    full = _squares(sums)
    found = {each.key: each.ratio.of(full) for each in DEFINITIONS}
    return {key: value for key, value in found.items() if value is not None}


def nulls(sums: LayerSums) -> dict[str, dict[str, float]]:
    """Their null models: key -> name -> value."""
    full = _squares(sums)
    found: dict[str, dict[str, float]] = {}
    for each in DEFINITIONS:
        if each.nulls and each.ratio.of(full) is not None:
            made = {name: null if isinstance(null, float) else null.of(full) for name, null in each.nulls.items()}
            found[each.key] = {name: value for name, value in made.items() if value is not None}
    return {key: each for key, each in found.items() if each}


def added_up(layers: Sequence[LayerSums]) -> LayerSums:
    """The sums of several layers. A layer that lacks one adds nothing to it."""
    total: LayerSums = {}
    for sums in layers:
        for name, value in sums.items():
            total[name] = total.get(name, 0.0) + value
    return total


def pooled(layers: Sequence[LayerSums]) -> tuple[Quantity, ...]:
    """The figures of several layers together, with the least and greatest of a layer.

    Args:
        layers: sums of each.
    """
    singly = [values(sums) for sums in layers]
    found = []
    for each in DEFINITIONS:
        mine = [one[each.key] for one in singly if each.key in one]
        if not mine:
            continue
        total = added_up([sums for sums, one in zip(layers, singly, strict=True) if each.key in one])
        value = each.ratio.of(_squares(total))
        assert value is not None
        beside = tuple(Null(name, null) for name, null in nulls(total).get(each.key, {}).items())
        found.append(
            Quantity(
                each.key, each.title, each.help, each.unit, each.of, value, min(mine), max(mine), len(mine), beside
            )
        )
    return tuple(found)


def _squares(sums: LayerSums) -> LayerSums:
    """With the products of sums that chance is measured by: it adds up in squares, and so do these."""
    full = dict(sums)
    if "update2" in full and "of_drift2" in full:
        full["sizes2"] = full["update2"] * full["of_drift2"]
        full["doses2"] = full["update2"] ** 2
    return full
