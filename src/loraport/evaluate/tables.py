"""Evidence as Markdown: one table of all methods over all pairs, and one table a pair."""

from collections.abc import Mapping, Sequence

import torch

from loraport.core.bootstrap import Estimate
from loraport.evaluate.run import ANCHORS, FUNCTION, HIGHER_IS_BETTER, Evidence, ScoredCell

CLEAR = 2.0
"""A difference counts when it is larger than this many of its standard errors."""

CONTRASTS = (
    ("identity", "direct"),
    ("casa", "direct"),
    ("casa", "best"),
    ("casa", "best by Frechet"),
    ("casa full rank", "casa"),
    ("released-code", "casa"),
    ("casa", "restore-only"),
    ("restore-only", "direct"),
    ("restore-only", "random-mask"),
    ("restore-only", "reversed-mask"),
    ("casa", "uniform-shrink 0.5"),
    ("uniform-shrink 0.5", "direct"),
    ("subspace-restore", "direct"),
    ("subspace-restore", "uniform-shrink 0.5"),
    ("direct x1.25", "direct"),
    ("casa x1.25", "direct x1.25"),
    ("subspace-restore x1.25", "direct x1.25"),
    ("matched-gain", "direct"),
    ("distillation LoRA 32", "direct"),
    ("calibrated", "direct"),
    ("calibrated", "direct x1.25"),
    ("calibrated", "best"),
    ("calibrated", "best by Frechet"),
    ("calibrated, strengths only", "best"),
    ("calibrated", "casa"),
)

BEST = {"best": "to_aim", "best by Frechet": "frechet"}
"""Direct reuse at the strength that suits it best, chosen in hindsight by this measure."""

TITLES = {
    "taught": "P(taught)",
    "statistic": "statistic",
    "accuracy": "accuracy",
    "faults": "faults",
    "frechet": "Frechet",
    "to_aim": "distance to B",
    "motion": "motion",
}
"""Of the measures that rows are compared by."""


