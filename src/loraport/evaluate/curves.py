"""Methods compared as curves: each at every strength, at the strength that suits it best, and by both dials."""

import re
from collections.abc import Sequence
from statistics import fmean

from loraport.core.bootstrap import Estimate
from loraport.evaluate.run import ANCHORS, Evidence
from loraport.evaluate.tables import TITLES, anchor_differences, markdown, means, pooled, show, wins

_AMOUNT = re.compile(r"(.*) ([0-9.]+)$")


def names(evidence: Evidence) -> list[str]:
    """The methods that were measured at several strengths."""
    return list(dict.fromkeys(cell.variant.curve for cell in evidence.cells if cell.variant and cell.variant.curve))


def best_table(evidence: Evidence, by: str = "to_aim", targets: Sequence[str] = ()) -> str:
    """Every method at its best strength against reuse at its own: paired differences, mean over pairs.

    Args:
        by: the measure that chooses the strength, pair by pair and in hindsight, for both.
        targets: only these; all if empty.
    """
    head = ["method", "pairs", "mean strength", *TITLES.values(), "better / worse"]
    rows = []
    for curve in names(evidence):
        pairs = [pair for pair in _measured(evidence, curve) if not targets or pair[1] in targets]
        if not pairs:
            continue
        best = [(evidence.best(*pair, curve=curve, by=by), evidence.best(*pair, by=by)) for pair in pairs]
        row = [curve, str(len(best)), f"{fmean(mine.variant.strength for mine, _ in best if mine.variant):.2f}"]
        found = {name: [mine.estimates[name] - theirs.estimates[name] for mine, theirs in best] for name in TITLES}
        rows.append([*row, *means(found), wins(found[by], by)])
    for anchor in "TS":
        found = {name: anchor_differences(evidence, anchor, name, targets, by) for name in TITLES}
        row = [f"*{ANCHORS[anchor]}*", str(len(found[by])), "1.00" if anchor == "T" else "–"]
        rows.append([*row, *means(found), "–"])
    return markdown(head, rows)


def curve_table(evidence: Evidence, measure: str) -> str:
    """One measure of every method at every strength, mean over the pairs."""
    strengths = sorted({cell.variant.strength for cell in evidence.cells if cell.variant and cell.variant.curve})
    rows = []
    for curve in names(evidence):
        pairs = _measured(evidence, curve)
        columns = [_over(evidence, pairs, curve, strength, measure) for strength in strengths]
        rows.append([curve, str(len(pairs)), *(show(each, 3) for each in columns)])
    pairs = evidence.pairs()
    for anchor in "TS":
        value = pooled([evidence.cell(*pair, anchor).estimates[measure] for pair in pairs])
        shown = [show(value, 3) if strength == 1 else "–" for strength in strengths]
        rows.append([f"*{ANCHORS[anchor]}*", str(len(pairs)), *shown])
    return markdown([TITLES[measure], "pairs", *(f"x {strength:g}" for strength in strengths)], rows)


def surface_table(evidence: Evidence, method: str, target: str) -> str:
    """Distance to source + LoRA by both dials of a method on one target, mean over LoRAs, less that of reuse at
    strength 1; rows are amounts."""
    found = {1.0: method} if method in names(evidence) else {}
    for curve in names(evidence):
        match = _AMOUNT.fullmatch(curve)
        if match and match[1] == method:
            found[float(match[2])] = curve
    amounts = {0.0: "direct"} | dict(sorted(found.items()))
    strengths = sorted({cell.variant.strength for cell in evidence.cells if cell.variant and cell.variant.curve})
    rows = []
    for amount, curve in amounts.items():
        pairs = [pair for pair in _measured(evidence, curve) if pair[1] == target]
        base = [evidence.cell(*pair, "direct").estimates["to_aim"] for pair in pairs]
        cells = []
        for strength in strengths:
            mean = _over(evidence, pairs, curve, strength, "to_aim")
            cells.append(show(mean - pooled(base) if mean else None, 4, signed=True))
        rows.append([f"{amount:g}", *cells])
    return markdown([f"{method}, amount", *(f"x {strength:g}" for strength in strengths)], rows)


def _measured(evidence: Evidence, curve: str) -> list[tuple[str, str]]:
    return [pair for pair in evidence.pairs() if evidence.curve(*pair, curve)]


def _over(
    evidence: Evidence, pairs: Sequence[tuple[str, str]], curve: str, strength: float, name: str
) -> Estimate | None:
    """The mean over pairs; None where one of them was not measured at this strength."""
    cells = [evidence.curve(*pair, curve).get(strength) for pair in pairs]
    return pooled([cell.estimates[name] for cell in cells if cell]) if cells and all(cells) else None
