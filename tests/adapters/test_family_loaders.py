"""Every family's LoRA, loaded by diffusers' own pipeline: nothing missing or unexpected, and the update is added."""

import pytest
import torch
from safetensors.torch import load_file

import networks
from loraport.adapters.arrival import Arrival
from loraport.adapters.consumers import ADDED, ALL, consumers
from loraport.adapters.convert import convert
from loraport.adapters.parse import open_adapter
from loraport.adapters.render import render_adapter, write_adapter
from loraport.adapters.verify import verify_adapter
from loraport.core.lowrank import LowRank
from loraport.models.architecture import detect
from loraport.models.families import families
from networks import NETWORKS

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
DIFFUSERS = next(consumer for consumer in consumers() if consumer.name == "diffusers")
READ = [
    (name, profile)
    for name, net in NETWORKS.items()
    for profile, row in DIFFUSERS.families[net.family].profiles.items()
    if profile != "same-as-input" and not row.keys() & {ALL, "outside", "partial"}
    if not (families()[net.family].added and ADDED in row)
]


def _write(name, profile, folder):
    architecture = networks.architecture(name, folder / "model")
    made = networks.factors(name, architecture.layers)
    tensors = render_adapter({layer: LowRank(b, a) for layer, (b, a) in made.items()}, (), profile, architecture)
    write_adapter(folder / f"{profile}.safetensors", tensors, {"format": "pt"})
    return folder / f"{profile}.safetensors", made, architecture


@pytest.mark.parametrize(("name", "profile"), READ)
def test_the_pipeline_takes_it_and_adds_exactly_the_update(name, profile, tmp_path, caplog):
    path, made, architecture = _write(name, profile, tmp_path)
    model = networks.build(name)
    changes = networks.fused(networks.pipeline(name, model), model, path, caplog)
    family = architecture.family
    weights = {f"{layer}.weight": b.double() @ a.double() for layer, (b, a) in made.items()}
    wanted = networks.respell(weights, family, "diffusers")
    assert changes.keys() == wanted.keys()
    for key, delta in wanted.items():
        assert (changes[key].double() - delta).norm() <= 1e-4 * delta.norm(), key
    checks = {check.name: check for check in verify_adapter(path, load=True)}
    assert checks["diffusers loads it"].passed is True


def test_of_a_profile_that_is_read_in_part_exactly_what_is_foretold_changes(tmp_path, caplog):
    name, profile = "ltx_video", "universal"
    path, made, architecture = _write(name, profile, tmp_path)
    arrival = Arrival(open_adapter(path, architecture), DIFFUSERS)
    foretold = {layer for layer, update in arrival.lora.layers.items() if set(update.keys) <= set(arrival.matched)}
    assert 0 < len(foretold) < len(made)
    assert arrival.arrives is False
    model = networks.build(name)
    changes = networks.fused(networks.pipeline(name, model), model, path, caplog, warns=True)
    weights = {f"{layer}.weight": b.double() @ a.double() for layer, (b, a) in made.items() if layer in foretold}
    wanted = networks.respell(weights, architecture.family, "diffusers")
    assert changes.keys() == wanted.keys()
    assert all((changes[key].double() - delta).norm() <= 1e-4 * delta.norm() for key, delta in wanted.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_it_comes_back_from_every_profile(name, tmp_path):
    """Read, write, read: equal updates, and written a second time equal keys and tensors."""
    first, made, architecture = _write(name, "diffusers", tmp_path)
    for profile in ("universal", "diffusers", "kohya", "original"):
        out = tmp_path / f"out-{profile}.safetensors"
        convert(first, out, to=profile)
        found = open_adapter(out, architecture)
        assert found.layers.keys() == made.keys()
        for layer, (b, a) in made.items():
            torch.testing.assert_close(found.layers[layer].load().dense(), b @ a, rtol=1e-5, atol=1e-5)
        convert(out, tmp_path / "back.safetensors", to="diffusers", overwrite=True)
        convert(tmp_path / "back.safetensors", tmp_path / "again.safetensors", to=profile, overwrite=True)
        one, two = load_file(out), load_file(tmp_path / "again.safetensors")
        assert one.keys() == two.keys()
        assert all(torch.equal(two[key], tensor) for key, tensor in one.items())


def test_of_hunyuan_video_its_own_converter_takes_the_blocks_in_original_names(tmp_path):
    """And nothing else: it cuts the rank of the refiner's projections, and turns that of the last modulation."""
    from diffusers.loaders import lora_conversion_utils

    layers = {
        "transformer_blocks.0.attn.to_q": (3072, 3072),
        "transformer_blocks.0.attn.to_k": (3072, 3072),
        "transformer_blocks.0.attn.to_v": (3072, 3072),
        "double_blocks.0.img_mlp.fc1": (12288, 3072),
        "single_transformer_blocks.0.attn.to_q": (3072, 3072),
        "single_transformer_blocks.0.proj_mlp": (12288, 3072),
        "single_blocks.0.linear2": (3072, 15360),
    }
    architecture = detect(layers, families()["hunyuan_video"])
    assert architecture.size == "13B"
    made = {name: LowRank(b, a) for name, (b, a) in networks.factors("x", layers, rank=1).items()}
    for profile in ("original", "diffusers"):
        write_adapter(tmp_path / profile, render_adapter(made, (), profile, architecture), {"format": "pt"})
    found = lora_conversion_utils._convert_hunyuan_video_lora_to_diffusers(load_file(tmp_path / "original"))
    wanted = load_file(tmp_path / "diffusers")
    assert wanted.keys() <= found.keys()
    for name in {key.rpartition(".lora_")[0] for key in found}:
        one = found[f"{name}.lora_B.weight"] @ found[f"{name}.lora_A.weight"]
        if f"{name}.lora_B.weight" in wanted:
            torch.testing.assert_close(one, wanted[f"{name}.lora_B.weight"] @ wanted[f"{name}.lora_A.weight"])
        else:  # a layer of a fused weight that has no update of its own
            assert not one.any()


@pytest.mark.parametrize(("name", "profile"), [("hunyuan_video", "universal"), ("ltx_video", "universal")])
def test_what_diffusers_does_not_read_is_no_fault_of_the_file(name, profile, tmp_path):
    path, _, _ = _write(name, profile, tmp_path)
    assert [check for check in verify_adapter(path, load=True) if check.passed is False] == []