def verdict(measure: str, difference: Estimate) -> int:
    """+1 if the difference is clearly an improvement, -1 if clearly a loss, 0 within noise."""
    if abs(difference.value) <= CLEAR * difference.error:
        return 0
    return 1 if (difference.value > 0) == HIGHER_IS_BETTER[measure] else -1


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over cells, draw by draw: cells share prompts, so they share draws."""
    draws = torch.stack([estimate.draws for estimate in estimates]).mean(0)
    return Estimate(sum(estimate.value for estimate in estimates) / len(estimates), draws)


def show(estimate: Estimate | None, digits: int = 2, *, signed: bool = False) -> str:
    """`0.41 ± 0.03`; a dash for what is not there."""
    if estimate is None:
        return "–"
    value = f"{estimate.value:+.{digits}f}" if signed else f"{estimate.value:.{digits}f}"
    return f"{value.replace('-', '−')} ± {estimate.error:.{digits}f}"


def means(found: Mapping[str, Sequence[Estimate]]) -> list[str]:
    """Mean differences as they are printed, a cell a measure."""
    return [show(pooled(found[name]), 3, signed=True) for name in TITLES]


def wins(found: Sequence[Estimate], measure: str = "to_aim") -> str:
    """How many differences are clear improvements, and how many clear losses."""
    verdicts = [verdict(measure, difference) for difference in found]
    return f"{verdicts.count(1)} / {verdicts.count(-1)}"


def differences(
    evidence: Evidence, label: str, measure: str, rival: str = "direct", only: Sequence[str] = ()
) -> list[Estimate]:
    """Paired differences of a row to another (or to direct reuse at its best, see `BEST`), one a pair that has both.

    Args:
        only: names of LoRAs or targets; pairs that have none of them are left out. Empty for all pairs.
    """
    found = []
    for lora, target in evidence.pairs():
        cells = {cell.label: cell for cell in evidence.of_pair(lora, target)}
        wanted = not only or lora in only or target in only
        if label in cells and (rival in BEST or rival in cells) and wanted:
            other = evidence.best(lora, target, by=BEST[rival]) if rival in BEST else cells[rival]
            found.append(cells[label].estimates[measure] - other.estimates[measure])
    return found


def main_table(evidence: Evidence) -> str:
    """All rows over all pairs: mean gain ratio, mean paired difference to direct, and how often it wins and loses."""
    head = ["method", "pairs", "FGR (judge)", "FGR (statistic)"]
    head += [f"{title} − direct" for title in TITLES.values()]
    head += ["wins / losses in distance: direct", "best strength"]
    rows = []
    for label in _labels(evidence):
        cells = [cell for cell in evidence.cells if cell.label == label and cell.variant]
        ratios = [[c.gain_ratios[name] for c in cells if c.gain_ratios[name]] for name in FUNCTION]
        row = [label, str(len(cells))] + [show(pooled(r)) if r else "–" for r in ratios]  # type: ignore[arg-type]
        row += means({name: differences(evidence, label, name) for name in TITLES})
        rows.append([*row, *(wins(differences(evidence, label, "to_aim", rival)) for rival in ("direct", "best"))])
    for anchor in "TSC":
        found = {name: anchor_differences(evidence, anchor, name) for name in TITLES}
        row = [f"*{ANCHORS[anchor]}*", str(len(evidence.pairs())), "–", "–"]
        rows.append([*row, *means(found), "–", "–"])
    return markdown(head, rows)


def anchor_differences(
    evidence: Evidence, anchor: str, measure: str, only: Sequence[str] = (), by: str | None = None
) -> list[Estimate]:
    """Paired differences of an anchor of each target (S, T or C) to direct reuse, one a pair.

    Args:
        by: the measure by which reuse is at its best strength; at strength 1 if None.
    """
    found = []
    for lora, target in evidence.pairs():
        if not only or lora in only or target in only:
            direct = evidence.cell(lora, target, "direct") if by is None else evidence.best(lora, target, by=by)
            found.append(evidence.cell(lora, target, anchor).estimates[measure] - direct.estimates[measure])
    return found


def contrast_table(
    evidence: Evidence, only: Sequence[str] = (), contrasts: Sequence[tuple[str, str]] = CONTRASTS
) -> str:
    """Row against row: paired differences, mean over all pairs (that have one of the named LoRAs or targets)."""
    head = ["first − second", "pairs", *TITLES.values(), "better / worse in distance"]
    known = _labels(evidence)
    rows = []
    for first, second in contrasts:
        if first not in known or second not in (*known, *BEST):
            continue
        found = {name: differences(evidence, first, name, second, only) for name in TITLES}
        if not found["to_aim"]:
            continue
        rival = {"best": "direct at its best strength", "best by Frechet": "the same by Frechet"}.get(second, second)
        rows.append([f"{first} − {rival}", str(len(found["to_aim"])), *means(found), wins(found["to_aim"])])
    return markdown(head, rows)


def ablation_table(evidence: Evidence) -> str:
    """What each choice of the calibration is worth: every other calibrated row against the one with all defaults."""
    others = [label for label in _labels(evidence) if label.startswith("calibrated") and label != "calibrated"]
    return contrast_table(evidence, contrasts=[(label, "calibrated") for label in others])


def reuse_table(evidence: Evidence) -> str:
    """What reuse of the LoRA as it is loses, a line a pair: the share of the gain, and quality beside source + LoRA."""
    head = ["LoRA", "target", "FGR (judge)", "FGR (statistic)", "accuracy", "of B", "Frechet", "of B", "best strength"]
    rows = []
    for lora, target in evidence.pairs():
        cells = {cell.label: cell for cell in evidence.of_pair(lora, target)}
        if "direct" not in cells:
            continue
        direct, aim = cells["direct"], evidence.cell(lora, "", "B")
        row = [lora, target, *(show(direct.gain_ratios[name]) for name in FUNCTION)]
        row += [show(cell.estimates[name]) for name in ("accuracy", "frechet") for cell in (direct, aim)]
        rows.append([*row, evidence.best(lora, target).label.removeprefix("direct x").replace("direct", "1")])
    return markdown(head, rows)


def cost_table(evidence: Evidence) -> str:
    """What the calibrations took, and the forward passes of source + target, a line a pair."""
    head = ["LoRA", "target", "share in clips before", "after", "taken", "gap as it is", "gap", "passes"]
    rows = []
    for lora, target in evidence.pairs():
        for cell in evidence.of_pair(lora, target):
            facts = cell.transfer
            if cell.label != "calibrated":
                continue
            row = [lora, target, *(f"{100 * facts[f'share_in_clips_{when}']:.0f} %" for when in ("before", "after"))]
            row += [f"reuse at {facts['strength']:g}" if facts["reuse"] else "a weight-space method"]
            row += [f"{facts['gap_as_it_is']:.3f}", f"{facts['gap']:.3f}"]
            rows.append([*row, f"{facts['passes_source']:.0f} + {facts['passes_target']:.0f}"])
    return markdown(head, rows)


def pair_table(evidence: Evidence, lora: str, target: str) -> str:
    """One LoRA on one target: the anchors and every row, value ± standard error."""
    head = ["", *TITLES.values(), "FGR (judge)", "FGR (statistic)"]
    best = evidence.best(lora, target).label
    rows = [_row(evidence.cell(lora, "", "real"), "drawn in the taught variant")]
    rows += [_row(evidence.cell(lora, "", key), f"{key}: {ANCHORS[key]}") for key in "AB"]
    rows += [_row(evidence.cell(lora, target, key), f"{key}: {ANCHORS[key]}") for key in "STC"]
    for cell in evidence.of_pair(lora, target):
        rows.append(_row(cell, f"**{cell.label}**" if cell.label == best else cell.label))
    return markdown(head, rows)


def _row(cell: ScoredCell, title: str) -> list[str]:
    row = [title, *(show(cell.estimates.get(name)) for name in TITLES)]
    return row + [show(cell.gain_ratios.get(name)) for name in FUNCTION]


def _labels(evidence: Evidence) -> list[str]:
    return list(dict.fromkeys(cell.label for cell in evidence.cells if cell.variant))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"
