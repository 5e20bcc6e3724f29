"""Names and rows of MiniMax-H3 and of the variants of Wan, against the functions by which diffusers converts them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import networks
from loraport.adapters.convert import convert
from loraport.adapters.parse import open_adapter
from loraport.containers.tensors import read_tensor
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families
from makers import LoraFile
from storage import write_gguf

pytest.importorskip("diffusers")
from diffusers.loaders import lora_conversion_utils, single_file_utils

WAN, H3 = families()["wan"], families()["minimax_h3"]


def _equal(found, wanted):
    assert found.keys() == wanted.keys()
    assert [key for key, tensor in wanted.items() if not torch.equal(found[key], tensor)] == []


@pytest.mark.parametrize(("naming", "layout"), [("original", "stacked"), ("by_head", "interleaved")])
def test_checkpoints_of_h3_become_those_of_diffusers(naming, layout):
    settings = networks.NETWORKS["minimax_h3"].settings
    state = networks.respell(networks.canonical("minimax_h3"), H3, naming)
    found = single_file_utils.convert_minimax_h3_transformer_checkpoint_to_diffusers(state, settings, layout)
    _equal(found, networks.state("minimax_h3"))


def test_a_gguf_file_of_h3_in_parts_has_the_rows_of_single_files(tmp_path):
    own = networks.canonical("minimax_h3")
    state = networks.respell(own, H3, "original")
    for number in (1, 2):
        part = {key: (state[key].numpy(), "F32") for key in list(state)[number - 1 :: 2]}
        path = write_gguf(tmp_path / f"x-{number:05}-of-00002.gguf", part, split=(number - 1, 2, len(state)))
    found = open_checkpoint(path.parent)
    assert found.naming == "original"
    _equal({key: read_tensor(ref) for key, ref in found.tensors.items()}, own)


def test_single_files_of_wan_with_vace_become_those_of_diffusers():
    state = networks.respell(networks.canonical("wan_vace"), WAN, "original")
    assert "vace_blocks.0.before_proj.weight" in state
    _equal(single_file_utils.convert_wan_transformer_to_diffusers(state), networks.state("wan_vace"))


def test_single_files_of_animate_become_those_of_diffusers_but_for_its_motion_encoder():
    state = networks.respell(networks.canonical("wan_animate"), WAN, "original")
    assert state["face_adapter.fuser_blocks.1.linear1_kv.weight"].shape == (48, 24)
    _equal(single_file_utils.convert_wan_transformer_to_diffusers(state), networks.state("wan_animate"))


def _lora_of_h3(ending, prefix=""):
    """On two blocks and the refiner, with heads of 128 as in every released model: two of them."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"attn.qkv_proj": (768, 24), "attn.out_proj": (24, 256), "mlp.fc1": (80, 24), "mlp.fc2": (24, 40)}
    found = {}
    for block in ("blocks.0", "blocks.1", "token_refiner.blocks.1"):
        for name, (m, n) in shapes.items():
            found[f"{prefix}{block}.{name}.lora_A{ending}"] = torch.randn(4, n, generator=generator)
            found[f"{prefix}{block}.{name}.lora_B{ending}"] = torch.randn(m, 4, generator=generator)
    return found


@pytest.mark.parametrize(
    ("names", "lora"),
    [("by_head", _lora_of_h3(".default.weight")), ("original", _lora_of_h3(".weight", "diffusion_model."))],
)
def test_loras_of_h3_are_what_diffusers_makes_of_them(names, lora, tmp_path):
    path = LoraFile(lora).write(tmp_path)
    assert open_adapter(path).dialect.names == names
    convert(path, tmp_path / "x.safetensors", to="diffusers")
    found = load_file(tmp_path / "x.safetensors")
    wanted = lora_conversion_utils._convert_non_diffusers_minimax_h3_lora_to_diffusers(dict(lora))
    assert found.keys() == wanted.keys()
    for key in found:
        if key.endswith("lora_B.weight"):
            a = key.replace("lora_B", "lora_A")
            torch.testing.assert_close(found[key] @ found[a], wanted[key] @ wanted[a])
    convert(path, tmp_path / "y.safetensors", to="same-as-input")
    _equal(load_file(tmp_path / "y.safetensors"), lora)


def test_a_pruned_h3_has_a_table_in_the_place_of_its_time_embedding(tmp_path):
    state = networks.respell(networks.canonical("minimax_h3"), H3, "original")
    state = {key: tensor for key, tensor in state.items() if not key.startswith("time_embedder.")}
    save_file(state | {"adaln_t_table": torch.zeros(17, 10)}, tmp_path / "x.safetensors")
    found = open_checkpoint(tmp_path / "x.safetensors")
    assert (found.unknown, found.missing, found.architecture.misfits) == ((), (), {})
