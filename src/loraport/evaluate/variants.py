"""The rows of the evidence: methods with their settings, as plain data. A new row is one more `Variant`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Role = Literal["direct", "paper", "control", "rival", "sweep", "ours"]
Reach = Literal["all", "some", "few", "two"]
Params = Mapping[str, Any]
NONE: Params = MappingProxyType({})
CALIBRATE = "calibrate"
"""The method name of rows that run the models; their `params` are those of `CalibrationSettings`."""


@dataclass(frozen=True)
class Variant:
    """A way of carrying a LoRA over.

    Attributes:
        label: what tables and plots call it.
        method: name of a method or preset. params, rank, amount, strength: as in `loraport.transfer`.
        role: "direct" reuse (the strengths among which the best is sought), the "paper"'s method, a "control", a
            "rival" method, a "sweep" over a setting, or "ours".
        reach: on which pairs of LoRA and target it is measured: "all", "some" (every LoRA, half of the targets),
            "few" (two LoRAs, two targets), or "two" (two LoRAs, one target).
    """

    label: str
    method: str
    role: Role
    params: Params = field(default_factory=dict)
    rank: str = "auto"
    amount: float = 1.0
    strength: float = 1.0
    reach: Reach = "all"


STRENGTHS = (0.75, 1.0, 1.25, 1.5, 2.0)


def direct(strength: float) -> Variant:
    """Direct reuse at a strength."""
    label = "direct" if strength == 1 else f"direct x{strength:g}"
    return Variant(label, "direct", "direct", {"strength": strength})


MAIN: tuple[Variant, ...] = (
    *(direct(strength) for strength in STRENGTHS),
    Variant("casa", "casa", "paper"),
    Variant("casa full rank", "casa", "paper", rank="full"),
    Variant("restore-only", "restore-only", "control"),
    Variant("arbitrate-only", "arbitrate-only", "control"),
    Variant("revert", "revert", "control"),
    Variant("random-mask", "random-mask", "control"),
    Variant("uniform-shrink 0.25", "uniform-shrink", "control", {"share": 0.25}),
    Variant("uniform-shrink 0.5", "uniform-shrink", "control", {"share": 0.5}),
    Variant("matched-gain", "matched-gain", "ours", rank="same"),
    Variant("matched-gain power 3", "matched-gain", "ours", {"power": 3.0}, rank="same"),
    Variant("identity", "identity", "control", reach="some"),
    Variant("released-code", "released-code", "paper", reach="some"),
    Variant("reversed-mask", "reversed-mask", "control", reach="some"),
    Variant("full-restore", "full-restore", "control", reach="some"),
    Variant("orthogonal-shift", "orthogonal-shift", "rival", reach="some"),
    Variant("prolora", "prolora", "rival", reach="some"),
    Variant("prolora mixed", "prolora", "rival", {"mixed": True}, reach="some"),
    Variant("cross-lora", "cross-lora", "rival", reach="some"),
    Variant("cluster-transport", "cluster-transport", "rival", reach="some"),
    Variant("matched-gain, gain only", "matched-gain", "ours", {"give_back": 0.0}, rank="same", reach="some"),
    Variant("matched-gain, give back only", "matched-gain", "ours", {"power": 0.0}, rank="same", reach="some"),
)


def _sweep(label: str, params: Params = NONE, *, rank: str = "auto", amount: float = 1.0) -> Variant:
    return Variant(f"casa {label}", "casa", "sweep", params, rank, amount, reach="few")


SWEEPS: tuple[Variant, ...] = (
    *(_sweep(f"q_dom={q:g}", {"q_dom": q}) for q in (0.25, 0.75, 0.95)),
    *(_sweep(f"q_act={q:g}", {"q_act": q}) for q in (0.5, 0.95)),
    *(_sweep(f"tau={tau:g}", {"tau": tau}) for tau in (0.1, 2.0, 10.0)),
    *(_sweep(f"head_energy={e:g}", {"head_energy": e}) for e in (0.5, 0.99)),
    _sweep("density=full", {"density": "full"}),
    *(_sweep(f"rank {rank}", rank=rank) for rank in ("8", "16")),
    _sweep("amount 0.5", amount=0.5),
    Variant("uniform-shrink 0.75", "uniform-shrink", "sweep", {"share": 0.75}, reach="few"),
    Variant("uniform-shrink 1", "uniform-shrink", "sweep", {"share": 1.0}, reach="few"),
)

_SAMPLES: Params = {"samples": 24, "diagnosis": 0}


def _calibrated(what: str, params: Params = NONE, reach: Reach = "two") -> Variant:
    return Variant(f"calibrated{what}", CALIBRATE, "ours", {**_SAMPLES, **params}, reach=reach)


CALIBRATED: tuple[Variant, ...] = (
    _calibrated("", reach="all"),
    _calibrated(", strengths only", {"methods": ()}, "all"),
    _calibrated(", chosen by latents", {"measure": "latents"}, "few"),
    _calibrated(", 6 samples", {"samples": 6}),
    _calibrated(", other noise", {"seed": 1}),
)
"""Rows that run both models, and what each choice of theirs is worth; minutes more (`make evidence CALIBRATED=1`)."""

QUICK = (
    "direct",
    "direct x1.25",
    "direct x1.5",
    "casa",
    "restore-only",
    "revert",
    "uniform-shrink 0.5",
    "matched-gain",
)

SHEET = ("direct", "casa", "uniform-shrink 0.5", "matched-gain", "calibrated")
"""Rows of the contact sheets, besides the anchors and direct reuse at its best strength."""
