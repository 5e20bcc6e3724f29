"""Kinds that are functions of the source's weight, in the spellings of LyCORIS, kohya, ai-toolkit and ComfyUI, against
formulas written out here. OFT and BOFT have a file of their own."""

import pytest
import torch
from safetensors.torch import save_file

from adapter_parts import LAYERS, WEIGHTS, close, factors, gaussian, parts_of, updates, write_lycoris
from loraport.adapters.convert import convert
from loraport.adapters.describe import describe
from loraport.adapters.parse import open_adapter


@pytest.mark.parametrize("axis", ["rows", "inputs", "one dimension"])
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_dora(kind, axis, source, tmp_path):
    """m (W + D) / ||W + D||, entry by entry."""
    made, wanted = {}, {}
    for layer in LAYERS:
        weight = WEIGHTS[f"{layer}.weight"]
        parts, update = factors(kind, *weight.shape)
        changed = (weight + update).double()
        if axis == "inputs":
            scale = 1 + gaussian(1, weight.shape[1], seed=7, size=0.3)
            columns = [scale[0, j] * changed[:, j] / changed[:, j].square().sum().sqrt() for j in range(len(scale[0]))]
            new = torch.stack(columns, dim=1)
        else:
            scale = 1 + gaussian(weight.shape[0], 1, seed=7, size=0.3)
            new = torch.stack([scale[i, 0] * changed[i] / changed[i].square().sum().sqrt() for i in range(len(scale))])
        made[layer] = parts | {"dora_scale": scale.reshape(-1) if axis == "one dimension" else scale}
        wanted[layer] = new - weight
    for layer, update in updates(made, source, tmp_path).items():
        close(update, wanted[layer])


def test_dora_of_ai_toolkit(source, tmp_path):
    weight = WEIGHTS["blocks.0.ffn.0.weight"]
    up, down, size = gaussian(64, 3, seed=1), gaussian(3, 32, seed=2), 1 + gaussian(64, seed=3, size=0.2)
    stem = "diffusion_model.blocks.0.ffn.0"
    save_file(
        {f"{stem}.lora_B.weight": up, f"{stem}.lora_A.weight": down, f"{stem}.magnitude": size},
        tmp_path / "x.safetensors",
    )
    layer = open_adapter(tmp_path / "x.safetensors", source).layers["blocks.0.ffn.0"]
    changed = weight + up @ down
    close(layer.load().dense(), size[:, None] * changed / changed.norm(dim=1, keepdim=True) - weight)
    assert "counts inside" in layer.scale_source


def test_what_is_zero_has_no_direction_and_stays_zero(source, tmp_path):
    """A row that the LoRA takes away whole; PEFT would divide zero by zero there."""
    weight = WEIGHTS["blocks.0.self_attn.q.weight"]
    up = torch.zeros(32, 1)
    up[3] = -1
    parts = {"lora_up.weight": up, "lora_down.weight": weight[3:4].clone()}
    norm = weight.norm(dim=1, keepdim=True)
    norm[3] = 2.0
    found = updates({"blocks.0.self_attn.q": parts | {"dora_scale": norm}}, source, tmp_path)["blocks.0.self_attn.q"]
    close(found[3], -weight[3])
    assert found[:3].norm() < 1e-5


@pytest.mark.parametrize("rank", [3, 20])
@pytest.mark.parametrize("early", [False, True])
def test_glora(early, rank, source, tmp_path):
    made, wanted = {}, {}
    for layer in LAYERS:
        weight = WEIGHTS[f"{layer}.weight"]
        m, n = weight.shape
        first, second = gaussian(n, rank, seed=1), gaussian(rank, n, seed=2, size=0.1)
        up, down = gaussian(m, rank, seed=3), gaussian(rank, n, seed=4, size=0.1)
        names = ("a2", "a1", "b2", "b1") if early else ("a1", "a2", "b1", "b2")
        made[layer] = {f"{name}.weight": t for name, t in zip(names, (first, second, up, down), strict=True)}
        made[layer]["alpha"] = torch.tensor(2.0)
        wanted[layer] = 2.0 / rank * (weight @ first @ second + up @ down)
    for layer, update in updates(made, source, tmp_path).items():
        close(update, wanted[layer])
    layer = open_adapter(tmp_path / "x.safetensors", source).layers[LAYERS[0]]
    assert layer.factored
    assert layer.load().rank == layer.rank == min(2 * rank, 32)


@pytest.mark.parametrize("on_input", [0, 1])
def test_ia3_of_lycoris(on_input, source, tmp_path):
    """What is added to 1; the bias stays, as in LyCORIS."""
    made, wanted = {}, {}
    for layer in LAYERS:
        weight = WEIGHTS[f"{layer}.weight"]
        added = gaussian(weight.shape[on_input], seed=1, size=0.2)
        made[layer] = {"weight": added, "on_input": torch.tensor(on_input)}
        wanted[layer] = weight * added if on_input else weight * added[:, None]
    for layer, update in updates(made, source, tmp_path).items():
        close(update, wanted[layer])
    assert open_adapter(tmp_path / "x.safetensors", source).passthrough == ()
    assert describe(tmp_path / "x.safetensors").refused == ""


def test_replaced_weights(source, tmp_path):
    """Of a layer, of a norm, of a bare parameter."""
    stem, params = "diffusion_model.", ["blocks.0.self_attn.q.weight", "blocks.0.norm3.weight", "blocks.0.modulation"]
    given = {param: gaussian(*WEIGHTS[param].shape, seed=1) for param in params}
    keys = {f"{stem}{param.removesuffix('.weight')}.set_weight": tensor for param, tensor in given.items()}
    save_file(keys, tmp_path / "x.safetensors")
    adapter = open_adapter(tmp_path / "x.safetensors", source)
    found = {f"{name}.weight": layer.load().dense() for name, layer in adapter.layers.items()}
    found |= {item.param: item.load() for item in adapter.passthrough}
    assert found.keys() == given.keys()
    for param, tensor in given.items():
        close(found[param], tensor - WEIGHTS[param])
    convert(tmp_path / "x.safetensors", tmp_path / "out.safetensors", model=source.path)
    again = open_adapter(tmp_path / "out.safetensors", source)
    close(again.layers["blocks.0.self_attn.q"].load().dense(), found[params[0]])
    close({item.param: item.load() for item in again.passthrough}[params[1]], found[params[1]])


@pytest.mark.parametrize("case", ["OFT", "BOFT", "IA3", "replaced", "diff"])
def test_what_has_no_scale_is_the_same_under_one_that_is_stated(case, source, tmp_path):
    path, name = tmp_path / "x.safetensors", LAYERS[1]
    shape = WEIGHTS[f"{name}.weight"].shape
    write_lycoris({name: {"diff": gaussian(*shape)} if case == "diff" else parts_of(case, *shape)}, path)
    plain, stated = (open_adapter(path, source, scale=scale).layers[name] for scale in (None, 3.0))
    assert torch.equal(plain.load().dense(), stated.load().dense())
    assert not plain.factored
