"""`describe`: what a file is, and what is odd about it, from its header."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import makers
from loraport.adapters.describe import describe
from loraport.adapters.dialect import PROFILES
from loraport.adapters.grammar import SET_BIAS, grammar
from loraport.errors import FileError
from loraport.models.families import families
from loraport.models.keymap import build, keymap_of
from makers import KOHYA, PEFT, LoraFile, flat, same, spell


def _findings(tensors: dict, tmp_path, metadata: dict | None = None) -> str:
    return "\n".join(describe(LoraFile(tensors, metadata or {}).write(tmp_path)).findings)


@pytest.mark.parametrize(
    ("alpha", "words"),
    [(64.0, "unusually large"), (0.125, "32 times too strongly"), (4.0, ""), (None, "scale 1 is assumed")],
)
def test_findings_about_alpha(alpha, words, tmp_path):
    found = _findings(spell(makers.factors(), "lora_unet_", flat, *KOHYA, alpha=alpha), tmp_path)
    assert words in found
    assert found or not words


RANK_3 = '{"transformer.lora_alpha": 4, "transformer.r": 3}'


@pytest.mark.parametrize("junk", ["no table", "[1]", '{"transformer.r": "four"}', RANK_3])
def test_a_file_with_an_impossible_configuration_is_described_all_the_same(junk, tmp_path):
    tensors = spell(makers.factors(), "transformer.", makers.diffusers_name, *PEFT)
    found = describe(LoraFile(tensors, {"lora_adapter_metadata": junk}).write(tmp_path))
    assert (found.kind, found.dtypes) == ("lora", {"F32": len(tensors)})
    assert "--scale" in found.refused
    assert found.exit_code == (3 if junk == RANK_3 else 5)


def test_findings_about_ranks_parts_and_origin(tmp_path):
    tensors = makers.universal()
    tensors |= spell({"head.head": makers.factors(rank=40, outside=True)["head.head"]}, "diffusion_model.", same, *PEFT)
    tensors["diffusion_model.blocks.0.self_attn.q.diff_b"] = torch.ones(24)
    tensors["diffusion_model.time_embedding.0.diff"] = torch.ones(24, 8)
    found = _findings(tensors, tmp_path, {"loraport.recipe": "{}", "ss_network_alpha": "16"})
    for words in (
        "4 to 40",
        "smaller than their rank",
        "whole matrix",
        "made by loraport",
        "ss_network_alpha = 16",
    ):
        assert words in found, words


def test_a_file_that_cannot_be_used_is_described_all_the_same(tmp_path):
    tensors = makers.universal() | {"mystery": torch.ones(1)}
    found = describe(LoraFile(tensors).write(tmp_path))
    assert (found.kind, found.layers, found.unknown) == ("lora", 20, ["mystery"])
    assert "mystery" in found.refused


def test_a_folder_is_what_its_only_file_is(tmp_path, pico_path):
    path = LoraFile(makers.universal()).write(tmp_path / "lora", "style.safetensors")
    assert replace(describe(path.parent), path="") == replace(describe(path), path="")
    (tmp_path / "model").mkdir()
    shutil.copy(pico_path, tmp_path / "model" / "wan.safetensors")
    assert describe(tmp_path / "model").kind == "checkpoint"


def test_checkpoints(tmp_path, pico_path):
    found = describe(pico_path)
    assert (found.kind, found.title, found.refused) == ("checkpoint", "Wan (2 blocks, width 24)", "")
    assert found.layers == 26
    torch.save({"generator": makers.model(1), "generator_ema": makers.model(2)}, tmp_path / "x.pt")
    nested = describe(tmp_path / "x.pt")
    assert "under generator_ema" in nested.dialect
    assert "generator" in nested.findings[0]
    json.dumps(nested.to_json())


@pytest.mark.parametrize(
    ("tensors", "kind", "word"),
    [
        ({"a": torch.ones(1)}, "unknown", "not a model of a known family"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.ones(2, 2)}, "unknown", "HunyuanVideo"),
        ({"blk.0.attn_q.weight": torch.ones(2, 2)}, "unknown", "a language model"),
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(2, 2)}, "unknown", "a language model"),
        ({"decoder.middle.0.residual.2.weight": torch.ones(2, 2, 3, 3, 3)}, "unknown", "a VAE"),
        ({f"encoder.{x}.weight": torch.ones(2, 2) for x in ("conv_in", "down_blocks.0.conv1")}, "unknown", "a VAE"),
        (makers.model() | {"blocks.0.ffn.0.weight_scale_2": torch.ones(1)}, "checkpoint", "nvfp4"),
    ],
)
def test_what_is_refused_says_why(tensors, kind, word, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    found = describe(tmp_path / "x.safetensors")
    assert found.kind == kind
    assert word in found.refused


def test_no_file(tmp_path):
    for spec in (tmp_path / "x.safetensors", tmp_path):
        with pytest.raises(FileError):
            describe(spec)


class TestTables:
    def test_spellings_are_told_apart_in_every_family(self):
        for family in families().values():
            keymap = build(family)
            for module in family.modules(dict.fromkeys(family.counters.values(), 12)):
                for naming in family.namings:
                    place = family.place(module, naming)
                    for path in (place.name, "lora_unet_" + place.name.replace(".", "_")):
                        found = keymap.resolve(path)
                        assert found is not None, path
                        assert found.parts[place.index or 0].module == module, path
                        assert found.whole == (place.index is None and not place.order), path

    def test_names_that_only_tables_can_take_apart(self):
        keymap = keymap_of(families()["wan"])
        for path, module in {
            "lora_unet_blocks_1_self_attn_k": "blocks.1.self_attn.k",
            "lora_unet_blocks_10_cross_attn_k_img": "blocks.10.cross_attn.k_img",
            "lora_unet__blocks_1_attn1_to_out_0": "blocks.1.self_attn.o",
            "diffusion_model.blocks.1.norm3": "blocks.1.norm3",
            "transformer.blocks.1.norm2": "blocks.1.norm3",
            "scale_shift_table": "head.modulation",
        }.items():
            found = keymap.resolve(path)
            assert found is not None, path
            assert found.module == module
        assert keymap.resolve("diffusion_model.blocks.1.norm2.x") is None
        assert keymap.resolve("lora_unet_blocks_1_self_attn") is None

    def test_the_grammar_holds_together(self):
        rules = grammar()
        assert set(rules.changes) - {SET_BIAS} == set(rules.parts) - {
            "alpha",
            "lora_alpha",
            "lora_rank",
            "lora_bias_named",
            "scalar",
        }
        for profile in PROFILES.values():
            assert profile.dialect.style in rules.styles
            assert set(profile.carries.values()) <= set(rules.parts)
