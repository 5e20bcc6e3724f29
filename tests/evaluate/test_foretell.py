"""The strength that weights foretell."""

import pytest
import torch

pytest.importorskip("diffusers")
from loraport.evaluate import foretell
from loraport.evaluate.foretell import LoraOnTarget, foretold
from loraport.evaluate.run import Evidence

STRENGTHS = [1.0, 1.25, 1.5]


def _pair(features, scores, lora="lora", target="target"):
    return LoraOnTarget(lora, target, torch.tensor(features), torch.tensor(scores))


def test_a_single_known_pair_foretells_the_strength_that_suits_it():
    """Held-out pairs may be few; with one of them features have no spread."""
    known = _pair([0.1, 0.2, 0.3, 0.4, 0.5], [3.0, 1.0, 2.0])
    asked = _pair([1.0, -2.0, 0.5, 0.0, 9.0], [0.0, 0.0, 0.0])
    assert foretold([known], asked, STRENGTHS) == pytest.approx(1.25)


def test_what_features_say_is_followed():
    known = [_pair([x, 0.0, 0.0, 0.0, 0.0], [abs(s - 1.25 - 0.25 * x) for s in STRENGTHS]) for x in (-1.0, 1.0)]
    low, high = (foretold(known, _pair([x, 0.0, 0.0, 0.0, 0.0], [0.0] * 3), STRENGTHS) for x in (-1.0, 1.0))
    assert 1.0 < low < 1.25 < high < 1.5


def test_every_rule_loses_what_its_strength_is_worse_by_than_the_best(monkeypatch):
    """Two LoRAs on two targets, all best at 1.25 but one, of which 1.5 is the best."""
    usual, other = [0.3, 0.1, 0.2], [0.9, 0.5, 0.1]
    pairs = [_pair([0.0] * 5, other if (a, b) == ("ring", "step") else usual, a, b)
             for a in ("noir", "ring") for b in ("dmd", "step")]  # fmt: skip
    monkeypatch.setattr(foretell, "pairs", lambda evidence, measure: (STRENGTHS, pairs))
    text = foretell.table(object.__new__(Evidence))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    lost = {(measure, rule): value for measure, rule, value in rows[2:]}
    assert lost["distance to B", "always 1"] == f"{(3 * 0.2 + 0.8) / 4:.4f}"
    assert lost["Frechet", "always 1.25"] == f"{0.4 / 4:.4f}"
    assert lost["distance to B", "mean of the others, its LoRA left out"] == f"{0.4 / 4:.4f}"
    assert len(lost) == 2 * (3 + 4)
    monkeypatch.setattr(foretell, "pairs", lambda evidence, measure: (STRENGTHS, pairs[:2]))
    assert foretell.table(object.__new__(Evidence)) == "Too few pairs.\n"
