"""Writes check-tables.md: what `check` says of the bundled pairs, and what was measured of them.

    python docs/check_table.py                                             what check says
    python docs/check_table.py --evidence A/evidence.json --held-out B/evidence.json

The second form also holds the strength that `check` names against the best one that was measured: on the pairs on which
the rules were chosen (`loraport evaluate -o A`), and on those with a target or a LoRA that is held out (`loraport
evaluate --held-out -o B`). Tables of which no measurement is named stay as they are.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraport.checking.results import CheckResult, LayerCheck
from loraport.checking.run import check_recipes
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe
from loraport.zoo.catalogue import data_file

PAGE = Path(__file__).parent / "check-tables.md"
BEGIN, END = "<!-- made by docs/check_table.py: {} -->", "<!-- end -->"
MEASURES = {"to_aim": "distance to source + LoRA", "frechet": "Frechet distance"}
"""By which the best strength is chosen; smaller is better."""
RULES = (1.0, 1.25)
CONVERTED = 0.0


@dataclass(frozen=True)
class Pair:
    """A LoRA, a target, what check says, whether one of the two is held out, and whether regression made the target."""

    lora: str
    target: str
    found: CheckResult
    held_out: bool
    regression: bool


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", type=Path, default=data_file(""), help="laid out as the bundled data")
    parser.add_argument("--evidence", type=Path, nargs="+", default=[], help="evidence.json of loraport evaluate")
    parser.add_argument("--held-out", type=Path, nargs="+", default=[], help="that of loraport evaluate --held-out")
    parser.add_argument("--print", action="store_true", help="print them instead of writing them into the page")
    args = parser.parse_args()
    pairs = checked(args.family)
    chosen, held = [pair for pair in pairs if not pair.held_out], [pair for pair in pairs if pair.held_out]
    new = [pair for pair in held if pair.target not in {each.target for each in chosen}]
    tables = {"check": [pairs_table(chosen), loras_table(chosen)], "held out": [pairs_table(new), loras_table(held)]}
    tables["kinds"] = kinds_table(pairs)
    for title, files, measured in (("strengths", args.evidence, chosen), ("held-out strengths", args.held_out, held)):
        if files:
            curves = read_curves(files)
            tables[title] = [strengths_table(measured, curves), rules_table(measured, curves)]
    page = PAGE.read_text("utf-8")
    for title, parts in tables.items():
        text = "\n\n".join(parts)
        if args.print:
            print(f"{title}\n\n{text}\n")
            continue
        begin = BEGIN.format(title)
        before, found, after = page.partition(begin)
        if not found:
            raise SystemExit(f"check-tables.md has no place for the tables: {begin}")
        page = f"{before}{begin}\n\n{text}\n\n{END}{after.partition(END)[2]}"
    if not args.print:
        PAGE.write_text(page, encoding="utf-8")


def checked(family: Path) -> list[Pair]:
    """Every LoRA of a family on every target, all layers looked at."""
    cards = {file.parent.name: json.loads(file.read_text("utf-8")) for file in family.glob("models/*/model.json")}
    (source,) = (name for name, card in cards.items() if card["parent"] is None)
    found = []
    for name, card in sorted(cards.items()):
        if card["parent"] is None:
            continue
        added = [str(family / "distillations" / f"{lora}.safetensors") for lora in card.get("loras", ())]
        loras = sorted(family.glob("loras/*.safetensors"))
        models = {"source": family / "models" / source, "target": None if added else family / "models" / name}
        recipes = [Recipe.build({"lora": lora, "target_lora": added, **models}) for lora in loras]
        for lora, result in zip(loras, check_recipes(recipes, RunOptions(), deep=True), strict=True):
            if not isinstance(result, CheckResult):
                raise result
            mine = json.loads(lora.with_suffix(".json").read_text("utf-8"))
            held_out = bool(card.get("held_out") or mine.get("held_out"))
            found.append(Pair(lora.stem, name, result, held_out, "regression" in card["summary"]))
    return found


def read_curves(paths: Sequence[Path]) -> dict[tuple[str, str], dict[float, dict[str, float]]]:
    """(LoRA, target) -> strength of reuse -> measure -> value; of what casa makes of it, under the strength 0."""
    curves: dict[tuple[str, str], dict[float, dict[str, float]]] = {}
    for cell in (cell for path in paths for cell in json.loads(path.read_text("utf-8"))["cells"]):
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


PARTS = {
    "self-attention q and k": ("self_attn.q", "self_attn.k"),
    "self-attention v and o": ("self_attn.v", "self_attn.o"),
    "cross-attention": ("cross_attn.",),
    "feed-forward": ("ffn",),
}


def kinds_table(pairs: Sequence[Pair]) -> list[str]:
    """Figures of targets with weights of their own, by which the kinds of distillation might be told apart; and a
    sentence about how many of them do."""
    first = {pair.target: pair for pair in reversed(pairs) if pair.found.kind and pair.found.kind.name != "a LoRA"}
    names = sorted(first, key=lambda name: (first[name].regression, name))
    rows = []
    for title, measured in _FEATURES.items():
        values = {name: measured(first[name].found) for name in names}
        others = [value for name, value in values.items() if not first[name].regression]
        outside = [not min(others) <= value <= max(others) for name, value in values.items() if first[name].regression]
        rows.append([title, *(f"{values[name]:.2f}" for name in names), "yes" if all(outside) else "no"])
    head = [f"{name} ({'regression' if first[name].regression else 'matching'})" for name in names]
    apart, count = sum(row[-1] == "yes" for row in rows), len(names)
    chance = (
        f"{apart} of {len(rows)} figures place the target made by regression outside the others. If the kind made no "
        f"difference, one of {count} targets would still be the largest or the smallest in {200 / count:.0f} % of all "
        "figures."
    )
    return [markdown(["figure", *head, "regression outside the others"], rows), chance]


def _over(key: str, null: str) -> Callable[[CheckResult], float]:
    """A figure over its null model."""

    def measured(found: CheckResult) -> float:
        figure = found.figure(key)
        assert figure is not None
        return figure.value / next(each.value for each in figure.nulls if null in each.name)

    return measured


def _part(kinds: Sequence[str]) -> Callable[[CheckResult], float]:
    """The drift of some layers over that of all, in root mean squares."""

    def measured(found: CheckResult) -> float:
        return _rms(found, lambda layer: any(kind in layer.kind for kind in kinds)) / _rms(found, lambda _: True)

    return measured


def _rms(found: CheckResult, wanted: Callable[[LayerCheck], bool]) -> float:
    drifts = [layer.figures["drift"] for layer in found.layers if wanted(layer)]
    return math.sqrt(sum(drift**2 for drift in drifts) / len(drifts))


def _deepening(found: CheckResult) -> float:
    return _rms(found, lambda layer: layer.depth == 1.0) / _rms(found, lambda layer: layer.depth == 0.0)


_FEATURES: Mapping[str, Callable[[CheckResult], float]] = {
    "rigidity over a Gaussian's": _over("rigidity_drift", "Gaussian"),
    "head over rounding's": _over("head_drift", "rounding"),
    "directions": lambda found: _value(found, "directions_drift"),
    "drift of the last block over the first": _deepening,
    **{f"drift of {title} over all": _part(kinds) for title, kinds in PARTS.items()},
}


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
