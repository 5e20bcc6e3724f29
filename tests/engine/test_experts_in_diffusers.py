"""Both experts in diffusers' own pipeline: its folders are read, and each file lands in its transformer as told."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport

tinywan = pytest.importorskip("tinywan")

NAMES = {"attn1": "self_attn", "attn2": "cross_attn", "to_out.0": "o", "net.0.proj": "0", "net.2": "2"}


def _original(module: str) -> str:
    for here, there in NAMES.items():
        module = module.replace(here, there)
    return module.replace("to_", "")


def test_each_file_changes_its_own_transformer_by_its_update(tmp_path):
    parts = ("transformer", "transformer_2")
    for role, drift in (("source", 0.0), ("target", 0.1)):
        for seed, part in enumerate(parts):
            tinywan.transformer(10 * seed, drift=drift).save_pretrained(tmp_path / role / part)
    both = {}
    for number, size in ((1, 0.5), (2, 0.2)):
        lora = load_file(tinywan.lora(tmp_path / "lora.safetensors", size=size))
        both |= {key.replace("diffusion_model.", f"transformer_{number}."): tensor for key, tensor in lora.items()}
    save_file(both, tmp_path / "both.safetensors")
    recipe = loraport.Recipe(
        lora=tmp_path / "both.safetensors",
        source=tmp_path / "source",
        target=tmp_path / "target",
        method="matched-gain",
    )
    options = loraport.RunOptions(cache="off", log="off", executor="serial")
    report = loraport.transfer_experts(recipe, output=tmp_path / "out.safetensors", options=options)

    pipe = tinywan.pipeline(0, drift=0.1, encoder=False)
    pipe.register_modules(transformer_2=tinywan.transformer(10, drift=0.1))
    before = {part: {k: t.clone() for k, t in getattr(pipe, part).state_dict().items()} for part in parts}
    with torch.random.fork_rng(devices=[]):
        for one in report.reports.values():
            (way,) = [way.removeprefix("diffusers: ") for way in one.load if way.startswith("diffusers: ")]
            exec(way, {"pipe": pipe})  # what the report says to type
    pipe.fuse_lora(components=list(parts))
    pipe.unload_lora_weights()
    for part, one in zip(parts, report.reports.values(), strict=True):
        made = load_file(one.output)
        changed = 0
        for key, tensor in getattr(pipe, part).state_dict().items():
            stem = f"diffusion_model.{_original(key.removesuffix('.weight'))}"
            if f"{stem}.lora_A.weight" in made:
                update = made[f"{stem}.lora_B.weight"] @ made[f"{stem}.lora_A.weight"]
                error = float((tensor - before[part][key] - update).norm() / update.norm())
                assert error < 1e-4, f"{part} {key}: {error:.2e}"
                changed += 1
            else:
                assert torch.equal(tensor, before[part][key])
        assert changed == len(made) // 2
