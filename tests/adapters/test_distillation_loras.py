"""Distillation LoRAs as their programs write them: each gives the update that is computed here by hand."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import makers
from corpus import CORPUS, write
from formats_page import rows
from loraport.adapters.describe import describe
from loraport.adapters.parse import open_adapter
from loraport.errors import FileError, MismatchError, UsageError
from loraport.models.checkpoint import open_checkpoint
from makers import LoraFile

# What stands before the names of the original network, and alpha / rank, as each program applies it.
CONVENTIONS = {
    "lightning": ("diffusion_model.", 1.0),
    "lightx2v-trained": ("", 1.0),
    "wan22-lightning": ("diffusion_model.", 0.5 / 4),
    "lightx2v-extraction": ("diffusion_model.", 1.0),
    "kjnodes-adaptive": ("diffusion_model.", 1.0),
    "longlive-plug-few-step": ("", 8.0 / 4),
    "longlive-plug-cfg": ("base_model.model.", 1.0),
    "causal-trainers": ("generator.model.", 8.0 / 4),
    "qwen-image-lightning": ("", 4.0 / 4),
    "krea2-turbo-lora": ("diffusion_model.", 1.0),
    "ltx2-distilled": ("diffusion_model.", 1.0),
}
PAIRS = {".lora_down.weight": ".lora_up.weight", ".lora_A.weight": ".lora_B.weight"}


def _by_hand(path: Path, prefix: str, scale: float) -> dict[str, torch.Tensor]:
    tensors = {key: tensor.double() for key, tensor in load_file(path).items()}
    found = {}
    for key, down in tensors.items():
        for ending, other in PAIRS.items():
            if key.endswith(ending):
                stem = key.removesuffix(ending)
                found[stem.removeprefix(prefix)] = scale * tensors[stem + other] @ down
    return found


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_update_is_the_one_computed_by_hand(name, tmp_path):
    path = write(name, tmp_path)
    expected = _by_hand(path, *CONVENTIONS[name])
    adapter = open_adapter(path)
    factored = {layer: update for layer, update in adapter.layers.items() if update.kind == "lora"}
    expected = {
        layer: update for layer, update in expected.items() if not layer.startswith("text_embedding_projection")
    }
    assert factored.keys() == expected.keys()
    for layer, update in factored.items():
        torch.testing.assert_close(update.load().dense().double(), expected[layer], rtol=1e-6, atol=1e-6)
    whole = {layer: update for layer, update in adapter.layers.items() if update.kind == "diff"}
    tensors = load_file(path)
    for layer, update in whole.items():  # has no scale, whatever the file says elsewhere
        assert torch.equal(update.load().dense(), tensors[f"{CONVENTIONS[name][0]}{layer}.diff"].float())
    assert len(adapter.layers) == CORPUS[name]["expect"]["layers"]


def test_gates_that_the_base_has_not_do_not_stand_in_the_way_of_a_target(tmp_path):
    path = write("fastvideo-gates", tmp_path)
    adapter = open_adapter(path, layers_alone=True)
    assert len(adapter.layers) == 20
    assert len(adapter.dropped) == 2 * 4
    assert all("to_gate_compress" in key for key in adapter.dropped)
    assert any("8 keys change what the model does not have" in text for text in adapter.warnings)


ROWS = {
    "LightX2V, extracted": "lightx2v-extraction",
    "LightX2V, Lightning, converted": "lightning",
    "LightX2V, trained": "lightx2v-trained",
    "Wan2.2-Lightning": "wan22-lightning",
    "CausVid, LightX2V of Kijai (KJNodes)": "kjnodes-adaptive",
    "LongLive-Plug, few steps (Wan 14B)": "longlive-plug-few-step",
    "LongLive-Plug, guidance": "longlive-plug-cfg",
    "FastVideo, extracted": "fastvideo",
    "Qwen-Image-Lightning": "qwen-image-lightning",
    "Krea 2 Turbo": "krea2-turbo-lora",
    "LTX-2 distilled": "ltx2-distilled",
    "Self-Forcing, LongLive (torch file)": None,  # TestNests
}


def test_the_table_of_the_page_is_what_is_tested():
    told = rows("LoRA | key | scale")
    assert [row[0] for row in told] == list(ROWS)
    for row in told:
        entry = CORPUS.get(ROWS[row[0]] or "")
        if entry is None:
            continue
        keys = entry["keys"]
        assert row[1].strip("`") in keys
        by_tensor = any(key.endswith((".alpha", ".lora_alpha")) for key in keys)
        assert (row[2] == "alpha / rank") == by_tensor
        assert (row[2] == "a number in the header") == ("alpha" in entry.get("metadata", {}))
        assert (row[2] == "`adapter_config.json`") == ("config" in entry)


class TestAlphaInTheHeader:
    def test_it_is_said_and_can_be_overridden(self, tmp_path):
        path = write("longlive-plug-few-step", tmp_path)
        assert any("the scale 2 was taken from: alpha in the header" in text for text in open_adapter(path).warnings)
        assert {layer.scale for layer in open_adapter(path, scale=1.0).layers.values()} == {1.0}

    @pytest.mark.parametrize(
        ("header", "scale"),
        [
            ({"lora_alpha": "2"}, 0.5),
            ({"lora_alpha": "2", "lora_rank": "4", "alpha": "16"}, 0.5),
            ({"alpha": "None"}, 1.0),
            ({"alpha": "nan"}, 1.0),
            ({"alpha": "-3"}, 1.0),
            ({"alpha": "auto", "rank": "99"}, 1.0),
            ({"alpha": "8", "loraport.version": "0.1.0"}, 1.0),  # folded in already
        ],
    )
    def test_only_a_number_is_one(self, header, scale, tmp_path):
        path = LoraFile(makers.universal(), header).write(tmp_path)
        assert {layer.scale for layer in open_adapter(path).layers.values()} == {scale}

    def test_alpha_tensors_go_before_it(self, tmp_path):
        tensors = makers.spell(makers.factors(), "", makers.same, *makers.KOHYA, alpha=2.0)
        adapter = open_adapter(LoraFile(tensors, {"lora_alpha": "8"}).write(tmp_path))
        assert {layer.scale for layer in adapter.layers.values()} == {0.5}
        assert not adapter.warnings

    def test_another_rank_than_that_of_the_factors_is_refused(self, tmp_path):
        path = LoraFile(makers.universal(), {"alpha": "8", "rank": "16"}).write(tmp_path)
        with pytest.raises(MismatchError, match="--scale") as caught:
            open_adapter(path)
        assert caught.value.what.startswith("the stated rank is not the rank of the factors")
        assert caught.value.values == "rank 16 in the header, rank 4 found"
        assert "adapter_config" not in caught.value.fix


def _lora(seed: int, prefix: str = "base_model.model.") -> dict[str, torch.Tensor]:
    return makers.spell(makers.factors(seed), prefix, makers.same, *makers.PEFT)


def _is(adapter, seed: int) -> bool:
    expected = makers.deltas(makers.factors(seed))
    found = {name: update.load().dense().double() for name, update in adapter.layers.items()}
    return all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


class TestNests:
    @pytest.mark.parametrize(
        "nest",
        [
            ("generator_lora",), ("student_lora",), ("model_state_dict",), ("lora",), ("state_dict",), ("module",),
            ("state", "generator_lora"), ("model",), (),
        ],
    )  # fmt: skip
    def test_a_lora_is_found_wherever_it_lies(self, nest, tmp_path):
        """Beside what a trainer saves along: its configuration, counters, an optimizer."""
        content: object = _lora(3)
        for name in reversed(nest):
            content = {name: content}
        if nest:
            content |= {"step": 700, "config": {"adapter": {"rank": 4, "verbose": True}}, "seeds": [1, 2]}
            content |= {"optimizer": {"exp_avg": torch.zeros(3)}, "epoch": torch.tensor(2)}
        torch.save(content, tmp_path / "generator_lora.pt")
        for path in (tmp_path / "generator_lora.pt", tmp_path):
            adapter = open_adapter(path)
            assert _is(adapter, 3)
            assert (adapter.nest, adapter.warnings) == (nest, ())
            assert describe(adapter.path).layers == len(makers.layers())

    def test_of_several_the_generators_is_taken_and_said_and_another_can_be_chosen(self, tmp_path):
        path = tmp_path / "model.pt"
        torch.save({"critic_lora": _lora(4), "generator_lora": _lora(3), "step": 700}, path)
        adapter = open_adapter(path)
        assert _is(adapter, 3)
        assert adapter.warnings[0] == (
            "using generator_lora; the file also holds critic_lora (--adapter chooses)"
        )  # fmt: skip
        chosen = open_adapter(path, adapter="critic_lora")
        assert _is(chosen, 4)
        assert not chosen.warnings
        torch.save({"critic_lora": _lora(4), "fake_score_lora": _lora(3)}, path)
        with pytest.raises(UsageError, match=r"critic_lora, fake_score_lora(.|\n)*--adapter"):
            open_adapter(path)
        assert _is(open_adapter(path, adapter="fake_score_lora"), 3)
        assert describe(path).kind == "lora"

    def test_a_lora_beside_a_whole_model(self, tmp_path, model_state):
        """A trainer's checkpoint: as a model it is the one, as a LoRA the other."""
        path = tmp_path / "model.pt"
        torch.save({"generator": model_state, "generator_lora": _lora(3, "base_model.model.")}, path)
        assert _is(open_adapter(path), 3)
        assert open_checkpoint(path).nested == "generator"

    def test_names_of_training_wrappers(self, tmp_path):
        wrapped = {
            key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module."): tensor for key, tensor in _lora(3).items()
        }
        torch.save({"generator_lora": wrapped}, tmp_path / "x.pt")
        assert _is(open_adapter(tmp_path / "x.pt"), 3)

    def test_an_adapter_in_the_keys_of_a_part(self, tmp_path):
        both = {
            key.replace("_A.", f"_A.{name}.").replace("_B.", f"_B.{name}."): tensor
            for name, seed in (("student", 3), ("teacher", 4))
            for key, tensor in _lora(seed).items()
        }
        torch.save({"state_dict": both}, tmp_path / "x.pt")
        assert _is(open_adapter(tmp_path / "x.pt", adapter="teacher"), 4)

    def test_the_configuration_beside_it_counts_as_for_safetensors(self, tmp_path):
        torch.save({"generator_lora": _lora(3)}, tmp_path / "generator_lora.pt")
        (tmp_path / "adapter_config.json").write_text(json.dumps(makers.peft_config()))
        adapter = open_adapter(tmp_path / "generator_lora.pt")
        assert {layer.scale for layer in adapter.layers.values()} == {2.0}

    def test_longlive_plug_for_minimax_h3(self, tmp_path):
        """PEFT over diffusers' network, in a torch file beside the training's settings."""
        path = write("minimax-h3-diffusers", tmp_path / "plain")
        tensors = {
            key.replace("transformer.", "base_model.model.", 1): tensor for key, tensor in load_file(path).items()
        }
        torch.save({"student_lora": tensors, "config": {"lora_rank": 4}}, tmp_path / "generator_lora.pt")
        plain, found = open_adapter(path, scale=1.0), open_adapter(tmp_path / "generator_lora.pt")
        assert found.architecture.family.name == "minimax_h3"
        assert found.layers.keys() == plain.layers.keys()
        for name, update in found.layers.items():
            assert torch.equal(update.load().dense(), plain.layers[name].load().dense())

    def test_folders(self, tmp_path):
        torch.save(_lora(3), tmp_path / "adapter_model.bin")
        torch.save(_lora(4), tmp_path / "generator_lora.pt")
        assert open_adapter(tmp_path).path.name == "adapter_model.bin"
        save_file(_lora(5), tmp_path / "adapter_model.safetensors")
        assert open_adapter(tmp_path).path.name == "adapter_model.safetensors"
        other = tmp_path / "other"
        other.mkdir()
        for name in ("a.pt", "b.pt"):
            torch.save(_lora(3), other / name)
        with pytest.raises(FileError, match=r"a\.pt, b\.pt"):
            open_adapter(other)


@pytest.fixture
def model_state() -> dict[str, torch.Tensor]:
    return makers.model()
