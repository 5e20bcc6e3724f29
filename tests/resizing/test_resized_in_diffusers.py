"""Layers of different ranks, read by diffusers itself: each at the scale that it has."""

import pytest
import torch

import loraport
import makers
import networks
from loraport.adapters.parse import open_adapter
from loraport.engine.options import RunOptions
from makers import PEFT, LoraFile, diffusers_name, same, spell

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("profile", ["universal", "diffusers", "kohya"])
def test_every_layer_has_its_scale(profile, tmp_path, caplog):
    made = {name: (up * torch.logspace(0, -(n % 4), up.shape[1]), down)
            for n, (name, (up, down)) in enumerate(makers.factors(1, rank=6).items())}  # fmt: skip
    path = LoraFile(spell(made, "diffusion_model.", same, *PEFT)).write(tmp_path)
    output = tmp_path / "out.safetensors"
    options = RunOptions(cache="off", executor="serial")
    report = loraport.resize(path, output, energy=0.9, to=profile, options=options)
    assert len({layer.rank_out for layer in report.layers}) > 1
    wanted = {name: layer.load().dense() for name, layer in open_adapter(output).layers.items()}
    with torch.random.fork_rng():
        model = diffusers.WanTransformer3DModel(**networks.WAN)
        pipeline = diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=model)
        changes = networks.fused(pipeline, model, output, caplog)
    assert changes.keys() == {f"{diffusers_name(name)}.weight" for name in wanted}
    for name, delta in wanted.items():
        assert (changes[f"{diffusers_name(name)}.weight"] - delta).norm() <= 1e-4 * delta.norm(), name
