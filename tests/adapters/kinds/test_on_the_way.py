"""Kinds that are functions of the source's weight on their way through inspect, transfer, convert and verify."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import pico
from adapter_parts import LAYERS, close, factors, gaussian, parts_of, write_lycoris
from loraport.adapters.convert import convert
from loraport.adapters.describe import describe
from loraport.adapters.parse import open_adapter
from loraport.adapters.verify import verify_adapter
from loraport.errors import LoraportError, UnsupportedError
from loraport.models.checkpoint import open_checkpoint


def test_verify_and_drop(source, tmp_path):
    parts, _ = factors("lora", 32, 32)
    made = {name: parts | {"dora_scale": gaussian(32, 1)} for name in ("blocks.0.self_attn.q", "blocks.0.self_attn.k")}
    path = write_lycoris(made, tmp_path / "x.safetensors")
    assert all(check.passed is not False for check in verify_adapter(path, source))
    assert list(open_adapter(path, source, drop=r"self_attn\.k").layers) == ["blocks.0.self_attn.q"]
    found = describe(path)
    assert found.layers == 2
    assert any("DoRA changes the weights by a function of the original weights" in text for text in found.findings)
    assert isinstance(open_adapter(path).layers["blocks.0.self_attn.q"].source_missing(), LoraportError)


OFTEN, RARELY = ["DoRA of inputs", "GLoRA"], ["DoRA of rows", "OFT", "BOFT", "IA3", "replaced", "split"]


@pytest.mark.parametrize("case", [*OFTEN, *(pytest.param(case, marks=pytest.mark.slow) for case in RARELY)])
def test_inspect_and_transfer(case, tmp_path):
    """By `direct` at full rank the output is the update; by the default method it is made, and the share stated."""
    files = pico.write(tmp_path / "models")
    made = {name: parts_of(case, m, n) for name, (m, n) in pico.LAYERS.items() if "blocks.0" in name}
    path = write_lycoris(made, tmp_path / "x.safetensors")
    assert describe(path).layers == len(made)
    options = loraport.RunOptions(cache="off")
    recipe = {"source": files.source, "target": files.target}
    direct, default = tmp_path / "direct.safetensors", tmp_path / "default.safetensors"
    loraport.transfer(path, output=direct, **recipe, method="direct", rank="full", options=options)
    report = loraport.transfer(path, output=default, **recipe, rank="8", options=options)
    wanted = open_adapter(path, open_checkpoint(files.source)).layers
    for name, layer in open_adapter(direct, open_checkpoint(files.target)).layers.items():
        close(layer.load().dense(), wanted[name].load().dense(), 1e-4)
    assert all(0 < layer.energy_kept <= 1 for layer in report.layers)
    assert open_adapter(default, open_checkpoint(files.target)).layers.keys() == made.keys()


def test_convert_does_not_fill_the_memory(tmp_path):
    """Whole matrices of terabytes, from a file of some thousand bytes: said before the first is made."""
    tensors = {}
    for block in range(40):
        for layer in ("self_attn.q", "self_attn.k", "cross_attn.q", "cross_attn.o"):
            stem = f"diffusion_model.blocks.{block}.{layer}"
            tensors |= {f"{stem}.{half}": torch.zeros(1).expand(181, 181) for half in ("lokr_w1", "lokr_w2")}
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(UnsupportedError, match="more memory than is available"):
        convert(tmp_path / "x.pt", tmp_path / "out.safetensors", to="original")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("part", "fine"), [("dora_scale", False), ("lora_up.1.weight", False), ("lora_up.weight", True)]
)
def test_a_strength_that_a_text_encoder_cannot_take(part, fine, tmp_path):
    parts, _ = factors("lora", 32, 32)
    path = write_lycoris({LAYERS[0]: parts}, tmp_path / "x.safetensors")
    tensors = {"lora_te_text_model_layers_0_mlp_fc1." + part: torch.ones(4, 4)}
    save_file(tensors | load_file(path), path)
    adapter = open_adapter(path)
    if fine:
        assert adapter.scaled(0.5).passthrough[0].load().equal(torch.full((4, 4), 0.5))
        return
    with pytest.raises(UnsupportedError, match="strength cannot be applied") as caught:
        adapter.scaled(0.5)
    assert "--drop ^lora_te" in caught.value.message
    assert open_adapter(path, drop="^lora_te").scaled(0.5).layers


def test_what_was_on_the_source_in_training_is_in_no_file(tmp_path):
    files = pico.write(tmp_path / "models")
    path = write_lycoris({LAYERS[0]: parts_of("DoRA of rows", 32, 32)}, tmp_path / "x.safetensors")
    recipe = {"source": files.source, "target": files.target, "options": loraport.RunOptions(cache="off")}
    with pytest.raises(UnsupportedError, match="--source-lora changed"):
        loraport.transfer(path, **recipe, source_lora=files.lora)


def test_a_distillation_lora_may_be_a_function_of_the_source(tmp_path):
    """The target that it makes, against the same target as a checkpoint; and the plan counts the weight."""
    files = pico.write(tmp_path / "models")
    made = {name: parts_of("DoRA of rows", m, n) for name, (m, n) in pico.LAYERS.items() if "blocks.0" in name}
    dora = write_lycoris(made, tmp_path / "dora.safetensors")
    layers = open_adapter(dora, open_checkpoint(files.source)).layers
    target = {
        k: t + layers[k[:-7]].load().dense() if k[:-7] in layers else t for k, t in load_file(files.source).items()
    }
    save_file(target, files.target)
    options = loraport.RunOptions(cache="off")
    found = {}
    for name, side in {"lora": {"target_lora": dora}, "checkpoint": {"target": files.target}}.items():
        output = tmp_path / f"{name}.safetensors"
        loraport.transfer(files.lora, source=files.source, **side, output=output, rank="full", options=options)
        found[name] = open_adapter(output).layers
    for name, layer in found["lora"].items():
        close(layer.load().dense(), found["checkpoint"][name].load().dense(), 1e-3)
    models = {"source": str(files.source), "target": str(files.target)}
    plain, other = (loraport.plan(loraport.Recipe(lora=str(path), **models)) for path in (files.lora, dora))
    peaks = {job.name: job.peak_bytes for job in plain.jobs}
    assert all(job.peak_bytes >= peaks[job.name] + 3 * 4 * job.shape[0] * job.shape[1] for job in other.jobs)


@pytest.mark.parametrize("case", ["DoRA of rows", "split"])
def test_convert_says_what_it_multiplied_out(case, source, tmp_path):
    stem = "lycoris_blocks_0_self_attn_k"
    path = write_lycoris({LAYERS[0]: parts_of(case, 32, 32)}, tmp_path / "x.safetensors")
    plain = {f"{stem}.lora_up.weight": gaussian(32, 2), f"{stem}.lora_down.weight": gaussian(2, 32)}
    save_file(load_file(path) | plain, path)
    assert convert(path, tmp_path / "out.safetensors", model=source.path).multiplied == (LAYERS[0],)
