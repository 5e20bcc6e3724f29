"""Weights that ComfyUI's own library wrote, and the numbers that it reads from them: what is read here is the same."""

import base64
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraport.containers.references import refusal
from loraport.containers.tensors import open_tensors, read_float
from storage import comfy

WEIGHTS = json.loads((Path(__file__).parent / "comfyui_weights.json").read_text())["weights"]


def _tensor(data: str, dtype: str, shape: list[int]) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(data)), dtype=getattr(torch, dtype)).reshape(shape)


@pytest.mark.parametrize("name", WEIGHTS)
def test_they_are_read_as_their_library_reads_them(name, tmp_path):
    stored = WEIGHTS[name]
    tensors = {f"a.{key}": _tensor(**packed) for key, packed in stored["tensors"].items()}
    save_file(tensors | {"a.comfy_quant": comfy(**stored["settings"])}, tmp_path / "x.safetensors")
    (ref,) = open_tensors(tmp_path / "x.safetensors").groups[()].values()
    assert refusal(ref) is None
    wanted = _tensor(stored["numbers"], "float32", [2, 64])
    torch.testing.assert_close(read_float(ref), wanted, rtol=1e-6, atol=1e-8)
    assert wanted.abs().max() > 0.05
