"""Names and rows of MiniMax-H3 and of the variants of Wan, against the functions by which diffusers converts them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import networks
from loraport.adapters.convert import convert_adapter
from loraport.adapters.parse import open_adapter
from loraport.containers.tensors import read_tensor
from loraport.models.checkpoint import open_checkpoint
from loraport.models.family import families
from makers import LoraFile

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


def test_single_files_of_wan_with_vace_become_those_of_diffusers():
    state = networks.respell(networks.canonical("wan_vace"), WAN, "original")
    assert "vace_blocks.0.before_proj.weight" in state
    _equal(single_file_utils.convert_wan_transformer_to_diffusers(state), networks.state("wan_vace"))


def _animate():
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.WanAnimateTransformer3DModel(
            **networks.WAN | {"in_channels": 12, "latent_channels": 4, "image_dim": 20, "added_kv_proj_dim": 24},
            inject_face_latents_blocks=1, face_encoder_hidden_dim=8, face_encoder_num_heads=2, motion_encoder_dim=8,
            motion_style_dim=8, motion_dim=4, motion_encoder_size=8, motion_encoder_channel_sizes={"4": 4, "8": 4},
        )  # fmt: skip
    return {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("motion_encoder.")}


def test_the_adapter_for_faces_of_animate_is_known_in_both_namings(tmp_path):
    state = _animate()
    save_file(state, tmp_path / "diffusers.safetensors")
    split = open_checkpoint(tmp_path / "diffusers.safetensors")
    assert (split.unknown, split.missing, split.notes) == ((), (), ())
    assert split.architecture.dimensions["face_blocks"] == 2
    fused = networks.respell({key: read_tensor(ref) for key, ref in split.tensors.items()}, WAN, "original")
    assert fused["face_adapter.fuser_blocks.1.linear1_kv.weight"].shape == (48, 24)
    _equal(single_file_utils.convert_wan_transformer_to_diffusers(dict(fused)), state)
    save_file(fused, tmp_path / "original.safetensors")
    whole = open_checkpoint(tmp_path / "original.safetensors")
    assert (whole.naming, whole.unknown, whole.notes) == ("original", (), ())
    for key, ref in split.tensors.items():
        assert torch.equal(read_tensor(whole.tensors[key]), read_tensor(ref)), key


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
    convert_adapter(path, tmp_path / "x.safetensors", to="diffusers")
    found = load_file(tmp_path / "x.safetensors")
    wanted = lora_conversion_utils._convert_non_diffusers_minimax_h3_lora_to_diffusers(dict(lora))
    assert found.keys() == wanted.keys()
    for key in found:
        if key.endswith("lora_B.weight"):
            a = key.replace("lora_B", "lora_A")
            torch.testing.assert_close(found[key] @ found[a], wanted[key] @ wanted[a])
    convert_adapter(path, tmp_path / "y.safetensors", to="same-as-input")
    _equal(load_file(tmp_path / "y.safetensors"), lora)


def test_a_pruned_h3_has_a_table_in_the_place_of_its_time_embedding(tmp_path):
    state = networks.respell(networks.canonical("minimax_h3"), H3, "original")
    state = {key: tensor for key, tensor in state.items() if not key.startswith("time_embedder.")}
    save_file(state | {"adaln_t_table": torch.zeros(17, 10)}, tmp_path / "x.safetensors")
    found = open_checkpoint(tmp_path / "x.safetensors")
    assert (found.unknown, found.missing, found.architecture.misfits) == ((), (), {})
