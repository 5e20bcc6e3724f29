"""Weights in a folder that is run: the numbers that the codec says, not those that lie there, in any container."""

import shutil

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

import storage
import tinywan
from loraport import zoo
from loraport.containers.tensors import read_float
from loraport.errors import FileError
from loraport.models.checkpoint import open_checkpoint
from loraport.sampling.schedule import SamplingSettings, Schedule
from loraport.sampling.wan import open_runnable

HOW = SamplingSettings(schedule=Schedule((1.0, 0.5, 0.0)), latents=(tinywan.FRAMES, tinywan.SIZE, tinywan.SIZE))
WIDE = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64}  # multiples of 32, as codecs need


def _stored(folder, way: str) -> dict[str, torch.Tensor]:
    """Write a transformer with its blocks' matrices stored in a way; the parameters that it stands for."""
    network = tinywan.transformer(changes=WIDE)
    network.save_pretrained(folder / "transformer")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors, meant = load_file(file), dict(network.state_dict())
    for name in [name for name, t in tensors.items() if name.startswith("blocks") and t.ndim == 2]:
        parts, wanted = storage.WAYS[way](tensors.pop(name).numpy())
        module = name.removesuffix(".weight")
        tensors |= {key.replace("a.", f"{module}.", 1): part for key, part in parts.items()}
        meant[name] = torch.from_numpy(wanted).float()
    save_file(tensors, file)
    return meant


@pytest.mark.parametrize("way", ["fp8, tensor", "fp8, rows", "int8, rows", "int8, convrot", "nvfp4"])
def test_the_network_has_the_numbers_that_are_meant(way, tmp_path):
    meant = _stored(tmp_path, way)
    network = open_runnable(tmp_path, HOW).open().network
    found = network.state_dict()
    assert found.keys() == meant.keys()
    for name, value in meant.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("file", ["one.safetensors", "one.gguf", "one.pt"])
def test_a_checkpoint_of_another_program_beside_the_configuration(file, tmp_path):
    """Names of the original code, in every container, quantised where that is usual."""
    network, folder = tinywan.transformer(changes=WIDE), tmp_path / "transformer"
    network.save_pretrained(folder)
    state = {name: read_float(ref) for name, ref in open_checkpoint(tmp_path).tensors.items()}
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    floor = 1e-6
    if file.endswith(".gguf"):
        stored, floor = {key: (tensor.numpy(), "F32") for key, tensor in state.items()}, 0.02
        for key in [key for key, tensor in state.items() if key.startswith("blocks") and tensor.ndim == 2]:
            blocks = gguf.quants.quantize(state[key].numpy(), gguf.GGMLQuantizationType.Q8_0)
            stored[key] = blocks, "Q8_0"
        storage.write_gguf(folder / file, stored)
    elif file.endswith(".pt"):
        torch.save({"generator": state}, folder / file)
    else:
        save_file({f"model.diffusion_model.{key}": tensor for key, tensor in state.items()}, folder / file)
    found, meant = open_runnable(tmp_path, HOW).open().network.state_dict(), network.state_dict()
    assert found.keys() == meant.keys()
    for name, value in meant.items():
        assert (found[name] - value).norm() <= floor * value.norm(), name


def test_a_folder_with_a_card_is_no_exception(tmp_path):
    """The tiny models have a way of their own to be run; a quantised one was taken without its scales there."""
    shutil.copytree(zoo.path("dmd"), tmp_path / "mine")
    file = tmp_path / "mine" / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for name in [name for name, t in tensors.items() if name.startswith("blocks") and t.ndim == 2]:
        weight = tensors.pop(name).float()
        scale = weight.abs().max() / 448
        tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, file)
    found, meant = (open_runnable(which).open().network.state_dict() for which in (tmp_path / "mine", "zoo:dmd"))
    assert found.keys() == meant.keys()
    for name, value in meant.items():
        assert (found[name] - value).norm() <= 0.05 * value.norm(), name


def test_a_parameter_that_is_missing_is_named(tmp_path):
    _stored(tmp_path, "fp8, rows")
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["proj_out.bias"]
    save_file(tensors, file)
    with pytest.raises(FileError, match="missing") as caught:
        open_runnable(tmp_path, HOW).open()
    assert "proj_out.bias" in str(caught.value.values)
