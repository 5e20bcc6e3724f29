"""The promise, checked on really trained models: the output does in the real loader what the transfer computed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
from loraport import zoo
from loraport.adapters.parse import open_adapter
from loraport.engine.options import RunOptions
from loraport.models.checkpoint import open_checkpoint

LORA, SOURCE, TARGET = "outline", "source", "dmd"


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> RunOptions:
    return RunOptions(cache=str(tmp_path_factory.mktemp("cache")), log="off", overwrite=True)


def _transfer(output, options, lora=None, **settings) -> loraport.TransferReport:
    lora = zoo.path(LORA) if lora is None else lora
    return loraport.transfer(
        lora, source=zoo.path(SOURCE), target=zoo.path(TARGET), output=output, options=options, **settings
    )


def _updates(path) -> dict[str, torch.Tensor]:
    adapter = open_adapter(path, open_checkpoint(zoo.path(TARGET)))
    return {name: layer.load().dense() for name, layer in adapter.layers.items()}


def _pipeline():
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    def build():
        return WanPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            transformer=WanTransformer3DModel.from_pretrained(zoo.path(TARGET), subfolder="transformer"),
        )

    with torch.random.fork_rng():
        return build()


@pytest.mark.parametrize("profile", ["universal", "diffusers", "kohya"])
def test_the_real_pipeline_takes_every_key_and_adds_exactly_the_update(profile, tmp_path, options, caplog):
    from diffusers.utils import logging

    output = tmp_path / "out.safetensors"
    _transfer(output, options, to=profile)
    pipeline = _pipeline()
    target = open_checkpoint(zoo.path(TARGET))
    before = {name: weight.detach().clone() for name, weight in pipeline.transformer.named_parameters()}
    logging.enable_propagation()  # diffusers tells of unmatched keys in its log only
    with torch.random.fork_rng(), caplog.at_level("WARNING"):
        pipeline.load_lora_weights(str(output))
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    logging.disable_propagation()
    assert not [record for record in caplog.records if "key" in record.getMessage().lower()], caplog.text
    after = {name: weight.detach() for name, weight in pipeline.transformer.named_parameters()}
    _transfer(tmp_path / "reference.safetensors", options)
    updates = _updates(tmp_path / "reference.safetensors")
    for name, weight in before.items():
        change = after[name] - weight
        canonical = next((layer for layer, ref in target.tensors.items() if ref.key == name), "")
        update = updates.pop(canonical.removesuffix(".weight"), None) if canonical.endswith(".weight") else None
        if update is None:
            assert torch.equal(change, torch.zeros_like(change)), name
        else:
            assert float((change - update).norm() / update.norm()) < 1e-4, name
    assert not updates, f"never reached the model: {list(updates)}"


def _spellings(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]]:
    """The bundled LoRA (diffusers names, scale 1, rank 8) as other trainers would have written it."""
    rank, alpha = 8, 2.0

    def rename(prefix, down, up, original, alphas=None):
        found = {}
        for key, tensor in tensors.items():
            path, _, part = key.removeprefix("transformer.").rpartition(".lora_")
            if original:
                for old, new in (("attn1.to_", "self_attn."), ("attn2.to_", "cross_attn."), ("out.0", "o")):
                    path = path.replace(old, new)
                path = path.replace("ffn.net.0.proj", "ffn.0").replace("ffn.net.2", "ffn.2")
            path = path.replace(".", "_") if prefix.startswith("lora_unet") else path
            is_up = part.startswith("B")
            scaled = tensor * (rank / alpha) if is_up and alphas else tensor
            found[f"{prefix}{path}.{up if is_up else down}"] = scaled
            if is_up and alphas:
                found[f"{prefix}{path}.{alphas}"] = torch.tensor(alpha)
        return found

    peft = json.dumps({"r": rank, "lora_alpha": alpha, "target_modules": ["to_q"]})
    louder = {key: tensor * (rank / alpha) if "lora_B" in key else tensor for key, tensor in tensors.items()}
    return {
        "diffusers": (tensors, {}),
        "diffusers, alpha in the header": (
            louder,
            {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in json.loads(peft).items()})},
        ),
        "universal": (rename("diffusion_model.", "lora_A.weight", "lora_B.weight", True), {}),
        "universal with alpha": (rename("diffusion_model.", "lora_A.weight", "lora_B.weight", True, "alpha"), {}),
        "kohya": (rename("lora_unet_", "lora_down.weight", "lora_up.weight", True, "alpha"), {}),
        "kohya, diffusers names": (rename("lora_unet_", "lora_down.weight", "lora_up.weight", False, "alpha"), {}),
        "VideoX-Fun": (rename("lora_unet__", "lora_down.weight", "lora_up.weight", True, "alpha"), {}),
        "bare original": (rename("", "lora_A.weight", "lora_B.weight", True), {}),
        "DiffSynth": (rename("", "lora_A.default.weight", "lora_B.default.weight", True), {}),
        "PEFT": (rename("base_model.model.", "lora_A.weight", "lora_B.weight", False), {}),
        "LightX2V": (rename("diffusion_model.", "lora_down.weight", "lora_up.weight", True), {}),
    }


def test_the_same_update_in_every_spelling_gives_the_same_result(tmp_path, options):
    given = load_file(zoo.path(LORA))
    reference = None
    for name, (tensors, metadata) in _spellings(given).items():
        lora, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, lora, metadata=metadata or None)
        # Whole, since singular values lie close where a rank would cut, and each way of writing has seeds of its own.
        report = _transfer(output, options, lora=lora, rank="full", dtype="float32")
        assert len(report.layers) == 40, name
        updates = _updates(output)
        reference = reference or updates
        for layer, update in updates.items():
            error = float((update - reference[layer]).norm() / reference[layer].norm())
            assert error < 1e-3, f"{name}, {layer}: {error:.1e}"


def test_names_of_source_and_target_may_differ(tmp_path, options):
    target = open_checkpoint(zoo.path(TARGET))
    original = {f"model.diffusion_model.{name}": _read(ref) for name, ref in target.tensors.items()}
    save_file(original, tmp_path / "original.safetensors")
    _transfer(tmp_path / "one.safetensors", options)
    loraport.transfer(
        zoo.path(LORA), source=zoo.path(SOURCE), target=tmp_path / "original.safetensors",
        output=tmp_path / "two.safetensors", options=options,
    )  # fmt: skip
    one, two = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "two.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def _read(ref) -> torch.Tensor:
    from loraport.containers.tensors import read_tensor

    return read_tensor(ref)
