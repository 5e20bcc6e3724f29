"""Recipes and run options: what is accepted, however they are made, and how what is not is named."""

import copy
import pickle
import re
from pathlib import Path

import pytest

import loraport
from loraport.adapters.added_lora import AddedLora
from loraport.engine.options import RunOptions
from loraport.engine.rank import RankRule
from loraport.engine.recipe import Recipe
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
        ({"target_lora": ["d.pt", "d.pt:2"]}, "given twice"),
        ({"target_lora": "d.pt=0.5"}, "write d.pt:0.5"),
        ({"target_lora": "d.pt:1:bogus=3"}, r"not understood(.|\n)*bogus=3"),
        ({"target_lora": "d.pt:abc"}, r"not understood(.|\n)*abc"),
        ({"source_lora": "d.pt:1:exprt=low"}, "did you mean 'expert'"),
        ({"target_lora": ["d.pt", "lora.pt:0.5"], "lora": "lora.pt"}, "also given as a distillation LoRA"),
        ({"source_lora": "lora.pt", "lora": "lora.pt"}, "also given as a LoRA of the source"),
        ({"target_lora": {"file": "d.pt", "strenght": 2}}, "did you mean 'strength'"),
        ({"target_lora": {"strength": 2}}, "file is not given"),
        ({"target_lora": [3]}, "target_lora"),
        ({"target_lora": "d.pt:scale=0"}, "scale"),
        ({"nonsense": 1}, "nonsense"),
        ({"sorce": "x"}, "did you mean 'source'"),
        ({"strength": float("nan")}, "strength"),
        ({"scale": 0.0}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"lora": 3}, "lora"),
        ({"params": [1]}, "params"),
        ({"expert": "middle"}, "high, low"),
        ({"target": None, "target_lora": "d.safetensors:nan"}, "not a number"),
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
    with pytest.raises(UsageError, match="cannot be changed"):
        recipe.rank = "12"
    assert {recipe: 1}[Recipe(**BASE, params={"a": [1, {"b": 2}]})] == 1


def test_copies_and_pickles_are_the_same():
    recipe = Recipe(**BASE, params={"a": [1]}, rank=12, scale=2)
    for other in (pickle.loads(pickle.dumps(recipe)), copy.deepcopy(recipe), recipe.model_copy()):
        assert other == recipe
    assert recipe.model_copy(update={"rank": "full"}).rank == "full"
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
        ({"executor": "raid", "workers": -3}, "raid"),
        ({"max_memory": 0}, "memory"),
        ({"max_memory": "lots"}, "memory"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_bad_run_options_are_named(settings, word):
    with pytest.raises(UsageError, match=word):
        RunOptions(**settings)


def _taken(given) -> tuple[AddedLora, ...]:
    return Recipe.build({"lora": "a", "source": "s", "target_lora": given}).target_lora


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("fast.safetensors", {}),
        ("fast.safetensors:0.6", {"strength": 0.6}),
        ("fast.safetensors:-1", {"strength": -1.0}),
        ("fast.safetensors:1e-1", {"strength": 0.1}),
        ("fast.pt:0.5:expert=high", {"strength": 0.5, "expert": "high"}),
        ("fast.pt:adapter=student:scale=2:0.5", {"strength": 0.5, "adapter": "student", "scale": 2.0}),
        ("C:\\loras\\fast.pt:2", {"strength": 2.0}),
    ],
)
def test_a_target_lora_in_text_carries_its_strength_and_choices(text, settings):
    file = re.split(r":(?!\\)", text)[0]
    assert _taken(text) == (AddedLora(file=file, **settings),)
    assert _taken([text, "other.pt"])[0] == _taken({"file": file, **settings})[0] == AddedLora.parse(text)


def test_a_file_that_is_there_is_meant_by_its_whole_name(tmp_path):
    for name in ("fast:2", "fast=2", "fast:expert=high"):  # names that only look like a strength or a choice
        odd = tmp_path / name
        odd.write_bytes(b"")
        assert _taken(odd) == _taken(str(odd)) == (AddedLora(file=str(odd)),)
        assert _taken(f"{odd}:0.5") == (AddedLora(file=str(odd), strength=0.5),)
    assert _taken("zoo:distill-lora:0.5") == (AddedLora(file="zoo:distill-lora", strength=0.5),)


def test_the_same_file_twice_is_noticed_under_any_name(tmp_path, monkeypatch):
    (tmp_path / "fast.pt").write_bytes(b"")
    (tmp_path / "link.pt").symlink_to("fast.pt")
    monkeypatch.chdir(tmp_path)
    for other in ("./fast.pt", tmp_path / "fast.pt", "link.pt:0.5"):
        with pytest.raises(UsageError, match="strengths added up"):
            _taken(["fast.pt", other])
    assert len(_taken(["fast.pt:expert=high", "fast.pt:expert=low"])) == 2  # two LoRAs of one file
    for tail in (":drop=x", ":0.5:0.5", ":scale=1:scale=1", ":", ":middle"):
        with pytest.raises(UsageError, match=r"not understood(.|\n)*expert=\.\.\."):
            _taken(f"fast.pt{tail}")
    with pytest.raises(UsageError, match="to transfer is also"):
        Recipe(lora="./link.pt", source="s", target_lora="fast.pt")
    Recipe(lora="fast.pt", source="s", adapter="one", target_lora="fast.pt:adapter=other")  # two LoRAs of one file
    with pytest.raises(UsageError, match="twice"):
        Recipe(lora="a", source="s", expert="high", target_lora=["fast.pt", "fast.pt:expert=high"])


@pytest.mark.parametrize(
    ("given", "meant", "folder"),
    [("Off", "off", None), ("ON", "on", None), ("./Off", "./Off", "./Off"), (None, None, None)],
)
def test_a_cache_is_switched_in_any_letters(given: str | None, meant: str | None, folder: str | None):
    options = RunOptions(cache=given)
    assert (options.cache, options.cache_folder) == (meant, folder)
