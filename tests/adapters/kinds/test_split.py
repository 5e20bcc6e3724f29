"""Several pairs of factors on one weight, SAT's files among them."""

import pytest
import torch

from adapter_parts import LAYERS, close, gaussian, write_lycoris
from loraport.adapters.convert import convert
from loraport.adapters.parse import open_adapter
from loraport.errors import UnsupportedError


@pytest.mark.parametrize("zero", [{"up.0"}, {"down.1"}, {"up.0", "down.1"}])
def test_split_factors_are_zero_where_every_pair_is(zero, tmp_path):
    parts = {}
    for n in range(2):
        pair = {f"up.{n}": gaussian(16, 2, seed=n), f"down.{n}": gaussian(2, 32, seed=n)}
        parts |= {f"lora_{name}.weight": tensor * (name not in zero) for name, tensor in pair.items()}
    layer = open_adapter(write_lycoris({LAYERS[0]: parts}, tmp_path / "x.safetensors")).layers[LAYERS[0]]
    assert layer.is_zero() == (not layer.load().dense().any()) == (len(zero) == 2)


def test_split_factors_stay_factors_however_large_their_rank(tmp_path):
    parts = {f"lora_up.{n}.weight": gaussian(16, 90, seed=n) for n in range(2)}
    parts |= {f"lora_down.{n}.weight": gaussian(90, 32, seed=n + 2) for n in range(2)}
    layer = open_adapter(write_lycoris({LAYERS[0]: parts}, tmp_path / "x.safetensors")).layers[LAYERS[0]]
    assert (layer.factored, layer.rank, layer.shape) == (True, 180, (32, 32))
    wanted = [parts[f"lora_up.{n}.weight"] @ parts[f"lora_down.{n}.weight"] for n in range(2)]
    close(layer.load().dense(), torch.cat(wanted))


def test_sat_needs_its_scale(tmp_path):
    from corpus import CORPUS, write

    path = write("cogvideox-sat", tmp_path)
    with pytest.raises(UnsupportedError, match=r"--scale 0\.25") as caught:
        open_adapter(path)
    assert "does not say how strong" in caught.value.message
    adapter = open_adapter(path, scale=0.25)
    keys = CORPUS["cogvideox-sat"]["keys"]
    assert {key for layer in adapter.layers.values() for key in layer.keys} == set(keys)
    assert {(layer.rank, layer.shape) for layer in adapter.layers.values()} == {(4, (24, 24))}
    convert(path, tmp_path / "out.safetensors", to="diffusers", scale=0.25)
    again = open_adapter(tmp_path / "out.safetensors").layers
    for name, layer in adapter.layers.items():
        close(again[name].load().dense(), layer.load().dense())
