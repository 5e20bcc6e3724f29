"""Names of the attention are common to many families: a LoRA on it alone is told by its sizes."""

import pytest
import torch

from loraport.adapters.describe import describe
from makers import LoraFile

IMAGE = {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1, "attn.to_out.0": 1}
TEXT = {"attn.add_q_proj": 1, "attn.add_k_proj": 1, "attn.add_v_proj": 1, "attn.to_add_out": 1}


def _lora(parts, width, blocks, called="transformer_blocks", prefix="transformer."):
    """Factors of rank 1; the rows of B as a share of the width."""
    found = {}
    for n in range(blocks):
        for name, share in parts.items():
            stem = f"{prefix}{called}.{n}.{name}"
            found[f"{stem}.lora_A.weight"] = torch.zeros(1, width)
            found[f"{stem}.lora_B.weight"] = torch.zeros(int(width * share), 1)
    return found


CASES = [
    ("Krea 2 12.9B", _lora({"attn.to_q": 1, "attn.to_k": 0.25, "attn.to_v": 0.25}, 6144, 28)),
    ("Krea 2 12.9B", _lora({"attn.wq": 1, "attn.wk": 0.25}, 6144, 28, "blocks", "diffusion_model.")),
    ("Z-Image 6B", _lora({"attention.to_q": 1, "attention.to_k": 1}, 3840, 30, "layers")),
    ("Z-Image 6B", _lora({"attention.qkv": 3}, 3840, 30, "layers", "diffusion_model.")),
    ("Qwen-Image 20B", _lora(IMAGE, 3072, 60)),
    ("Qwen-Image 20B", _lora(IMAGE | TEXT, 3072, 60)),
    ("Qwen-Image-2.1 7B", _lora(IMAGE, 4096, 32)),
    ("FLUX.2 klein 9B", _lora(IMAGE | TEXT, 4096, 8)),
    ("FLUX.2 klein 4B", _lora({"img_attn.qkv": 3, "txt_attn.qkv": 3}, 3072, 5, "double_blocks", "diffusion_model.")),
    ("FLUX.2 dev 32B", _lora({"linear1": 9}, 6144, 48, "single_blocks", "diffusion_model.")),
    ("HunyuanVideo-1.5 8.3B", _lora(IMAGE | TEXT, 2048, 54)),
]


@pytest.mark.parametrize(("title", "tensors"), CASES, ids=[f"{title} {i}" for i, (title, _) in enumerate(CASES)])
def test_it_is_told_by_its_sizes(title, tensors, tmp_path):
    found = describe(LoraFile(tensors).write(tmp_path))
    assert (found.refused, found.title.partition(" (")[0]) == ("", title)


FOREIGN = [
    _lora({"img_attn.qkv": 3}, 3072, 19, "double_blocks", "diffusion_model."),
    _lora({"linear1": 7}, 3072, 38, "single_blocks", "diffusion_model."),
    _lora(IMAGE, 3072, 19) | _lora({"attn.to_q": 1}, 3072, 38, "single_transformer_blocks"),
]


@pytest.mark.parametrize("tensors", FOREIGN)
def test_flux1_is_no_flux2(tensors, tmp_path):
    assert "for FLUX" in describe(LoraFile(tensors).write(tmp_path)).refused
