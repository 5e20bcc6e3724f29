"""What the demo says: sentences made from the numbers of the run, whichever way they come out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from loraport.evaluate.looks import mean_and_error
from loraport.report import Measure, Words
from loraport.wording import share
from loraport.zoo.catalogue import ModelCard

MEASURES = (
    Measure(
        "style",
        "style shown",
        "0: the clip has the colours and contrasts of a plain rendering of its prompt; 1: those of a rendering in the "
        "style that the LoRA was trained on. It does not see whether the shape is right.",
        "higher",
        high=1.1,
    ),
    Measure(
        "to_aim",
        "distance to source + LoRA",
        "Root mean square difference of pixels (0 to 1) to the clip that source + LoRA makes from the same noise. "
        "Even a perfect transfer stays above 0, since the target draws its own clip from that noise.",
        "lower",
        high=0.4,
        digits=3,
    ),
    Measure(
        "to_drawn",
        "distance to a drawn clip",
        "Root mean square difference of pixels (0 to 1) to the nearest of 64 renderings of the prompt in the style: "
        "small only if style, shape, colours and motion are all right.",
        "lower",
        high=0.4,
        digits=3,
    ),
)
CLEAR = 2.0
"""A paired difference counts when it is larger than this many of its standard errors."""
RIVALS = {"transferred": "transferred", "calibrated": "calibrated"}
"""Rows that are held against a strength slider, with the words for them."""
LITTLE = 0.05
"""A difference below this share of the whole distance is called little."""


@dataclass(frozen=True, eq=False)
class DemoRow:
    """The clips of one row with their scores, a value a clip."""

    key: str
    label: str
    note: str
    clips: Float[Tensor, "n 3 f h w"]
    scores: Mapping[str, Float[Tensor, " n"]]
    kind: str
    shown: bool
    strength: float = 1.0


def summarise(
    sets: Sequence[DemoRow],
    report: Mapping[str, Any],
    calibration: str,
    *,
    lora: str,
    target: ModelCard,
    style: str,
) -> Words:
    """Say what the run showed: how much of the style arrives, whether each way helped, what was not tested.

    Args:
        sets: rows with their scores. report: of the transfer. calibration: what the calibration says of itself.
    """
    by_key = {one.key: one for one in sets}
    aim, direct, moved, fitted = (by_key[key] for key in ("source+lora", "direct", "transferred", "calibrated"))
    shares = {key: mean_and_error(one.scores["style"])[0] for key, one in by_key.items()}
    verdict, nearer = _verdict("The transfer", moved, direct)
    fit_verdict, fit_nearer = _verdict("Calibration", fitted, direct)
    lead = (
        f"On its own model the LoRA shows {_percent(shares['source+lora'])} of the style. On “{target.name}” it shows "
        f"{_percent(shares['direct'])} reused unchanged, {_percent(shares['transferred'])} transferred from weights "
        f"alone, and {_percent(shares['calibrated'])} calibrated. {verdict} {fit_verdict}"
    )
    remarks = [
        f"The style: {style}. The target: {target.summary}.",
        f"Distance to source + LoRA minus that of reuse, clip by clip: transferred {nearer}; calibrated {fit_nearer}.",
        *(_about_strength(by_key, key, words) for key, words in RIVALS.items()),
        calibration,
        _about_rank(report),
        _about_drift(report),
        "Nearer is not better in every way: undoing the distillation brings clips nearer, but can also bring back "
        "ghosts and blur. Look at the clips.",
        "Tiny models, one LoRA, one kind of score: this shows what the program does, not how well it does on a model "
        "of real size. Prompts and noise come from a seed, and the clips shown are the first eight, not the best.",
    ]
    clips = len(aim.scores["style"])
    return Words(
        title=f"“{lora}”, transferred to “{target.name}”",
        lead=lead,
        remarks=tuple(remark for remark in remarks if remark),
        legend=f"Six frames of 16 × 16 pixels, enlarged without smoothing: the first {min(8, clips)} of {clips} clips.",
    )


def commands(settings: Mapping[str, Any], file: str, calibrated: str) -> str:
    """How to repeat this run, in Python."""
    lora, target, seed, clips, method = (settings[key] for key in ("lora", "target", "seed", "clips", "method"))
    return f"""# this page
from loraport.demo.run import run_demo
run_demo("demo-output", lora="{lora}", target="{target}", seed={seed}, clips={clips}, method="{method}")

# the LoRA files alone (this page calibrates on fewer samples)
import loraport
loraport.transfer("zoo:{lora}", source="zoo:source", target="zoo:{target}", method="{method}", output="{file}")
loraport.calibrate("zoo:{lora}", source="zoo:source", target="zoo:{target}", output="{calibrated}")"""


def _verdict(what: str, moved: DemoRow, direct: DemoRow) -> tuple[str, str]:
    """Whether a way helped by the distance to source + LoRA, as a sentence and as a number."""
    sign, change, number = _difference(moved, direct)
    if sign == 0:
        return f"{what} made no difference that these clips could show.", f"{number}, within the noise"
    before = mean_and_error(direct.scores["to_aim"])[0]
    moved_by = abs(change) / before if before > 0 else 0.0
    done = ("helped" if sign < 0 else "hurt") + (" a little" if moved_by < LITTLE else "")
    where = "nearer to" if sign < 0 else "farther from"
    return f"{what} {done}: its clips are {_percent(moved_by)} {where} those of source + LoRA.", number


def _about_strength(by_key: Mapping[str, DemoRow], key: str, words: str) -> str:
    direct = by_key.get("direct-best", by_key["direct"])
    moved = by_key.get(f"{key}-best", by_key[key])
    sign, _, number = _difference(moved, direct)
    result = (
        "the two are equally near to source + LoRA",
        "the LoRA reused unchanged comes nearer to source + LoRA",
        f"the {words} LoRA is nearer to source + LoRA",
    )[sign]
    return (
        f"The simple alternative is a strength slider. With each LoRA at its best strength ({direct.strength:g} reused "
        f"unchanged, {moved.strength:g} {words}), {result} ({number})."
    )


def _difference(one: DemoRow, other: DemoRow) -> tuple[int, float, str]:
    """Of the distances to source + LoRA, clip by clip: its sign, 0 within the noise; itself; and as it is printed."""
    change, error = mean_and_error(one.scores["to_aim"] - other.scores["to_aim"])
    sign = 0 if abs(change) <= CLEAR * error else 1 if change > 0 else -1
    return sign, change, f"{change:+.3f} ± {error:.3f}".replace("-", "−")


def _about_rank(report: Mapping[str, Any]) -> str:
    summary = report.get("summary", {})
    kept, before, after = (summary.get(key) for key in ("energy_kept_total", "rank_in", "rank_out"))
    if kept is None:
        return ""
    if kept > 0.9995:
        return f"The transferred file has rank {after} (the input {before}), which loses nothing."
    return (
        f"The transferred file has rank {after} (the input {before}), which holds {share(kept)} of the "
        "energy of the exact result; the rest is lost to the rank."
    )


def _about_drift(report: Mapping[str, Any]) -> str:
    drifts = [layer["stats"]["drift_rel"] for layer in report.get("layers", ()) if "drift_rel" in layer["stats"]]
    if not drifts:
        return ""
    return (
        f"The target's weights moved by {100 * sum(drifts) / len(drifts):.1f} % of their norm in the LoRA's layers. "
        "In models of real size distillation moves them by less."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
