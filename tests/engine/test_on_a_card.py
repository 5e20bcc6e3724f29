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
from loraport.containers.tensors import open_tensors
from loraport.core.basis import SpectralBasis
from loraport.core.operator import sent
from loraport.core.thin_svd import thin_svd
from loraport.engine import accelerators, on_device
from loraport.engine.executor import Slot
from loraport.engine.options import RunOptions
from loraport.engine.reading import InputReader
from loraport.engine.run_cache import open_cache
from loraport.store.digests import DigestMemo
from loraport.store.index import entry_key
from pretended_device import CUDA, Pinned, pretended_cuda

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


def _extracted(files: pico.Pico, device: str, folder: Path, **amount: Any) -> list[float]:
    out, amount = folder / "out.safetensors", amount or {"rank": 2}
    loraport.extract(files.source, files.target, out, drop=r"^(?!blocks\.0\.ffn)", options=_options(device), **amount)
    tensors = load_file(out)
    stems = sorted(key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight"))
    updates = (tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"] for stem in stems)
    return [x for update in updates for x in update.flatten().tolist()]


def _extracted_by_energy(files: pico.Pico, device: str, folder: Path) -> list[float]:
    return _extracted(files, device, folder, energy=0.5)


@pytest.mark.parametrize("look", [_extracted, _extracted_by_energy, pytest.param(_analysed, marks=pytest.mark.slow)])
def test_a_card_finds_what_the_cpu_finds(look, tmp_path, monkeypatch):
    files = pico.write(tmp_path / "pico")
    plain = look(files, "cpu", tmp_path)
    if look is not _analysed:  # which asks for those of its null models, which are small and never on the card
        monkeypatch.delattr(torch.linalg, "svdvals")  # by rotations there, with nothing behind them
    with pretended_cuda(monkeypatch, watch=refuse_changing):
        found = look(files, "cuda:0", tmp_path)
    assert len(found) > 30
    assert found == pytest.approx(plain, rel=1e-3, abs=1e-4)


def test_what_a_card_writes_is_not_there_before_it_is_waited_for(monkeypatch):
    """The pretence itself: rubbish first, and a complaint where its source changes."""
    pinned = Pinned()
    with pretended_cuda(monkeypatch, pinned=pinned):
        there = torch.arange(6.0).to("cuda:0")
        room = torch.empty(6, pin_memory=True)
        room.copy_(there, non_blocking=True)
        assert room.isnan().all()
        torch.cuda.current_stream("cuda:0").synchronize()
        assert room.tolist() == [0, 1, 2, 3, 4, 5]
        room.to("cuda:0", non_blocking=True)
        room[0] = 7
        with pytest.raises(AssertionError, match="before the device had read it"):
            torch.cuda.current_stream("cuda:0").synchronize()
        with pytest.raises(AssertionError, match="ordinary memory"):
            torch.empty(6).copy_(there, non_blocking=True)


def test_a_tensor_that_passes_to_another_stream_is_noticed(monkeypatch):
    with pretended_cuda(monkeypatch):
        with on_device.own_stream("cuda:0"):
            there = torch.ones(2, device="cuda:0")
        with pytest.raises(AssertionError, match="another stream"):
            there.cpu()


def test_what_loras_and_methods_share_at_a_layer_stays_in_its_stream(tmp_path, monkeypatch):
    """The matrices in hand, and the bases that are held for another method."""
    files = pico.write(tmp_path / "pico")
    grid = {
        "source": files.source, "target": files.target, "method": ["casa", "prolora"], "strength": [1.0, 0.5],
        "layers": SOME, "drop": r"^blocks\.0\.cross_attn",
    }  # fmt: skip
    with pretended_cuda(monkeypatch) as asked:
        report = loraport.sweep([files.lora], grid, output=tmp_path / "out", options=_options("cuda:0"))
    assert not report.errors
    assert len(list((tmp_path / "out").rglob("*.safetensors"))) == 4
    assert asked["stream"] > 0


def test_a_run_on_the_cpu_begins_with_no_card(tmp_path, monkeypatch):
    """To say whether memory is pinned torch takes hold of a card, and fails where that one is full."""
    files = pico.write(tmp_path / "pico")

    def begin(tensor: torch.Tensor, *device: Any) -> bool:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "is_pinned", begin)
    options = _options("cpu").model_copy(update={"cache": str(tmp_path / "cache")})
    for strength in (1.0, 0.5):  # the second finds what the first kept
        loraport.transfer(
            files.lora, source=files.source, target=files.target, output=tmp_path / "out.safetensors", method="casa",
            strength=strength, options=options,
        )  # fmt: skip


def test_what_is_kept_of_a_card_is_waited_for_and_what_is_sent_is_not(monkeypatch):
    pinned = Pinned()
    with pretended_cuda(monkeypatch, pinned=pinned) as asked:
        x = torch.arange(12.0).reshape(3, 4)
        there = sent(x, torch.empty(0, device="cuda:0"))
        assert (pinned.sent, there.device) == (1, CUDA)
        found = accelerators.to_host({"as it lies": there, "turned": there.T})
        assert torch.equal(found["as it lies"], x)
        assert torch.equal(found["turned"], x.T)
        assert {name: kept.stride() for name, kept in found.items()} == {"as it lies": (4, 1), "turned": (1, 4)}
    assert (asked["synchronize"], asked["waits"]) == (1, 0)


def test_a_weight_goes_to_a_card_from_pinned_memory(tmp_path, monkeypatch):
    files, pinned = pico.write(tmp_path / "pico"), Pinned()
    (refs,) = open_tensors(files.source).groups.values()
    ref = refs["blocks.0.ffn.0.weight"]
    with pretended_cuda(monkeypatch, pinned=pinned):
        reader = InputReader(DigestMemo(None), pinned=True)
        assert torch.equal(reader.read(ref, device=torch.device("cuda:0")).cpu(), reader.read(ref))
    assert pinned.sent == 1


def test_what_was_kept_goes_to_a_card_from_pinned_memory(tmp_path, monkeypatch):
    """The basis of a further LoRA: three tensors, for which nobody waits."""
    found = thin_svd(torch.randn(9, 5, generator=torch.Generator().manual_seed(0)))
    key = entry_key({"of": "a layer"})
    pinned = Pinned()
    with pretended_cuda(monkeypatch, pinned=pinned) as asked:
        store, _ = open_cache({}, RunOptions(cache=str(tmp_path), device="cuda:0"), print, _Slots())
        store.put("basis", key, {"U": found.U, "S": found.S, "Vh": found.Vh})
        store.finish()
        entry = store.get("basis", key)
        basis = SpectralBasis(entry["U"], entry["S"], entry["Vh"]).to("cuda:0")
        assert (pinned.sent, asked["waits"]) == (3, 0)
        assert {part.device for part in (basis.U, basis.S, basis.Vh)} == {CUDA}
        assert torch.equal(basis.U.cpu(), found.U)


class _Slots:
    def slots(self) -> list[Slot]:
        return [Slot("cuda:0", 1, 10**9)]


def _transferred(files: pico.Pico, device: str, folder: Path) -> bytes:
    out = folder / "out.safetensors"
    loraport.transfer(
        files.lora, source=files.source, target=files.target, output=out, method="casa", layers=SOME,
        drop=r"^blocks\.0\.cross_attn", options=_options(device),
    )  # fmt: skip
    return out.read_bytes()


def test_the_card_that_is_named_is_the_one_that_works(tmp_path, monkeypatch):
    """Nothing is asked of the first, nor of whichever torch takes for the current one."""
    files, made = pico.write(tmp_path / "pico"), []
    for index in (0, 1):
        with pretended_cuda(monkeypatch, index=index):
            made.append(_transferred(files, f"cuda:{index}", tmp_path))
    assert made[0] == made[1]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_what_numbers_the_program_around_it_prefers_changes_no_byte(device, tmp_path, monkeypatch):
    files = pico.write(tmp_path / "pico")
    made = []
    for preferred in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(on_device, "_turns", {})
        torch.set_default_dtype(preferred)
        try:
            with pretended_cuda(monkeypatch) if device != "cpu" else contextlib.nullcontext():
                made.append(_transferred(files, device, tmp_path))
        finally:
            torch.set_default_dtype(torch.float32)
    assert made[0] == made[1]


@pytest.mark.parametrize("preferred", ["meta", "inference"])
def test_where_the_program_around_it_has_its_tensors_changes_no_byte(preferred, tmp_path):
    """As `torch.set_default_device("cuda")` has, in many a script; for the caller's thread alone."""
    files = pico.write(tmp_path / "pico")
    plain = _transferred(files, "cpu", tmp_path)
    with torch.inference_mode() if preferred == "inference" else torch.device(preferred):
        assert _transferred(files, "cpu", tmp_path) == plain
