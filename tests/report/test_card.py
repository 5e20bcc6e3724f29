"""What a card calls models and LoRAs: nothing of this machine, and enough to find them."""

import pytest

from loraport.report.card import name_of


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/hub/models--Wan-AI--Wan2.1-Diffusers/snapshots/ab12/transformer", "Wan-AI/Wan2.1-Diffusers"),
        ("/home/me/models/FastWan2.1/transformer", "FastWan2.1"),
        ("/home/me/loras/ink.safetensors", "ink.safetensors"),
        ("loras/ink/pytorch_lora_weights.safetensors", "ink/pytorch_lora_weights.safetensors"),
        ("model.safetensors", "model.safetensors"),
    ],
)  # fmt: skip
def test_names(path, name):
    assert name_of(path) == name
