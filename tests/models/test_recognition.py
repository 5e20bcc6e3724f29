"""Names of the attention are common to many families: a LoRA on it alone is told by its sizes."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from loraport.adapters.convert import convert
from loraport.adapters.describe import describe
from loraport.errors import MismatchError
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families, recognised
from loraport.models.keymap import keymap_of, known_to
from makers import LoraFile

IMAGE = {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1, "attn.to_out.0": 1}
TEXT = {"attn.add_q_proj": 1, "attn.add_k_proj": 1, "attn.add_v_proj": 1, "attn.to_add_out": 1}


def _lora(parts, width, blocks, called="transformer_blocks", prefix="transformer."):
    """Factors of rank 1 in the first and the last block; the rows of B as a share of the width."""
    found = {}
    for n in (0, blocks - 1):
        for name, share in parts.items():
            stem = f"{prefix}{called}.{n}.{name}"
            found[f"{stem}.lora_A.weight"] = torch.zeros(1, width)
            found[f"{stem}.lora_B.weight"] = torch.zeros(int(width * share), 1)
    return found


CASES = [
    ("Krea 2 12.9B", _lora({"attn.to_q": 1, "attn.to_k": 0.25, "attn.to_v": 0.25}, 6144, 28)),
    ("Krea 2 12.9B", _lora({"attn.wq": 1, "attn.wk": 0.25}, 6144, 28, "blocks", "diffusion_model.")),
    ("Z-Image 6B", _lora({"attention.to_q": 1, "attention.to_k": 1}, 3840, 30, "layers")),
    ("Z-Image 6B", _lora({"attention.qkv": 3}, 3840, 30, "layers", "diffusion_model.")),
    ("Qwen-Image 20B", _lora(IMAGE, 3072, 60)),
    ("Qwen-Image 20B", _lora(IMAGE | TEXT, 3072, 60)),
    ("Qwen-Image-2.1 7B", _lora(IMAGE, 4096, 32)),
    ("FLUX.2 klein 9B", _lora(IMAGE | TEXT, 4096, 8)),
    ("FLUX.2 klein 4B", _lora({"img_attn.qkv": 3, "txt_attn.qkv": 3}, 3072, 5, "double_blocks", "diffusion_model.")),
    ("FLUX.2 dev 32B", _lora({"linear1": 9}, 6144, 48, "single_blocks", "diffusion_model.")),
    ("HunyuanVideo-1.5 8.3B", _lora(IMAGE | TEXT, 2048, 54)),
]


@pytest.mark.parametrize(("title", "tensors"), CASES, ids=[f"{title} {i}" for i, (title, _) in enumerate(CASES)])
def test_it_is_told_by_its_sizes(title, tensors, tmp_path):
    found = describe(LoraFile(tensors).write(tmp_path))
    assert (found.refused, found.title.partition(" (")[0]) == ("", title)


# Names and sizes that several have: the models that may be meant are all named.
SHARED = [
    ({"Qwen-Image 20B", "FLUX.1 12B", "HunyuanVideo 13B"}, _lora(IMAGE, 3072, 6)),
    ({"HunyuanVideo 13B", "FLUX.1 12B"}, _lora({"img_attn.qkv": 3}, 3072, 6, "double_blocks", "diffusion_model.")),
    ({"LTX-Video 13B", "LTX-2 19B", "22B"}, _lora({"attn1.to_q": 1, "attn1.to_k": 1}, 4096, 48)),
]


@pytest.mark.parametrize(("titles", "tensors"), SHARED)
def test_where_sizes_do_not_tell_either_all_are_named(titles, tensors, tmp_path):
    path = LoraFile(tensors).write(tmp_path)
    found = describe(path)
    assert titles <= set(found.title.partition(" (")[0].split(" or "))
    assert any("may be one of" in text for text in found.findings)


def test_names_that_depend_on_which_is_meant_are_not_written_without_a_model(tmp_path):
    path = LoraFile(_lora(IMAGE, 3072, 6)).write(tmp_path)
    with pytest.raises(MismatchError, match=r"may be for .*Qwen-Image.*FLUX\.1"):
        convert(path, tmp_path / "x.safetensors", to="universal")
    assert not (tmp_path / "x.safetensors").exists()
    convert(path, tmp_path / "x.safetensors", to="same-as-input")
    convert(path, tmp_path / "z.safetensors", to="universal", architecture="qwen_image")
    assert "diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight" in load_file(tmp_path / "z.safetensors")


def test_one_look_up_for_all_families_agrees_with_each_of_their_tables():
    everyone = {**recognised(), **families()}
    paths = {path.replace("<>", "1") for family in everyone.values() for path in family.paths()}
    some = sorted(paths)[::23]
    for path in [*some, *(f"lora_unet_{path.replace('.', '_')}" for path in some), "blocks.1.unheard_of"]:
        found = {name: keymap_of(family).resolve(f"transformer.{path}") for name, family in everyone.items()}
        least = min((len(at.prefix) for at in found.values() if at), default=0)
        wanted = {name for name, at in found.items() if at and len(at.prefix) == least}
        assert known_to(f"transformer.{path}") == wanted, path


def test_every_name_is_known_behind_any_prefix():
    prefixes = ["base_model.model.", "model.diffusion_model.", "generator.model.", "transformer_1."]
    for family in families().values():
        for path in sorted(family.paths()):
            for prefix in prefixes:
                at = keymap_of(family).resolve(prefix + path.replace("<>", "1"))
                assert at is not None, (family.name, prefix, path)
                assert at.prefix == prefix


def test_no_name_of_a_family_betrays_it_to_be_another():
    for family in {**recognised(), **families()}.values():
        for path in sorted(family.paths()):
            keys = [path.replace("<>", "1") + end for end in (".weight", ".lora_A.weight", "_lora.down.weight")]
            assert family.lookalike(keys) is None, (family.name, path)


SEEN = {
    "FLUX.1 12B": _lora(IMAGE, 3072, 19) | _lora({"attn.to_q": 1}, 3072, 38, "single_transformer_blocks"),
    "Stable Diffusion 3 medium 2B": _lora(IMAGE | TEXT, 1536, 24),
    "SANA 1.6B": _lora({"attn1.to_q": 1, "attn2.to_q": 1}, 2240, 20),
    "SANA 1.6B (20": _lora({"attn.qkv": 3, "cross_attn.q_linear": 1}, 2240, 20, "blocks", "diffusion_model."),
    "Cosmos-Predict2 or Anima 2B": _lora({"self_attn.q_proj": 1, "mlp.layer1": 4}, 2048, 28, "blocks", ""),
    "Kandinsky 5 or 6 Lite 2B": _lora({"self_attention.to_query": 1}, 1792, 32, "visual_transformer_blocks"),
    "Lumina-Image 2.0 2.6B": _lora({"attn.to_q": 1, "attn.to_k": 1 / 3}, 2304, 26, "layers"),
    "Ideogram 4": _lora({"attention.to_q": 1, "feed_forward.w1": 3}, 4608, 34, "layers"),
    "HunyuanImage 2.1": _lora(IMAGE | TEXT, 3584, 20),
    "Mochi 10B": _lora({"attn.qkv_x": 3, "attn.proj_x": 1}, 3072, 48, "blocks", "diffusion_model."),
    "CogView4 6B": _lora({"attn1.to_q": 1, "ff.net.0.proj": 4}, 4096, 28),
    "AuraFlow": _lora(IMAGE, 3072, 4, "joint_transformer_blocks"),
    "HunyuanDiT 1.5B": _lora({"attn1.to_q": 1, "ff.net.0.proj": 4}, 1408, 40, "blocks"),
    "HiDream": _lora({"block.attn1.to_q": 1}, 2560, 16, "double_stream_blocks", "diffusion_model."),
    "FLUX.3": _lora({"attn.to_q": 1, "ff.linear_in": 6}, 3072, 5, "mode_blocks.image"),
    "LongCat-Video 13.6B": _lora({"attn.qkv": 3, "cross_attn.q_linear": 1}, 4096, 48, "blocks", ""),
    "PixArt": _lora({"attn1.to_q": 1, "ff.net.0.proj": 4}, 1152, 28),
    "a Stable Diffusion UNet": _lora(
        {"attn1.to_q": 1}, 640, 2, "down_blocks.1.attentions.0.transformer_blocks", "unet."
    ),
}


@pytest.mark.parametrize("title", SEEN)
def test_what_is_only_recognised_is_refused_by_its_name(title, tmp_path):
    found = describe(LoraFile(SEEN[title]).write(tmp_path))
    assert f"for {title}" in found.refused
    assert found.exit_code == 3


@pytest.mark.parametrize("title", ["FLUX.1 12B", "SANA 1.6B", "Lumina-Image 2.0 2.6B", "Cosmos-Predict2 or Anima 2B"])
def test_checkpoints_of_such_a_family_are_too(title, tmp_path):
    """Headers of the size of the models; no numbers."""
    weights = {
        key.removeprefix("transformer.").replace(".lora_B", ""): tensor.shape[0]
        for key, tensor in SEEN[title].items()
        if ".lora_B" in key
    }
    width = next(t.shape[1] for key, t in SEEN[title].items() if ".lora_A" in key)
    header, size = {}, 0
    for key, rows in weights.items():
        header[key] = {"dtype": "F8_E4M3", "shape": [rows, width], "data_offsets": [size, size + rows * width]}
        size += rows * width
    text = json.dumps(header).encode()
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)  # as sparse as a file can be
    with pytest.raises(MismatchError, match=f"this is {re.escape(title)}"):
        open_checkpoint(tmp_path / "x.safetensors")


FOREIGN = [
    _lora({"img_attn.qkv": 3}, 3072, 19, "double_blocks", "diffusion_model."),
    _lora({"linear1": 7}, 3072, 38, "single_blocks", "diffusion_model."),
    _lora(IMAGE, 3072, 19) | _lora({"attn.to_q": 1}, 3072, 38, "single_transformer_blocks"),
]


@pytest.mark.parametrize("tensors", FOREIGN)
def test_flux1_is_no_flux2(tensors, tmp_path):
    assert "for FLUX" in describe(LoraFile(tensors).write(tmp_path)).refused
