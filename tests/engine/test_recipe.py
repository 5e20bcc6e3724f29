"""Recipes and run options: what is accepted, however they are made, and how what is not is named."""

import copy
import pickle
from pathlib import Path

import pytest

import loraport
from loraport.engine.recipe import RankRule, Recipe, RunOptions
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
        ({"sorce": "x"}, "did you mean 'source'"),
        ({"strength": float("nan")}, "strength"),
        ({"scale": 0.0}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"lora": 3}, "lora"),
        ({"params": [1]}, "params"),
        ({"expert": "middle"}, "high, low"),
        ({"target": None, "target_lora": "d.safetensors:nan"}, "no number"),
    ],
)
def test_a_bad_setting_is_named_however_the_recipe_is_made(change, word):
    with pytest.raises(UsageError, match=word):
        Recipe.build(BASE | change)
    with pytest.raises(UsageError, match=word):
        Recipe(**(BASE | change))
    with pytest.raises(UsageError, match=word):
        Recipe(**BASE).model_copy(update=change)
    with pytest.raises(UsageError, match=word):
        Recipe.model_validate(BASE | change)
    if "nonsense" not in change and "sorce" not in change:
        smuggled = Recipe.model_construct(**(BASE | change))
        with pytest.raises(UsageError, match=word):
            pickle.loads(pickle.dumps(smuggled))


def test_what_is_missing_is_named():
    with pytest.raises(UsageError, match="source is not given"):
        Recipe(lora="a")
    with pytest.raises(UsageError, match="target is not given"):
        Recipe(lora="a", source="s")
    with pytest.raises(UsageError, match="target is not given"):
        loraport.plan(Recipe(lora="a", source="s"))


def test_a_recipe_does_not_change():
    values = [1, {"b": 2}]
    recipe = Recipe(**BASE, params={"a": values})
    values.append(3)
    assert recipe.params == {"a": (1, {"b": 2})}
    for change in (lambda p: p.update(a=3), lambda p: p.pop("a"), lambda p: p.__setitem__("a", 3), lambda p: p.clear()):
        with pytest.raises(TypeError):
            change(recipe.params)
    with pytest.raises(TypeError):
        recipe.params["a"][1]["b"] = 3
    with pytest.raises(UsageError, match="does not change"):
        recipe.rank = "12"
    assert {recipe: 1}[Recipe(**BASE, params={"a": [1, {"b": 2}]})] == 1


def test_copies_and_pickles_are_the_same():
    recipe = Recipe(**BASE, params={"a": [1]}, rank=12, scale=2)
    for other in (pickle.loads(pickle.dumps(recipe)), copy.deepcopy(recipe), recipe.model_copy()):
        assert other == recipe
    assert recipe.model_copy(update={"rank": "full"}).rank_rule == RankRule("full")
    options = RunOptions(max_memory="16GB")
    assert options.max_memory == 16 * 10**9
    assert pickle.loads(pickle.dumps(options)) == options


def test_paths_are_as_good_as_texts():
    assert Recipe(**(BASE | {"source": Path("s")})) == Recipe(**BASE)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"workers": -3}, "workers"),
        ({"workers": 10**23}, "workers"),
        ({"executor": "ray", "workers": -3}, "ray"),
        ({"max_memory": 0}, "memory"),
        ({"max_memory": "lots"}, "memory"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_bad_run_options_are_named(settings, word):
    with pytest.raises(UsageError, match=word):
        RunOptions(**settings)


def test_a_target_lora_may_carry_its_strength(tmp_path):
    def parts(text):
        return Recipe.build({"lora": "a", "source": "s", "target_lora": text}).target_lora_parts()

    assert parts("fast.safetensors:0.6") == ("fast.safetensors", 0.6)
    assert parts("fast.safetensors") == ("fast.safetensors", 1.0)
    odd = tmp_path / "fast:2"  # a name that only looks like a strength
    odd.write_bytes(b"")
    assert parts(str(odd)) == (str(odd), 1.0)
