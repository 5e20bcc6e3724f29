"""What to expect of a file that a transfer wrote, from its report and the bounds of `thresholds.yaml` alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from loraport.checking.thresholds import MEASURED_METHOD, Threshold, thresholds

ENOUGH = 0.9
"""Of the exact update's energy, that the output's rank should hold."""


@dataclass(frozen=True)
class Expectation:
    """The answer at the head of a transfer's page.

    Attributes:
        words: in a word or two.
        tone: as in `loraport.report.content.Answer`.
        sentences: what was done, and whether to expect an effect of it.
        bound: that decided; None where none did.
    """

    words: str
    tone: Literal["good", "caution", "bad", "plain"]
    sentences: tuple[str, ...]
    bound: Threshold | None = None


def expect(report: Mapping[str, Any]) -> Expectation | None:
    """What to expect; None of a run that has not come to its end.

    Args:
        report: `TransferReport.to_json()`, or what `report.read_run` gathers.
    """
    if "error" in report:
        return Expectation("failed", "bad", ())
    facts, layers = report.get("summary", {}), report.get("layers", ())
    if "method" not in facts or not layers:
        return None
    found = _expected(facts, [layer.get("stats", {}) for layer in layers])
    kept = facts.get("energy_kept_total")
    return found if kept is None or kept >= ENOUGH else replace(found, tone="caution")


def _expected(facts: Mapping[str, Any], stats: list[Mapping[str, Any]]) -> Expectation:
    bounds, drifts = thresholds(), [float(each["drift_rel"]) for each in stats if "drift_rel" in each]
    drift = median(drifts) if drifts else None
    method, as_it_is = facts["method"], facts["method"] == "direct" or facts.get("amount") == 0.0
    if drifts and max(drifts) == 0.0:
        text = "Source and target are the same in these layers, so the file does what the LoRA does."
        return Expectation("nothing to transfer", "plain", (text,))
    if drifts and sum(bool(each.get("drift_is_rounding")) for each in stats) >= bounds["rounding"].value * len(drifts):
        text = (
            "Rounding of the stored numbers explains most of the difference between the two models in these layers, so "
            "there was nothing a method could read."
        )
        return Expectation("only rounding", "caution", (text,), bounds["rounding"])
    if as_it_is:
        return _reused(facts, drift)
    moved = "" if drift is None else f" The weights of the target moved by {100 * drift:.1f} % (median layer)."
    done = f"Converted with {method}.{moved}"
    if method != MEASURED_METHOD:
        return Expectation("converted", "plain", (done, f"What was measured of {method} is in docs/evidence.md."))
    bound = bounds["made_by_loras"]
    if facts.get("target") is None and facts.get("target_lora") and drift is not None and drift >= bound.value:
        text = (
            "On the one measured target that LoRAs moved as far, converting came nearer to source + LoRA than reuse: "
            "with five LoRAs at no price in faults, with one held-out LoRA at the price of more."
        )
        return Expectation("converted", "plain", (done, text), bound)
    bound = bounds["conversion"]
    return Expectation("converted", "plain", (done, f"{bound.meaning[:1].upper()}{bound.meaning[1:]}."), bound)


def _reused(facts: Mapping[str, Any], drift: float | None) -> Expectation:
    """A LoRA that no method changed."""
    bounds = thresholds()
    strength = "" if facts.get("strength", 1.0) == 1.0 else f", at strength {facts['strength']:g}"
    done = f"The LoRA as it is{strength}: no method changed it."
    if drift is None:
        return Expectation("the LoRA as it is", "plain", (done,))
    large, keeps = bounds["large_drift"], bounds["keeps"]
    moved = f"The weights of the target moved by {100 * drift:.1f} % (median layer)."
    if drift >= large.value:
        text = f"{moved} Where they moved as far, LoRAs acted too weakly, and strength {large.strength:g} was nearer."
        return Expectation("the LoRA as it is", "caution", (done, text), large)
    text = f"{moved} Where they moved no farther, the strength that suits the source also suited the target."
    if drift < keeps.value:
        return Expectation("the LoRA as it is", "good", (done, text), large)
    more = (
        "From this drift on, some LoRAs kept much less of what they do, at any strength: look at clips, or calibrate."
    )
    return Expectation("the LoRA as it is", "plain", (done, text, more), keeps)
