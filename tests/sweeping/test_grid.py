"""What a grid says: which combinations, under which names, and what is wrong with it."""

from pathlib import Path

import pytest

from loraport.adapters.added_lora import AddedLora
from loraport.engine.recipe import Recipe
from loraport.errors import UsageError
from loraport.sweeping.cells import cells_of, find
from loraport.sweeping.combinations import combinations_of
from loraport.sweeping.grid import AXES, Grid, Target

MODELS = {"source": "s.safetensors", "target": "t.safetensors"}


def labels(**settings) -> list[str]:
    return [choice.label for choice in combinations_of(Grid(**MODELS, **settings))]


def test_every_field_of_a_recipe_is_a_setting_of_a_sweep_too():
    assert set(AXES) | {"params"} <= set(Recipe.model_fields) <= set(Grid.model_fields)
    for name, setting in Recipe.described().items():
        assert Grid.described()[name].flags == setting.flags


def test_one_value_or_several():
    assert labels() == [""]
    assert labels(rank=16, amount=0.5) == [""]
    assert labels(rank=[16, "energy=0.9"], amount=[0.5, 1]) == [
        *("amount=0.5,rank=16", "amount=0.5,rank=energy=0.9", "amount=1,rank=16", "amount=1,rank=energy=0.9")
    ]
    (choice,) = combinations_of(Grid(**MODELS, rank=[16], params={"q_dom": 0.5}))
    assert choice.values == {"rank": "16", "params": {"q_dom": 0.5}}


def test_a_setting_is_said_to_its_method_alone_and_no_cell_is_there_twice():
    params = {"casa.q_dom": [0.4, 0.6]}
    assert labels(method=["direct", "casa"], params=params) == ["direct", "casa,q_dom=0.4", "casa,q_dom=0.6"]
    assert labels(method=["released-code"], params=params) == ["q_dom=0.4", "q_dom=0.6"]
    with pytest.raises(UsageError, match="belongs to another method"):
        labels(method="direct", params=params)


def test_alternatives_are_grids_of_their_own():
    found = combinations_of(
        Grid(**MODELS, rank=8, settings=[{"method": "direct"}, {"method": "casa", "amount": [0.5, 1.0], "rank": 12}])
    )
    assert [each.label for each in found] == ["direct,rank=8", "casa,amount=0.5,rank=12", "casa,amount=1,rank=12"]
    assert found[0].values == {"method": "direct", "rank": "8"}


def test_labels_are_names_on_every_system():
    found = labels(layers=[None, r"self_attn\.[qk]$", r"self_attn\.(q|k)$"])
    assert found == ["layers=none", "layers=self_attn-qk", "layers=self_attn-q-k"]
    assert labels(strength=[-0.5, 1]) == ["strength=-0.5", "strength=1"]
    assert labels(drop=["a/b", "a:b"]) == ["drop=a-b", "drop=a-b~2"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank": []}, "an empty list"),
        ({"rank": [16, "16"]}, "16 is given twice"),
        ({"amount": [0.5, 2]}, "amount"),
        ({"amount": ["much"]}, "amount"),
        ({"strength": [True]}, "takes a value"),
        ({"rank": ["many"]}, "many"),
        ({"method": ["cassa"]}, "did you mean 'casa'"),
        ({"dtype": ["int4"]}, "use one of same, float32, bfloat16, float16"),
        ({"to": "nonsense"}, "nonsense"),
        ({"layers": ["("]}, "regular expression"),
        ({"params": {"q_domm": [0.5]}}, "q_dom"),
        ({"params": {"q_dom": ["big"]}}, "q_dom"),
        ({"params": [0.5]}, "by name"),
        ({"ranks": [16]}, "did you mean 'rank'"),
        ({"settings": [{"ranks": 16}]}, "did you mean 'rank'"),
        ({"settings": []}, "an empty list"),
    ],
)
def test_what_is_wrong_is_said(settings, says):
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        labels(**settings)


def test_a_target_is_needed():
    with pytest.raises(UsageError, match="no target is given"):
        Grid(source="s")
    with pytest.raises(UsageError, match="neither a model nor a LoRA"):
        Grid(source="s", target=[{"name": "fast"}])
    with pytest.raises(UsageError, match="name of a target"):
        Grid(source="s", target=[{"name": "../fast", "target": "t"}])
    with pytest.raises(UsageError, match="5 is neither a model"):
        Grid(source="s", target=5)
    assert Grid(source="s", target_lora="few").targets[0]["target"] is None


