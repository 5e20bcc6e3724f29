"""From figures to a verdict: rules in the order in which they are asked, each with its reason."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loraport.checking.headers import Headers
from loraport.checking.results import Kind, LayerCheck, Quantity, Reason, Verdict
from loraport.checking.thresholds import MEASURED_METHOD, thresholds
from loraport.wording import count

ROUND = 0.05
"""Strengths are named in such steps: nobody sees less."""


@dataclass(frozen=True)
class Judgement:
    """A verdict.

    Attributes:
        verdict: what to do.
        strength: factor on the LoRA, None where nothing helps.
        headline: in one sentence.
        reasons: why, the weightiest first.
    """

    verdict: Verdict
    strength: float | None
    headline: str
    reasons: tuple[Reason, ...]


def judge_headers(headers: Headers) -> Judgement | None:
    """The verdict that headers alone allow; None where weights have to be looked at."""
    found, bound = headers.coverage, thresholds()["coverage"]
    if found.met < bound.value * found.layers:
        text = f"only {found.met} of {count(found.layers, 'layer')} of the LoRA can be found in the target"
        return _cannot("the LoRA is for another model", bound.reason(text, ""))
    if headers.transferred is not None:
        text = (
            f"a transfer made this file for {headers.transferred}, and the drift must not be undone twice; for another "
            "target, check the LoRA it was made from"
        )
        return Judgement("use as is", 1.0, "use it as it is: it was transferred already", (Reason(text),))
    return None


@dataclass(frozen=True)
class Seen:
    """What one LoRA and its pair look like.

    Attributes:
        headers: of the first stage.
        figures: over all layers that were looked at, by key.
        layers: one by one.
        elsewhere: drift of layers that the LoRA leaves alone, as far as any were looked at.
        method: whose change was measured.
    """

    headers: Headers
    figures: dict[str, Quantity]
    layers: Sequence[LayerCheck]
    elsewhere: float | None
    method: str

    def value(self, key: str) -> float | None:
        """A figure; None where it was not measured."""
        return self.figures[key].value if key in self.figures else None


def judge(seen: Seen) -> Judgement:
    """The verdict on a LoRA whose layers were looked at."""
    found = next((found for rule in _RULES if (found := rule(seen)) is not None), None) or _as_it_is(seen)
    if not seen.headers.partial or found.verdict == "cannot help":
        return found
    facts = seen.headers.coverage
    text = (
        f"only {facts.met} of {count(facts.layers, 'layer')} of the LoRA are found there, the others do nothing: is "
        "this the model that it was trained on? A transfer leaves them out with --allow-partial"
    )
    return replace(found, reasons=(*found.reasons, Reason(text)))


def kind_of(seen: Seen) -> Kind:
    """How the target was made of the source, as far as the weights tell; else what the names say."""
    bound, drift, rounding = thresholds(), seen.value("drift") or 0.0, seen.value("rounding") or 0.0
    by_name, directions = seen.headers.kind, seen.value("directions_drift")
    if _middle_drift(seen) > bound["unrelated"].value:
        return Kind("unrelated", f"the weights differ by {100 * drift:.0f} % of their norm", "weights")
    if drift == 0.0:
        return Kind("no difference", "the layers that were looked at are the same in both models", "weights")
    if rounding >= bound["rounding"].value:
        return Kind("rounding only", f"rounding explains {100 * rounding:.0f} % of the difference", "weights")
    if by_name is not None and by_name.name == "a LoRA":
        return by_name
    moved = f"the weights moved by {100 * drift:.1f} %"
    if directions is not None and directions <= bound["few_directions"].value:
        text = f"{moved}, and {100 * directions:.0f} % of all directions hold that: a LoRA, merged or extracted"
        return Kind("a LoRA", text, "weights")
    if by_name is not None:
        return Kind(by_name.name, f"{by_name.sentence}; {moved}", "names")
    text = f"{moved}, in all directions; weights cannot tell distribution matching from regression"
    return Kind("not told", text, "weights")


def _nothing_in_it(seen: Seen) -> Judgement | None:
    if "update" in seen.figures:
        return None
    return _cannot("the LoRA does nothing", Reason("every update that was looked at is zero; is the file complete?"))


def _unrelated(seen: Seen) -> Judgement | None:
    bound, drift = thresholds()["unrelated"], _middle_drift(seen)
    if drift <= bound.value:
        return None
    text = (
        f"in the median layer the weights differ by {drift:.2f} of their norm: the target is not made from this source"
    )
    return _cannot("source and target are not versions of one model", bound.reason(text, "drift"))


def _same_weights(seen: Seen) -> Judgement | None:
    if seen.value("drift") != 0.0:
        return None
    reasons = [Reason("source and target are the same in every layer of the LoRA that was looked at", "drift")]
    if seen.elsewhere:
        reasons.append(
            Reason(f"they differ elsewhere, by {100 * seen.elsewhere:.1f} % in layers that the LoRA leaves alone; no "
                   "method that works layer by layer can respond to that", "drift")
        )  # fmt: skip
    return Judgement("use as is", 1.0, "use it as it is: its layers are the same in both models", tuple(reasons))


def _only_rounding(seen: Seen) -> Judgement | None:
    bound, share = thresholds()["rounding"], seen.value("rounding") or 0.0
    if share < bound.value:
        return None
    text = f"rounding of the stored numbers explains {100 * share:.0f} % of the difference between the weights"
    more = Reason(
        "no other change can be told from it, so no method has anything to read; copies in a finer number format "
        "would show more"
    )
    headline = "use it as it is: the two models differ by little more than rounding"
    return Judgement("use as is", 1.0, headline, (bound.reason(text, "rounding"), more))


def _held_already(seen: Seen) -> Judgement | None:
    bound, overlap, dose = thresholds()["held"], seen.value("overlap") or 0.0, seen.value("dose") or 0.0
    if overlap < bound.value or dose < bound.value:
        return None
    text = f"the drift is the LoRA itself (cosine {overlap:.2f}), at a strength of {dose:.2f}"
    return _cannot("the target holds this LoRA already", bound.reason(text, "dose"))


def _overlapping(seen: Seen) -> Judgement | None:
    """The drift holds a dose of the LoRA, with sign: what is missing to one is the strength, if one suits all."""
    bounds, overlap, dose = thresholds(), seen.value("overlap") or 0.0, seen.value("dose") or 0.0
    chance = next((null.value for null in seen.figures["overlap"].nulls), 0.0) if "overlap" in seen.figures else 0.0
    if abs(dose) < bounds["dose"].value or abs(overlap) < bounds["chance"].value * chance:
        return None
    same = "the same way" if overlap > 0 else "opposite ways"
    first = bounds["dose"].reason(
        f"LoRA and drift point {same} (cosine {overlap:+.2f}): the drift holds {dose:+.2f} of the LoRA", "dose"
    )
    spread, left = _uneven(seen, dose)
    if spread > bounds["uneven"].value and left is not None and left < spread:
        text = (
            f"this differs between layers (by {spread:.2f}), so no single strength suits them all; "
            f"{seen.method} leaves {left:.2f} of the difference"
        )
        return Judgement("convert", 1.0, "convert it", (bounds["uneven"].reason(text, "dose"), first))
    strength = _rounded(1.0 - dose)
    if strength <= 0.0:
        return _cannot("the target holds this LoRA already", first)
    if strength == 1.0:
        return None
    more = Reason(f"at strength {strength:g} the two add up to what the LoRA does on its source", "dose")
    return Judgement("use at strength", strength, f"use it at strength {strength:g}", (first, more))


def _on_source(seen: Seen) -> Judgement | None:
    kinds = seen.headers.on_source
    if not kinds:
        return None
    text = (
        f"what {' and '.join(kinds)} does depends on the weights it was trained on, and the target has others. "
        "A transfer writes what it does on its source as a plain LoRA"
    )
    return Judgement("convert", 1.0, "convert it to a plain LoRA", (Reason(text),))


def _made_by_loras(seen: Seen) -> Judgement | None:
    """Where LoRAs moved the weights far, undoing a part of that helped."""
    bound, drift = thresholds()["made_by_loras"], seen.value("drift") or 0.0
    if kind_of(seen).name != "a LoRA" or drift < bound.value or seen.method != MEASURED_METHOD:
        return None
    moved = f"the target is made by LoRAs that move its weights by {100 * drift:.1f} %"
    text = f"{moved}; on such a target {seen.method} did more than reuse for most LoRAs"
    return Judgement("convert", 1.0, "convert it", (bound.reason(text, "drift"),))


def _moved_far(seen: Seen) -> Judgement | None:
    """The strength that suited measured pairs with a drift as large."""
    bound, drift = thresholds()["large_drift"], seen.value("drift") or 0.0
    if drift < bound.value or bound.strength is None:
        return None
    text = f"the weights moved by {100 * drift:.1f} % of their norm; where they moved as far, LoRAs acted too weakly"
    headline = f"use it at strength {bound.strength:g}"
    return Judgement("use at strength", bound.strength, headline, (bound.reason(text, "drift"),))


def _as_it_is(seen: Seen) -> Judgement:
    """What is left: nothing that was measured asks for anything else."""
    asks, keeps, drift = thresholds()["large_drift"], thresholds()["keeps"], seen.value("drift") or 0.0
    moved = f"the weights moved by {100 * drift:.1f} % of their norm"
    text = f"{moved}, and no measurement asks for another strength"
    reasons = [asks.reason(text, "drift")]
    if drift >= keeps.value:
        text = "from this drift on, LoRAs kept unequal parts of what they do: look at clips, or calibrate"
        reasons.append(keeps.reason(text, "drift"))
    headline = "use it as it is: load it on the target at the strength that suits its source"
    return Judgement("use as is", 1.0, headline, tuple(reasons))


def _cannot(headline: str, *reasons: Reason) -> Judgement:
    return Judgement("cannot help", None, headline, reasons)


def _middle_drift(seen: Seen) -> float:
    drifts = sorted(layer.figures["drift"] for layer in seen.layers if "drift" in layer.figures)
    return drifts[len(drifts) // 2] if drifts else 0.0


def _uneven(seen: Seen, dose: float) -> tuple[float, float | None]:
    """How far the best single strength misses what the layers need, and how far the method misses it.

    Both are root mean squares over layers, weighted by the LoRA's energy. The method's is None where it was not tried.
    """
    rows = [layer.figures for layer in seen.layers if "dose" in layer.figures]
    sizes = [row["update"] ** 2 for row in rows]
    missed = sum(size * (row["dose"] - dose) ** 2 for size, row in zip(sizes, rows, strict=True))
    spread = math.sqrt(missed / sum(sizes))
    tried = [(size, row) for size, row in zip(sizes, rows, strict=True) if "method_dose" in row]
    if not tried:
        return spread, None
    left = sum(size * (row["dose"] + row["method_dose"] - 1.0) ** 2 for size, row in tried)
    return spread, math.sqrt(left / sum(size for size, _ in tried))


def _rounded(strength: float) -> float:
    return round(round(strength / ROUND) * ROUND, 2)


_RULES = (
    _nothing_in_it, _unrelated, _same_weights, _only_rounding, _held_already, _overlapping, _on_source, _made_by_loras,
    _moved_far,
)  # fmt: skip
