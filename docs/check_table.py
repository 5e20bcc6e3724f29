"""Writes the tables of check.md: what `check` says of the bundled pairs, and what was measured of them.

    python docs/check_table.py                                       what check says
    loraport evaluate && python docs/check_table.py --evidence evidence-output/evidence.json

The second form also holds the strength that `check` names against the best one that `loraport evaluate` measured.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import loraport
from loraport.checking.results import CheckResult
from loraport.zoo.catalogue import data_file

PAGE = Path(__file__).parent / "check.md"
BEGIN, END = "<!-- made by docs/check_table.py -->", "<!-- end -->"
MEASURES = {"to_aim": "distance to source + LoRA", "frechet": "Frechet distance"}
"""By which the best strength is chosen; smaller is better."""
RULES = (1.0, 1.25)
CONVERTED = 0.0


@dataclass(frozen=True)
class Pair:
    """A LoRA, a target, and what check says."""

    lora: str
    target: str
    found: CheckResult


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", type=Path, default=data_file(""), help="laid out as the bundled data")
    parser.add_argument("--evidence", type=Path, help="evidence.json of loraport evaluate")
    parser.add_argument("--print", action="store_true", help="print the tables instead of writing them into check.md")
    args = parser.parse_args()
    pairs = checked(args.family)
    parts = [pairs_table(pairs), loras_table(pairs)]
    if args.evidence is not None:
        curves = read_curves(args.evidence)
        parts += [strengths_table(pairs, curves), rules_table(pairs, curves)]
    text = "\n\n".join(parts)
    if args.print:
        print(text)
        return
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def checked(family: Path) -> list[Pair]:
    """Every LoRA of a family on every target, all layers looked at."""
    cards = {file.parent.name: json.loads(file.read_text("utf-8")) for file in family.glob("models/*/model.json")}
    (source,) = (name for name, card in cards.items() if card["parent"] is None)
    found = []
    for name, card in sorted(cards.items()):
        if card["parent"] is None or card.get("held_out"):
            continue
        files = [family / "distillations" / f"{lora}.safetensors" for lora in card.get("loras", ())]
        for lora in sorted(family.glob("loras/*.safetensors")):
            if json.loads(lora.with_suffix(".json").read_text("utf-8")).get("held_out"):
                continue
            result = loraport.check(
                lora, source=family / "models" / source, target=None if files else family / "models" / name,
                target_lora=files, deep=True,
            )  # fmt: skip
            found.append(Pair(lora.stem, name, result))
    return found


def read_curves(path: Path) -> dict[tuple[str, str], dict[float, dict[str, float]]]:
    """(LoRA, target) -> strength of reuse -> measure -> value; of what casa makes of it, under the strength 0."""
    curves: dict[tuple[str, str], dict[float, dict[str, float]]] = {}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if (cell.get("method") == "direct" and not cell.get("by_step")) or cell["label"] == "casa":
            values = {name: cell["estimates"][name]["value"] for name in MEASURES}
            kept = cell["gain_ratio"]["taught"]
            values["kept"] = float("nan") if kept is None else kept["value"]
            strength = CONVERTED if cell["label"] == "casa" else float(cell["strength"])
            curves.setdefault((cell["lora"], cell["target"]), {})[strength] = values
    return curves


def pairs_table(pairs: Sequence[Pair]) -> str:
    """What is said of each pair of models."""
    head = ["target", "drift", "norm ratio", "rigidity (Gaussian)", "head (rounding)", "directions", "made by"]
    first = {pair.target: pair.found for pair in reversed(pairs)}
    rows = [
        [
            target, _percent(found, "drift"), _plain(found, "norm_ratio", 3),
            f"{_percent(found, 'rigidity_drift')} ({_null(found, 'rigidity_drift', 'Gaussian', share=True)})",
            f"{_plain(found, 'head_drift', 1)} ({_null(found, 'head_drift', 'rounding')})",
            _percent(found, "directions_drift"), found.kind.name if found.kind else "",
        ]
        for target, found in sorted(first.items())
    ]  # fmt: skip
    return markdown(head, rows)


def loras_table(pairs: Sequence[Pair]) -> str:
    """What is said of each LoRA on each target."""
    head = ["LoRA", "target", "LoRA / drift", "dose", "head of the LoRA", "change by casa", "verdict"]
    rows = [
        [
            pair.lora, pair.target, _plain(pair.found, "update_over_drift", 1), f"{_value(pair.found, 'dose'):+.3f}",
            _plain(pair.found, "head_lora", 1), _plain(pair.found, "change", 2), _verdict(pair.found),
        ]
        for pair in pairs
    ]  # fmt: skip
    return markdown(head, rows)


Curves = Mapping[tuple[str, str], Mapping[float, Mapping[str, float]]]


def strengths_table(pairs: Sequence[Pair], curves: Curves) -> str:
    """The strength that check names beside the best that was measured, pair by pair."""
    head = ["LoRA", "target", "drift", "check", *(f"best by {title}" for title in MEASURES.values()), "kept there"]
    rows = []
    for pair in pairs:
        curve = curves.get((pair.lora, pair.target))
        if curve is None or pair.found.strength is None:
            continue
        best = [f"{_best(curve, name):g}" for name in MEASURES]
        named = _named(pair, curve)
        said = pair.found.verdict if named == CONVERTED else f"{pair.found.strength:g}"
        rows.append([pair.lora, pair.target, _percent(pair.found, "drift"), said, *best, f"{curve[named]['kept']:.2f}"])
    return markdown(head, rows)


def rules_table(pairs: Sequence[Pair], curves: Curves) -> str:
    """What is lost against the best strength in hindsight, mean over pairs: by check, and by fixed strengths."""
    measured = [(pair, curves[pair.lora, pair.target]) for pair in pairs if (pair.lora, pair.target) in curves]
    rows = []
    rules = {"as check says": None} | {f"always {strength:g}": strength for strength in RULES}
    for rule, fixed in rules.items():
        row = [rule, str(len(measured))]
        for name in MEASURES:
            lost = [
                curve[_nearest(curve, fixed) if fixed else _named(pair, curve)][name] - curve[_best(curve, name)][name]
                for pair, curve in measured
            ]
            row.append(f"{sum(lost) / len(lost):.4f}")
        kept = [curve[_nearest(curve, fixed) if fixed else _named(pair, curve)]["kept"] for pair, curve in measured]
        kept = [value for value in kept if not math.isnan(value)]
        rows.append([*row, f"{sum(kept) / len(kept):.2f}"])
    return markdown(["strength", "pairs", *(f"lost in {title}" for title in MEASURES.values()), "kept"], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _best(curve: Mapping[float, Mapping[str, float]], measure: str) -> float:
    return min((each for each in curve if each != CONVERTED), key=lambda strength: curve[strength][measure])


def _nearest(curve: Mapping[float, Mapping[str, float]], strength: float) -> float:
    return min((each for each in curve if each != CONVERTED), key=lambda each: abs(each - strength))


def _named(pair: Pair, curve: Mapping[float, Mapping[str, float]]) -> float:
    """The strength that check names, or what stands for its conversion."""
    return CONVERTED if pair.found.verdict == "convert" else _nearest(curve, pair.found.strength or 1.0)


def _value(found: CheckResult, key: str) -> float:
    figure = found.figure(key)
    return float("nan") if figure is None else figure.value


def _percent(found: CheckResult, key: str) -> str:
    return f"{100 * _value(found, key):.1f} %"


def _plain(found: CheckResult, key: str, digits: int) -> str:
    return f"{_value(found, key):.{digits}f}"


def _null(found: CheckResult, key: str, name: str, *, share: bool = False) -> str:
    figure = found.figure(key)
    values = [null.value for null in figure.nulls if name in null.name] if figure else []
    return "–" if not values else f"{100 * values[0]:.1f} %" if share else f"{values[0]:.1f}"


def _verdict(found: CheckResult) -> str:
    return f"{found.verdict} {found.strength:g}" if found.verdict == "use at strength" else found.verdict


if __name__ == "__main__":
    main()
