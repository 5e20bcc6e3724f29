"""The rows of the evidence: methods with their settings, as plain data. A new row is one more `Variant`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from loraport.errors import UsageError
from loraport.methods import registry

Role = Literal["direct", "paper", "control", "rival", "sweep", "ours"]
Reach = Literal["all", "two", "some", "few"]
NONE: Mapping[str, Any] = MappingProxyType({})
DISTILLATION_LORA = "distillation-lora"
"""The method name of rows that come from the other side: source + LoRA with the distillation put on it as a LoRA of
`params["rank"]`."""
CALIBRATE = "calibrate"
"""The method name of rows that run the models; their `params` are those of `CalibrationSettings`."""


@dataclass(frozen=True)
class Variant:
    """A way of carrying a LoRA over.

    Attributes:
        label: what tables and plots call it.
        method: name of a method or preset.
        role: "direct" reuse (the strengths among which the best is sought), the "paper"'s method, a "control", a
            "rival" method, a "sweep" over a setting, or "ours".
        params: of the method.
        rank: as in `loraport.transfer`.
        amount: likewise.
        strength: likewise.
        reach: on which pairs of LoRA and target it is measured: "all", "two" (every LoRA, two targets), "some" (every
            LoRA, one target), or "few" (two LoRAs, one target).
        by_step: strengths of equal parts of the steps, first to last, on top of `strength`; 1 throughout if empty.
        half: the half of the steps in which the method's result is used, reuse at `strength` in the other.
        layers: a pattern; layers that it does not match are reused as they are.
        curve: what the rows that differ from it in strength only are called together.
    """

    label: str
    method: str
    role: Role
    params: Mapping[str, Any] = field(default_factory=dict)
    rank: str = "auto"
    amount: float = 1.0
    strength: float = 1.0
    reach: Reach = "all"
    by_step: tuple[float, ...] = ()
    half: Literal["", "first", "second"] = ""
    layers: str | None = None
    curve: str = ""


STRENGTHS = (0.75, 1.0, 1.25, 1.5, 2.0)
AMOUNTS = (0.5,)
"""Of the surfaces, besides the whole."""


def over_strengths(variant: Variant, strengths: Sequence[float] = STRENGTHS) -> tuple[Variant, ...]:
    """A row at several strengths of the LoRA: methods are compared as curves, since strength is free to everybody."""
    label = variant.label
    return tuple(
        replace(variant, label=label if strength == 1 else f"{label} x{strength:g}", strength=strength, curve=label)
        for strength in strengths
    )


def direct(strength: float) -> Variant:
    """Direct reuse at a strength."""
    return over_strengths(Variant("direct", "direct", "direct"), (strength,))[0]


def _shrink(share: float) -> Variant:
    return Variant(f"uniform-shrink {share:g}", "uniform-shrink", "control", {"share": share})


DIALS = (
    Variant("casa", "casa", "paper"),
    Variant("restore-only", "restore-only", "control"),
    Variant("random-mask", "random-mask", "control"),
    Variant("subspace-restore", "subspace-restore", "ours"),
)
"""Methods with both dials, strength and amount. A uniform shrink has its share instead of an amount."""

CONTROLS = ("restore-only", "random-mask")
"""Of the dials, what is measured on all pairs at strength 1 only."""
CURVES: tuple[Variant, ...] = (
    *over_strengths(Variant("direct", "direct", "direct")),
    *(
        replace(row, reach="some") if row.strength != 1 and row.curve in CONTROLS else row
        for variant in (*DIALS, _shrink(0.5))
        for row in over_strengths(variant)
    ),
)

OTHERS: tuple[Variant, ...] = (
    Variant("revert", "revert", "control"),
    Variant("arbitrate-only", "arbitrate-only", "control"),
    Variant("matched-gain", "matched-gain", "ours", rank="same"),
    Variant("identity", "identity", "control"),
    Variant("released-code", "released-code", "paper"),
    Variant("casa full rank", "casa", "paper", rank="full"),
    Variant("reversed-mask", "reversed-mask", "control"),
    Variant("full-restore", "full-restore", "control"),
    Variant("orthogonal-shift", "orthogonal-shift", "rival"),
    Variant("prolora", "prolora", "rival"),
    Variant("prolora mixed", "prolora", "rival", {"mixed": True}),
    Variant("cross-lora", "cross-lora", "rival"),
    Variant("cluster-transport", "cluster-transport", "rival"),
)
EVERYWHERE = ("revert", "arbitrate-only", "matched-gain")
"""Of these others, what is measured on all pairs, at strength 1."""
OVER_STRENGTHS: tuple[Variant, ...] = tuple(
    row if row.label in EVERYWHERE else replace(row, reach="some")
    for variant in OTHERS
    for row in over_strengths(variant, (0.75, 1.0, 1.25, 2.0))
)

SURFACE: tuple[Variant, ...] = tuple(
    replace(row, reach="some")
    for part in (
        *(replace(v, label=f"{v.label} {a:g}", amount=a) for v in DIALS for a in AMOUNTS),
        *(_shrink(share) for share in (0.25, 0.75, 1.0)),
    )
    for row in over_strengths(part, (0.75, 1.0, 1.25))
)
SIDES: tuple[Variant, ...] = tuple(
    replace(DIALS[3], label=f"subspace-restore {side}", params={"side": side}, reach="some")
    for side in ("inputs", "outputs", "corner")
)

GROUPS = {
    "self-attention": "self_attn",
    "cross-attention": "cross_attn",
    "feed-forward": "ffn",
    "first half of the blocks": r"blocks\.[01]\.",
    "second half of the blocks": r"blocks\.[23]\.",
}
"""Of the layers of the bundled models."""
WITHOUT_PRICE = ("cross-attention", "first half of the blocks")
"""Where restoring costs no faults on the first target; measured on all pairs at strength 1."""
IN_PART: tuple[Variant, ...] = tuple(
    part if part.label.endswith(WITHOUT_PRICE) else replace(part, reach="some")
    for variant in (DIALS[0], _shrink(0.5))
    for part in (
        *(replace(variant, label=f"{variant.label}, {name}", layers=layers) for name, layers in GROUPS.items()),
        replace(variant, label=f"{variant.label}, first half of the steps", half="first"),
        replace(variant, label=f"{variant.label}, second half of the steps", half="second"),
    )
)
"""The method in some layers or steps only."""

OTHER_SIDE: tuple[Variant, ...] = tuple(
    row
    for rank in (8, 32)
    for row in over_strengths(
        Variant(f"distillation LoRA {rank}", DISTILLATION_LORA, "rival", {"rank": rank}, reach="some")
    )
)

MAIN: tuple[Variant, ...] = (
    *CURVES,
    *OVER_STRENGTHS,
    *SURFACE,
    *SIDES,
    *IN_PART,
    *OTHER_SIDE,
)


def _sweep(label: str, params: Mapping[str, Any] = NONE, *, rank: str = "auto") -> Variant:
    return Variant(f"casa {label}", "casa", "sweep", params, rank, reach="few")


SWEEPS: tuple[Variant, ...] = (
    *(_sweep(f"q_dom={q:g}", {"q_dom": q}) for q in (0.25, 0.75, 0.95)),
    *(_sweep(f"q_act={q:g}", {"q_act": q}) for q in (0.5, 0.95)),
    *(_sweep(f"tau={tau:g}", {"tau": tau}) for tau in (0.1, 2.0, 10.0)),
    *(_sweep(f"head_energy={e:g}", {"head_energy": e}) for e in (0.5, 0.99)),
    _sweep("density=full", {"density": "full"}),
    *(_sweep(f"rank {rank}", rank=rank) for rank in ("8", "16")),
)

EARLY_LATE = (0.75, 1.0, 1.25)
BY_STEP: tuple[Variant, ...] = tuple(
    Variant(f"direct, {early:g} then {late:g}", "direct", "sweep", reach="two", by_step=(early, late))
    for early in EARLY_LATE
    for late in EARLY_LATE
    if early != late
)
"""Reuse at one strength in the first half of the steps and another in the second."""

_SAMPLES: Mapping[str, Any] = {"samples": 24, "diagnosis": 0}


def _calibrated(what: str, params: Mapping[str, Any] = NONE, reach: Reach = "few") -> Variant:
    return Variant(f"calibrated{what}", CALIBRATE, "ours", {**_SAMPLES, **params}, reach=reach)


CALIBRATED: tuple[Variant, ...] = (
    _calibrated("", reach="all"),
    _calibrated(", strengths only", {"methods": ()}, "some"),
    _calibrated(", one round", {"rounds": 1}, "some"),
    _calibrated(", chosen by latents", {"measure": "latents"}),
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

SHEET = ("direct", "casa", "casa, first half of the blocks", "uniform-shrink 0.5", "calibrated")
"""Rows of the contact sheets, besides the anchors and direct reuse at its best strength."""


def chosen(labels: Sequence[str], *, quick: bool, calibrated: bool = False, held_out: bool = False) -> list[Variant]:
    """The rows to run: those named (rows, methods or presets), else all of the full or quick form.

    Args:
        labels: the names.
        quick: the main rows only.
        calibrated: also those that run both models.
        held_out: of the full form those that are measured on all pairs.

    Raises:
        UsageError: a name is neither a row nor a method.
    """
    known = {variant.label: variant for variant in (*MAIN, *BY_STEP, *SWEEPS, *CALIBRATED)}
    if not labels:
        rows = [known[label] for label in QUICK] if quick else [*MAIN, *BY_STEP, *SWEEPS]
        if held_out:
            rows = [row for row in rows if row.reach == "all"]
        extra = CALIBRATED[:1] if quick or held_out else CALIBRATED
        return [*rows, *extra] if calibrated else rows
    rows = [direct(strength) for strength in STRENGTHS]
    for label in labels:
        variant = known.get(label)
        if variant is None:
            if label not in registry.names() and label not in registry.presets():
                raise UsageError(f"there is no method or row {label!r}", values=f"rows: {', '.join(known)}")
            variant = Variant(label, label, "ours")
        rows += [variant] if variant not in rows else []
    return rows
