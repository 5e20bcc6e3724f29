"""The strength that weights foretell."""

import pytest
import torch

pytest.importorskip("diffusers")
from loraport.evaluate.foretell import LoraOnTarget, foretold

STRENGTHS = [1.0, 1.25, 1.5]


def _pair(features, scores):
    return LoraOnTarget("lora", "target", torch.tensor(features), torch.tensor(scores))


def test_a_single_known_pair_foretells_the_strength_that_suits_it():
    """Held-out pairs may be few; with one of them features have no spread."""
    known = _pair([0.1, 0.2, 0.3, 0.4, 0.5], [3.0, 1.0, 2.0])
    asked = _pair([1.0, -2.0, 0.5, 0.0, 9.0], [0.0, 0.0, 0.0])
    assert foretold([known], asked, STRENGTHS) == pytest.approx(1.25)


def test_what_features_say_is_followed():
    known = [_pair([x, 0.0, 0.0, 0.0, 0.0], [abs(s - 1.25 - 0.25 * x) for s in STRENGTHS]) for x in (-1.0, 1.0)]
    low, high = (foretold(known, _pair([x, 0.0, 0.0, 0.0, 0.0], [0.0] * 3), STRENGTHS) for x in (-1.0, 1.0))
    assert 1.0 < low < 1.25 < high < 1.5
