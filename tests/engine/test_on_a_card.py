"""What cuts weights, and what looks at them, on a card that is not there: it runs, finds what the CPU finds, and
everything that is called gives the same bits in every run."""

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_same_bits import refuse_changing

import loraport
import pico
from loraport.engine import accelerators
from loraport.engine.options import RunOptions
from pretended_device import pretended_cuda

SOME = r"^blocks\.0\.(self_attn\.q|ffn\.0)$"


def _options(device: str) -> RunOptions:
    return RunOptions(cache="off", executor="serial", log="off", overwrite=True, device=device)


def _numbers(found: Any) -> list[float]:
    """All of them, in order; how long it took is not among them."""
    if isinstance(found, dict):
        return [x for key, value in found.items() if key not in ("seconds", "device") for x in _numbers(value)]
    if isinstance(found, list | tuple):
        return [x for value in found for x in _numbers(value)]
    return [float(found)] if isinstance(found, float | int) and not isinstance(found, bool) else []


def _analysed(files: pico.Pico, device: str, folder: Path) -> list[float]:
    found = loraport.analyze(files.source, files.target, files.lora, layers=SOME, options=_options(device))
    return [x for layer in found.layers for x in _numbers(asdict(layer))]


def _extracted(files: pico.Pico, device: str, folder: Path) -> list[float]:
    out = folder / "out.safetensors"
    loraport.extract(files.source, files.target, out, rank=2, drop=r"^(?!blocks\.0\.ffn)", options=_options(device))
    tensors = load_file(out)
    stems = sorted(key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight"))
    updates = (tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"] for stem in stems)
    return [x for update in updates for x in update.flatten().tolist()]


@pytest.mark.parametrize("look", [_extracted, pytest.param(_analysed, marks=pytest.mark.slow)])
def test_a_card_finds_what_the_cpu_finds(look, tmp_path, monkeypatch):
    files = pico.write(tmp_path / "pico")
    plain = look(files, "cpu", tmp_path)
    with pretended_cuda(monkeypatch, watch=refuse_changing):
        found = look(files, "cuda:0", tmp_path)
    assert len(found) > 30
    assert found == pytest.approx(plain, rel=1e-3, abs=1e-4)


def _transferred(files: pico.Pico, device: str, folder: Path) -> bytes:
    out = folder / "out.safetensors"
    loraport.transfer(
        files.lora, source=files.source, target=files.target, output=out, method="casa", layers=SOME,
        drop=r"^blocks\.0\.cross_attn", options=_options(device),
    )  # fmt: skip
    return out.read_bytes()


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_what_numbers_the_program_around_it_prefers_changes_no_byte(device, tmp_path, monkeypatch):
    files = pico.write(tmp_path / "pico")
    made = []
    for preferred in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(accelerators, "_turns", {})
        torch.set_default_dtype(preferred)
        try:
            with pretended_cuda(monkeypatch) if device != "cpu" else contextlib.nullcontext():
                made.append(_transferred(files, device, tmp_path))
        finally:
            torch.set_default_dtype(torch.float32)
    assert made[0] == made[1]
