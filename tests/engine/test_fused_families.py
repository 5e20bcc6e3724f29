"""Of every family that some naming fuses: whatever is fused, source, target or LoRA, it is one transfer."""

import pytest
import torch

import loraport
import networks
from loraport.adapters.parse import open_adapter
from loraport.adapters.render import render_adapter, write_adapter
from loraport.core.lowrank import LowRank
from loraport.engine.options import RunOptions
from loraport.models.families import families

pytestmark = pytest.mark.slow  # whole networks of several families

pytest.importorskip("diffusers")
FUSED = [
    name
    for name, net in networks.NETWORKS.items()
    if any(place.index is not None or place.order for t in families()[net.family].templates.values()
           for place in t.places.values())
]  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_one_transfer_whatever_is_fused(name, tmp_path):
    generator = torch.Generator().manual_seed(9)
    own = networks.canonical(name)
    drifted = {
        key: t + 0.02 * t.norm() * torch.randn(t.shape, generator=generator) / t.numel() ** 0.5
        for key, t in own.items()
    }
    architecture = networks.architecture(name, tmp_path / "own")
    made = networks.factors(name, architecture.layers, rank=2)
    paths = {}
    for naming, profile in (("original", "original"), ("diffusers", "diffusers")):
        folder = tmp_path / naming
        paths[naming, "source"] = networks.write(name, naming, folder / "source")
        paths[naming, "target"] = networks.write(name, naming, folder / "target", drifted)
        layers = {layer: LowRank(b, a) for layer, (b, a) in made.items()}
        write_adapter(folder / "lora.safetensors", render_adapter(layers, (), profile, architecture), {"format": "pt"})
        paths[naming, "lora"] = folder / "lora.safetensors"

    alike = families()[networks.NETWORKS[name].family].alike
    for naming in alike:
        paths[naming, "source"] = networks.write(name, naming, tmp_path / naming / "source")

    def transfer(lora, source, target):
        output = tmp_path / f"{lora}-{source}-{target}.safetensors"
        loraport.transfer(
            paths[lora, "lora"], source=paths[source, "source"], target=paths[target, "target"], output=output,
            method="casa", rank="full", to="diffusers",
            options=RunOptions(cache="off", executor="serial", log="off"),
        )  # fmt: skip
        return {layer: item.load().dense().double() for layer, item in open_adapter(output).layers.items()}

    wanted = transfer("diffusers", "diffusers", "diffusers")
    assert wanted.keys() == made.keys()
    others = [("original", "original", "diffusers"), ("diffusers", "diffusers", "original")]
    for lora, source, target in others + [("original", naming, "original") for naming in alike]:
        found = transfer(lora, source, target)
        assert found.keys() == wanted.keys()
        for layer, update in wanted.items():
            assert (found[layer] - update).norm() <= 1e-6 * update.norm(), layer
