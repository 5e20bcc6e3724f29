"""The rows of the evidence: methods with their settings, as plain data. A new row is one more `Variant`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["direct", "paper", "control", "rival", "sweep", "ours"]


@dataclass(frozen=True)
class Variant:
    """A way of carrying a LoRA over.

    Attributes:
        label: what tables and plots call it.
        method: name of a method or preset. params, rank, amount: as in `loraport.transfer`.
        role: "direct" reuse (the strengths among which the best is sought), the "paper"'s method, a "control", a
            "rival" method, a "sweep" over a setting, or "ours".
    """

    label: str
    method: str
    role: Role
    params: Mapping[str, bool | float | str] = field(default_factory=dict)
    rank: str = "auto"
    amount: float = 1.0


STRENGTHS = (0.75, 1.0, 1.25, 1.5, 2.0)


def direct(strength: float) -> Variant:
    """Direct reuse at a strength."""
    label = "direct" if strength == 1 else f"direct x{strength:g}"
    return Variant(label, "direct", "direct", {"strength": strength})


MAIN: tuple[Variant, ...] = (
    *(direct(strength) for strength in STRENGTHS),
    Variant("identity", "identity", "control"),
    Variant("casa", "casa", "paper"),
    Variant("casa full rank", "casa", "paper", rank="full"),
    Variant("released-code", "released-code", "paper"),
    Variant("restore-only", "restore-only", "control"),
    Variant("arbitrate-only", "arbitrate-only", "control"),
    Variant("revert", "revert", "control"),
    Variant("random-mask", "random-mask", "control"),
    Variant("reversed-mask", "reversed-mask", "control"),
    Variant("full-restore", "full-restore", "control"),
    Variant("uniform-shrink 0.25", "uniform-shrink", "control", {"share": 0.25}),
    Variant("uniform-shrink 0.5", "uniform-shrink", "control", {"share": 0.5}),
    Variant("orthogonal-shift", "orthogonal-shift", "rival"),
    Variant("prolora", "prolora", "rival"),
    Variant("prolora mixed", "prolora", "rival", {"mixed": True}),
    Variant("cross-lora", "cross-lora", "rival"),
    Variant("cluster-transport", "cluster-transport", "rival"),
    Variant("matched-gain", "matched-gain", "ours", rank="same"),
    Variant("matched-gain power 3", "matched-gain", "ours", {"power": 3.0}, rank="same"),
    Variant("matched-gain, gain only", "matched-gain", "ours", {"give_back": 0.0}, rank="same"),
    Variant("matched-gain, give back only", "matched-gain", "ours", {"power": 0.0}, rank="same"),
)

SWEEPS: tuple[Variant, ...] = (
    *(Variant(f"casa q_dom={q:g}", "casa", "sweep", {"q_dom": q}) for q in (0.25, 0.75, 0.95)),
    *(Variant(f"casa q_act={q:g}", "casa", "sweep", {"q_act": q}) for q in (0.5, 0.95)),
    *(Variant(f"casa tau={tau:g}", "casa", "sweep", {"tau": tau}) for tau in (0.1, 2.0, 10.0)),
    *(Variant(f"casa head_energy={e:g}", "casa", "sweep", {"head_energy": e}) for e in (0.5, 0.99)),
    Variant("casa density=full", "casa", "sweep", {"density": "full"}),
    *(Variant(f"casa rank {rank}", "casa", "sweep", rank=rank) for rank in ("8", "16")),
    *(Variant(f"casa amount {amount:g}", "casa", "sweep", amount=amount) for amount in (0.5,)),
    Variant("uniform-shrink 0.75", "uniform-shrink", "sweep", {"share": 0.75}),
    Variant("uniform-shrink 1", "uniform-shrink", "sweep", {"share": 1.0}),
)

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

SHEET = ("direct", "casa", "uniform-shrink 0.5", "matched-gain")
"""Rows of the contact sheets, besides the anchors and direct reuse at its best strength."""