def test_a_target_may_have_loras_of_its_own(tmp_path):
    few, cfg = AddedLora(file="few.safetensors", strength=0.5), AddedLora(file="cfg.safetensors")
    assert Target.parse("t + few.safetensors:0.5") == Target(target="t", target_lora=(few,))
    assert Target.parse("+ few.safetensors:0.5 + cfg.safetensors") == Target(target_lora=(few, cfg))
    there = tmp_path / "a + b.safetensors"
    there.write_bytes(b"")
    assert Target.parse(there) == Target(target=str(there))
    both = Grid(source="s", target=["t", "+ few.safetensors:0.5"], target_lora="cfg.safetensors").targets
    assert [each["target_lora"] for each in both] == [(cfg,), (few, cfg)]


def names(loras: list[str], **models) -> list[str]:
    return [cell.name for cell in cells_of(loras, Grid(source="s", **models), Path("made"))]


def test_targets_are_named_after_their_files():
    found = names(
        ["zoo:outline"],
        target=["a/fast.safetensors", "Wan-AI/Turbo", "zoo:dmd", "t.pt + few.safetensors:0.5", "+ few.safetensors",
                {"name": "mine", "target": "x"}],
    )  # fmt: skip
    assert found == [f"{name}/outline" for name in ("fast", "Turbo", "dmd", "t+few@0.5", "few", "mine")]
    found = names(["zoo:outline"], target=["a/transformer", "b/transformer"])
    assert found == ["a-transformer/outline", "b-transformer/outline"]
    with pytest.raises(UsageError, match="same name"):
        names(["zoo:outline"], target=["a/fast.safetensors", "a/fast.pt"])


def test_what_is_named_after_an_expert_is_tried_with_that_one_alone():
    loras, both = ["style_high_noise.pt", "style_low_noise.pt", "plain.pt"], {"expert": ["high", "low"]}
    assert names(loras, target="t", **both) == [
        "t/expert=high/style_high_noise", "t/expert=low/style_low_noise", "t/expert=high/plain", "t/expert=low/plain"
    ]  # fmt: skip
    few = ["+ few_high_noise.pt", "+ few_low_noise.pt"]
    assert names(loras[:2], target=few, **both) == [
        "few_high_noise/expert=high/style_high_noise", "few_low_noise/expert=low/style_low_noise"
    ]  # fmt: skip
    assert names(loras[1:2], target="t", expert="high") == ["t/style_low_noise"]  # as it was asked for
    with pytest.raises(UsageError, match="every target after the other"):
        names(loras[:1], target=few[1], **both)


def test_a_lora_that_is_a_part_of_one_target_is_refused_there_alone():
    cells = cells_of(["x.pt"], Grid(source="s", target=["+ x.pt", "t"]), Path("made"))
    assert [type(cell.recipe) for cell in cells] == [UsageError, Recipe]
    with pytest.raises(UsageError, match="to transfer is also"):
        cells_of(["x.pt"], Grid(source="s", target="+ x.pt"), Path("made"))


class TestWhichLoras:
    """Listing alone."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("a/style.safetensors", "b/style.safetensors", "b/old/motion.pt", "b/preview.png"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        return tmp_path

    def test_two_of_one_name_get_their_folders(self, folder):
        given = [str(folder / "a" / "style.safetensors"), str(folder / "b" / "style.safetensors")]
        found = find(given, folder / "made")
        assert [parts for _, parts in found] == [("a", "style.safetensors"), ("b", "style.safetensors")]
        deep = find([str(folder / "b")], folder / "made", recursive=True)
        assert [parts for _, parts in deep] == [("style.safetensors",), ("old", "motion.safetensors")]

    def test_one_that_is_named_twice_is_there_once(self, folder):
        style = folder / "a" / "style.safetensors"
        assert len(find([str(style), str(folder / "a" / ".." / "a" / "style.safetensors")], folder / "made")) == 1

    def test_patterns(self, folder):
        found = find([str(folder / "b" / "**")], folder / "made")
        assert [Path(lora).name for lora, _ in found] == ["motion.pt", "style.safetensors"]  # and no preview
        with pytest.raises(UsageError, match="no LoRA matches"):
            find([str(folder / "b" / "*.png")], folder / "made")
        with pytest.raises(UsageError, match="no LoRA is given"):
            find([], folder / "made")

    def test_what_cannot_be_told_apart_is_refused(self, folder):
        (folder / "a" / "Style.pt").write_bytes(b"")
        with pytest.raises(UsageError, match=r"Style\.pt"):
            find([str(folder / "a")], folder / "made")
