"""Recipes: what is accepted, and how what is not is named."""

import pytest

from loraport.engine.recipe import RankRule, Recipe
from loraport.errors import UsageError

BASE = {"lora": "a.safetensors", "source": "s", "target": "t"}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("auto", RankRule("auto")),
        ("same", RankRule("same")),
        ("full", RankRule("full")),
        ("48", RankRule("fixed", 48)),
        ("energy=0.99", RankRule("energy", 0.99)),
        ("energy=.5", RankRule("energy", 0.5)),
        ("energy=1", RankRule("energy", 1.0)),
    ],
)
def test_rank_rules_are_read(text, rule):
    assert RankRule.parse(text) == rule
    assert RankRule.parse(str(rule)) == rule


@pytest.mark.parametrize("text", ["0", "-4", "3.5", "energy=0", "energy=1.5", "energy=99", "", "big"])
def test_other_ranks_are_refused(text):
    with pytest.raises(UsageError, match="rank"):
        RankRule.parse(text)


def test_the_default_rank_is_the_inputs_but_at_least_32():
    auto = RankRule("auto")
    assert auto.for_input(8, keeps=False) == RankRule("fixed", 32)
    assert auto.for_input(64, keeps=False) == RankRule("fixed", 64)
    assert auto.for_input(8, keeps=True) == RankRule("fixed", 8)
    assert RankRule("same").for_input(8, keeps=False) == RankRule("fixed", 8)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"amount": 1.5}, "amount"),
        ({"layers": "(["}, "layers"),
        ({"dtype": "int8"}, "dtype"),
        ({"rank": "many"}, "rank"),
        ({"target": None}, "target"),
        ({"target_lora": "d.safetensors"}, "two targets"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_bad_setting_is_named(change, word):
    with pytest.raises(UsageError, match=word):
        Recipe.build(BASE | change)


def test_a_target_lora_may_carry_its_strength(tmp_path):
    def parts(text):
        return Recipe.build({"lora": "a", "source": "s", "target_lora": text}).target_lora_parts()

    assert parts("fast.safetensors:0.6") == ("fast.safetensors", 0.6)
    assert parts("fast.safetensors") == ("fast.safetensors", 1.0)
    odd = tmp_path / "fast:2"  # a name that only looks like a strength
    odd.write_bytes(b"")
    assert parts(str(odd)) == (str(odd), 1.0)
