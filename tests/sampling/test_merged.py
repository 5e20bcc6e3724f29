"""Distillation LoRAs in a model that is run: the same weights as when they were merged beforehand."""

import pytest
import torch
from safetensors.torch import save_file

import tinywan
from loraport import AddedLora
from loraport.errors import LoraportError, UsageError
from loraport.sampling.pipelines import as_runnable
from loraport.sampling.schedule import SamplingSettings, Schedule
from loraport.sampling.wan import open_runnable

D, F = tinywan.WIDTH, tinywan.FFN
HOW = SamplingSettings(schedule=Schedule((1.0, 0.5, 0.0)), latents=(tinywan.FRAMES, tinywan.SIZE, tinywan.SIZE))
# what of a LoRA in original names changes which parameter of diffusers' network
FACTORS = {
    "blocks.0.self_attn.q": ("blocks.0.attn1.to_q", D, D),
    "blocks.1.ffn.2": ("blocks.1.ffn.net.2", D, F),
}
CHANGES = {
    "blocks.0.self_attn.q.diff_b": ("blocks.0.attn1.to_q.bias", (D,)),
    "blocks.1.cross_attn.norm_q.diff": ("blocks.1.attn2.norm_q.weight", (D,)),
    "blocks.0.norm3.diff": ("blocks.0.norm2.weight", (D,)),
    "blocks.1.diff_m": ("blocks.1.scale_shift_table", (1, 6, D)),
    "head.diff_m": ("scale_shift_table", (1, 2, D)),
    "head.head.diff": ("proj_out.weight", (4 * tinywan.CHANNELS, D)),
    "patch_embedding.diff": ("patch_embedding.weight", (D, tinywan.CHANNELS, 1, 2, 2)),
}


@pytest.fixture
def folder(tmp_path):
    tinywan.transformer(changes={"cross_attn_norm": True}).save_pretrained(tmp_path / "source" / "transformer")
    return tmp_path / "source"


def _lora(path, seed: int) -> tuple[str, dict[str, torch.Tensor]]:
    """A file, and what it adds to each parameter at strength 1."""
    made = torch.Generator().manual_seed(seed)
    tensors, adds = {}, {}
    for name, (param, m, n) in FACTORS.items():
        up, down = torch.randn(m, 2, generator=made), torch.randn(2, n, generator=made)
        tensors |= {f"diffusion_model.{name}.lora_up.weight": up, f"diffusion_model.{name}.lora_down.weight": down}
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(1.0)
        adds[f"{param}.weight"] = 0.5 * up @ down
    for key, (param, shape) in CHANGES.items():
        tensors[f"diffusion_model.{key}"] = adds[param] = torch.randn(shape, generator=made)
    save_file(tensors, path)
    return str(path), adds


def test_a_model_with_loras_is_the_one_they_were_merged_into(folder, tmp_path):
    one, adds = _lora(tmp_path / "one.safetensors", 1)
    two, more = _lora(tmp_path / "two.safetensors", 2)
    added = (AddedLora(file=one, strength=0.5), AddedLora(file=two, strength=-0.25, scale=1.0))
    merged = open_runnable(folder, HOW, added=added).open().network.state_dict()
    plain = open_runnable(folder, HOW).open().network.state_dict()
    assert adds.keys() <= plain.keys()
    for name, weight in plain.items():
        by_hand = weight
        if name in adds:
            of_factors = name.removesuffix(".weight") in {param for param, _, _ in FACTORS.values()}
            by_hand = weight + 0.5 * adds[name] - 0.25 * more[name] * (2.0 if of_factors else 1.0)  # its scale is 1
        torch.testing.assert_close(merged[name], by_hand, rtol=1e-6, atol=1e-6)


def test_a_bundled_model_takes_them_too():
    bare, both = (
        open_runnable("zoo:source", added=added).open()
        for added in ((), (AddedLora(file="zoo:distill-lora", strength=2.0),))
    )
    once = open_runnable("zoo:distill-lora").open()
    name = "blocks.0.ffn.2"
    first, second, third = (denoiser.linear(name).weight for denoiser in (bare, once, both))
    torch.testing.assert_close(third - first, 2 * (second - first), rtol=1e-4, atol=1e-5)


def test_refusals(folder, tmp_path):
    file, _ = _lora(tmp_path / "one.safetensors", 1)
    with pytest.raises(UsageError, match=r"already in memory(.|\n)*give its folder"):
        as_runnable(tinywan.transformer(), HOW, role="target", added=(AddedLora(file=file),))
    with pytest.raises(LoraportError, match="nothing"):
        open_runnable(folder, HOW, added=(AddedLora(file=str(tmp_path / "nothing.pt")),)).open()
