"""A merged checkpoint is the checkpoint, but for the tensors that the LoRA changes, which are W + s B A."""

import itertools
import json
import os
import sys
import weakref
import zipfile
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import load_file, save_file
from torch import Tensor

import hunyuan
import loraport
import pico
from adapter_parts import factors, gaussian, parts_of, write_lycoris
from loraport.containers import rewrite
from loraport.containers.safetensors import read_header
from loraport.containers.tensors import open_tensors, read_tensor
from loraport.containers.torch_zip import begin_of
from loraport.engine.events import Written
from loraport.errors import FileError, MismatchError, NumericalError, UnsupportedError, UsageError
from loraport.merging import run
from storage import write_gguf

STATE = pico.weights(1)
STATE["blocks.0.norm3.weight"] = STATE["blocks.0.norm3.weight"].bfloat16()  # as mixed as files are
LORA = pico.lora(3)
WANTED = {
    f"{name}.weight": LORA[f"diffusion_model.{name}.lora_B.weight"].double()
    @ LORA[f"diffusion_model.{name}.lora_A.weight"].double()
    for name in pico.LAYERS
}
TEXTS = {"zebra": "1", "modelspec.title": "größe", "modelspec.hash_sha256": "of the file before", "author": "x"}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    save_file(LORA, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def _dense(state: dict[str, Tensor], strength: float) -> dict[str, Tensor]:
    return {key: t.double() + strength * WANTED[key] if key in WANTED else t for key, t in state.items()}


def _check(found: dict[str, Tensor], wanted: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    """Sums as near as float32 is, in the dtype they had; everything else bit for bit."""
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        assert tensor.dtype == before[key].dtype
        if key in WANTED:
            assert (tensor.double() - wanted[key]).norm() <= 1e-6 * wanted[key].norm()
        else:
            assert torch.equal(tensor, before[key]), key


def test_one_file_keeps_everything_else(lora, tmp_path):
    path, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    strange = [7, {"digest": {}, "strength": 1.0}]  # by somebody else
    save_file(STATE, path, TEXTS | {"loraport.merged": json.dumps(strange)})
    report = loraport.merge(lora, path, output, strength=0.8)
    _check(load_file(output), _dense(STATE, 0.8), STATE)
    one, two = read_header(path), read_header(output)
    assert [(key, span.start - one.base) for key, span in one.spans.items()] == [
        (key, span.start - two.base) for key, span in two.spans.items()
    ]
    kept = {key: text for key, text in TEXTS.items() if "hash" not in key}
    assert {key: text for key, text in two.metadata.items() if not key.startswith("loraport.")} == kept
    *others, told = json.loads(two.metadata["loraport.merged"])
    assert others == strange
    assert (told["lora"], told["strength"]) == ("style.safetensors", 0.8)
    assert (report.tensors, report.untouched) == (len(WANTED), len(STATE) - len(WANTED))
    assert report.lost < 1e-6
    again = loraport.merge(lora, output, tmp_path / "back.safetensors", strength=-0.8)
    assert "merged into it before, at 0.8: it is taken out now" in "".join(again.warnings)
    back = load_file(tmp_path / "back.safetensors")
    assert all(torch.allclose(back[key].float(), tensor.float(), atol=1e-6) for key, tensor in STATE.items())


def test_a_sum_is_rounded_once(lora, tmp_path):
    state = {key: tensor.bfloat16() for key, tensor in STATE.items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "copy.safetensors").write_bytes(lora.read_bytes())
    several = [f"{lora}:0.5", f"{tmp_path / 'copy.safetensors'}:-0.2"]
    report = loraport.merge(several, tmp_path / "model.safetensors", tmp_path / "out.safetensors", strength=2.0)
    found, wanted = load_file(tmp_path / "out.safetensors"), _dense(state, 0.6)
    lost = 0.0
    for key in WANTED:
        exact = wanted[key].bfloat16()
        assert (found[key] != exact).float().mean() < 1e-3  # halves are told apart by the last digit of float32
        assert (found[key].double() - wanted[key]).abs().max() <= 2**-8 * wanted[key].abs().max()
        lost += float((found[key].double() - wanted[key]).norm() ** 2)
    change = sum(float((0.6 * change).norm() ** 2) for change in WANTED.values())
    assert report.lost == pytest.approx((lost / change) ** 0.5, rel=1e-3)
    assert "hold the same LoRA, so it counts 2 times" in report.warnings[0]


def test_shards_stay_shards(lora, tmp_path):
    folder, keys = tmp_path / "model", list(STATE)
    folder.mkdir()
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    untouched = [key for key in keys if key not in WANTED][:5]
    others = [key for key in keys if key not in untouched]
    parts = [untouched, others[::2], others[1::2]]
    for name, part in zip(names, parts, strict=True):
        save_file({key: STATE[key] for key in part}, folder / name, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {k: n for n, p in zip(names, parts, strict=True) for k in p}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="several files"):
        loraport.merge(lora, folder, tmp_path / "out.safetensors")
    loraport.merge(lora, folder, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {file.name for file in folder.iterdir()}
    for name in (names[0], "model.safetensors.index.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    found = {key: tensor for name in names for key, tensor in load_file(tmp_path / "out" / name).items()}
    _check(found, _dense(STATE, 1.0), STATE)
    with pytest.raises(FileError, match="would replace the checkpoint"):
        loraport.merge(lora, folder, folder, overwrite=True)


@pytest.mark.parametrize("repacked", [False, True])
def test_a_nest_of_a_torch_file(repacked, lora, tmp_path):
    path, output = tmp_path / "model.pt", tmp_path / "out.pt"
    other = {key: tensor + 1 for key, tensor in STATE.items()}
    turned = STATE | {"blocks.0.ffn.0.weight": STATE["blocks.0.ffn.0.weight"].T.contiguous().T}
    beside = [f"blocks.0.self_attn.{name}.weight" for name in "qkv"]  # views of one storage
    turned |= dict(zip(beside, torch.stack([STATE[key] for key in beside]).unbind(), strict=True))
    torch.save({"generator": other, "generator_ema": turned, "step": 3}, path)
    if repacked:  # as other programs pack, with a checksum before the numbers instead of behind them
        with zipfile.ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in records.items():
                archive.writestr(name, data)
    with pytest.raises(UsageError, match="keeps the layout"):
        loraport.merge(lora, path, tmp_path / "out.safetensors")
    loraport.merge(lora, path, output, nested="generator_ema")
    found = torch.load(output, weights_only=True)
    assert found["step"] == 3
    assert all(torch.equal(found["generator"][key], tensor) for key, tensor in other.items())
    _check(found["generator_ema"], _dense(STATE, 1.0), STATE)
    with zipfile.ZipFile(output) as archive, output.open("rb") as file:
        assert archive.testzip() is None
        for info in archive.infolist():  # each checksum stands in a second place
            assert bool(info.flag_bits & 8) != repacked
            file.seek(info.header_offset + 14 if repacked else begin_of(info, file) + info.file_size + 4)
            assert file.read(4) == info.CRC.to_bytes(4, "little")
    torch.save({"generator": STATE, "generator_ema": dict(STATE)}, path)
    with pytest.raises(UnsupportedError, match="share their numbers"):
        loraport.merge(lora, path, output, nested="generator", overwrite=True)


def _fp8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A scale for a tensor, for its rows, and none, as files have them."""
    made = dict(state)
    for number, name in enumerate(pico.LAYERS):
        key = f"{name}.weight"
        if number % 3 == 2:
            made[key] = state[key].to(torch.float8_e4m3fn)
            continue
        peak = state[key].abs().amax(1, keepdim=True) if number % 3 else state[key].abs().max()
        made[f"{name}.scale_weight"] = peak / 448
        made[key] = (state[key] / (peak / 448)).to(torch.float8_e4m3fn)
    return made


def _read(state: dict[str, Tensor]) -> dict[str, Tensor]:
    scales = {key.replace(".scale_weight", ".weight"): t.double() for key, t in state.items() if "scale" in key}
    return {key: tensor.double() * scales.get(key, 1.0) for key, tensor in state.items() if "scale" not in key}


def test_8_bits_on_request_and_the_loss_is_told(lora, tmp_path):
    path, output = tmp_path / "fp8.safetensors", tmp_path / "out.safetensors"
    state = _fp8(STATE)
    save_file(state, path)
    with pytest.raises(UnsupportedError, match="--requantize"):
        loraport.merge(lora, path, output)
    assert not output.exists()
    report = loraport.merge(lora, path, output, requantize=True)
    after = load_file(output)
    assert {key: tensor.dtype for key, tensor in after.items()} == {key: tensor.dtype for key, tensor in state.items()}
    before, found = _read(state), _read(after)
    lost = 0.0
    for key, change in WANTED.items():
        exact = before[key] + change
        assert (found[key] - exact).norm() <= 0.04 * exact.norm()
        lost += float((found[key] - exact).norm() ** 2)
    total = sum(float(change.norm() ** 2) for change in WANTED.values())
    assert report.lost == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert report.requantized == len(WANTED)
    assert any(not torch.equal(after[key], tensor) for key, tensor in state.items() if "scale" in key)
    assert all(torch.equal(after[k], t) for k, t in state.items() if k not in WANTED and "scale" not in k)
    # What does not change stays as it was, although it is written anew: scales stay where the numbers fit.
    small = {key: tensor * (1e-9 if "lora_B" in key else 1) for key, tensor in LORA.items()}
    save_file(small, tmp_path / "small.safetensors")
    small_report = loraport.merge(tmp_path / "small.safetensors", path, output, requantize=True, overwrite=True)
    assert "changes the weights by 100 % of what the LoRA changes" in small_report.warnings[-1]
    assert "--dequantize" in small_report.warnings[-1]
    assert not any("changes the weights" in said for said in report.warnings)
    assert all(torch.equal(tensor.float(), state[key].float()) for key, tensor in load_file(output).items())


def test_squares_are_scaled_as_they_were(lora, tmp_path):
    state = dict(STATE)
    for name in pico.LAYERS:
        weight = state[f"{name}.weight"]
        squares = weight.unflatten(1, (-1, 16)).unflatten(0, (-1, 16))
        scale = squares.abs().amax((1, 3)) / 448
        state[f"{name}.weight"] = (squares / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
        state[f"{name}.weight_scale_inv"] = scale
    save_file(state, tmp_path / "fp8.safetensors")
    loraport.merge(lora, tmp_path / "fp8.safetensors", tmp_path / "out.safetensors", requantize=True)
    after = load_file(tmp_path / "out.safetensors")
    for key, change in WANTED.items():
        name = key.removesuffix(".weight")

        def numbers(of: dict[str, Tensor], key: str = key, name: str = name) -> Tensor:
            return of[key].double() * of[f"{name}.weight_scale_inv"].double().repeat_interleave(
                16, 0
            ).repeat_interleave(16, 1)

        exact = numbers(state) + change
        assert (numbers(after) - exact).norm() <= 0.04 * exact.norm()


@pytest.mark.slow  # a network of another family
def test_fused_and_split_layers(tmp_path):
    """A LoRA on split projections into a fused checkpoint, and the other way round: one result."""
    state, made = hunyuan.model(1), hunyuan.factors(2, 3)
    original, split = hunyuan.loras(made)
    fused = hunyuan.repackaged_state(state)
    for name, tensors in (
        ("original", original),
        ("split", split),
        ("fused", fused),
        ("apart", hunyuan.diffusers_state(state)),
    ):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / f"{name}.safetensors")
    summed = hunyuan.with_loras(state, made)
    for lora, into, wanted in (
        ("split", "fused", hunyuan.repackaged_state(summed)),
        ("original", "apart", hunyuan.diffusers_state(summed)),
        ("split", "apart", hunyuan.diffusers_state(summed)),
    ):
        output = tmp_path / f"{lora}-{into}.safetensors"
        loraport.merge(tmp_path / f"{lora}.safetensors", tmp_path / f"{into}.safetensors", output)
        for key, tensor in load_file(output).items():
            assert (tensor.double() - wanted[key]).norm() <= 1e-6 * wanted[key].norm(), (lora, into, key)


def test_every_kind_and_what_is_no_layer(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    layers = {"lora": "blocks.0.self_attn.q", "loha": "blocks.0.ffn.0", "lokr": "blocks.1.ffn.2"}
    wanted, made = {}, {}
    for kind, name in layers.items():
        made[name], wanted[f"{name}.weight"] = factors(kind, *pico.LAYERS[name])
    dora, weight = "blocks.1.self_attn.k", STATE["blocks.1.self_attn.k.weight"].double()
    made[dora] = parts_of("DoRA of rows", *pico.LAYERS[dora])
    turned = weight + 0.5 * made[dora]["lora_up.weight"].double() @ made[dora]["lora_down.weight"].double()
    turned *= made[dora]["dora_scale"].double() / turned.norm(dim=1, keepdim=True)
    wanted[f"{dora}.weight"] = turned - weight
    path = write_lycoris(made, tmp_path / "kinds.safetensors")
    changes = {
        "diffusion_model.blocks.0.self_attn.o.diff": ("blocks.0.self_attn.o.weight", gaussian(32, 32, seed=7)),
        "diffusion_model.blocks.0.self_attn.o.diff_b": ("blocks.0.self_attn.o.bias", gaussian(32, seed=7)),
        "diffusion_model.blocks.1.norm3.diff": ("blocks.1.norm3.weight", gaussian(32, seed=7)),
        "diffusion_model.patch_embedding.diff": ("patch_embedding.weight", gaussian(32, 16, 1, 2, 2, seed=7)),
        "diffusion_model.head.modulation.diff": ("head.modulation", gaussian(1, 2, 32, seed=7)),
    }
    save_file({key: change for key, (_, change) in changes.items()}, tmp_path / "changes.safetensors")
    wanted |= dict(changes.values())
    both = [path, f"{tmp_path / 'changes.safetensors'}:1"]
    loraport.merge(both, tmp_path / "model.safetensors", tmp_path / "out.safetensors", strength=0.5)
    for key, tensor in load_file(tmp_path / "out.safetensors").items():
        exact = STATE[key].double() + 0.5 * wanted[key].double() if key in wanted else STATE[key]
        assert (tensor.double() - exact.double()).norm() <= 1e-6 * exact.double().norm(), key
        assert key in wanted or torch.equal(tensor, STATE[key])
    back = loraport.merge(path, tmp_path / "out.safetensors", tmp_path / "back.safetensors", strength=-0.5)
    assert "a function of the weights (dora)" in back.warnings[0]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text(lora, tmp_path):
    path = lora.rename(tmp_path / os.fsdecode(b"gr\xf6n.safetensors"))
    save_file(STATE, tmp_path / "model.safetensors")
    loraport.merge(path, tmp_path / "model.safetensors", tmp_path / "out.safetensors")
    assert '"gr?n.safetensors"' in read_header(tmp_path / "out.safetensors").metadata["loraport.merged"]
    torch.save(LORA, tmp_path / "style.pt")
    with pytest.raises(FileError, match="cannot open a file with such a name"):
        loraport.inspect((tmp_path / "style.pt").rename(path.with_suffix(".pt")))


def test_refusals_leave_nothing(lora, tmp_path):
    path, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    save_file(STATE, path)
    save_file(pico.weights(1, width=24, ffn=48), tmp_path / "narrow.safetensors")
    with pytest.raises(MismatchError, match=r"is 32 x 32 in the LoRA|This LoRA is for"):
        loraport.merge(lora, tmp_path / "narrow.safetensors", output)
    with pytest.raises(MismatchError, match="is a LoRA"):
        loraport.merge(lora, lora, output)
    with pytest.raises(FileError, match="would replace the checkpoint"):
        loraport.merge(lora, path, path, overwrite=True)
    with pytest.raises(FileError, match="would replace the input LoRA"):
        loraport.merge(lora, path, lora, overwrite=True)
    with pytest.raises(UsageError, match="there is nothing to merge"):
        loraport.merge(lora, path, output, strength=0.0)
    with pytest.raises(UsageError, match="there is nothing to merge"):
        loraport.merge([f"{lora}:0", lora], path, output)
    with pytest.raises(UsageError, match="given twice"):
        loraport.merge([lora, f"{lora}:0.5"], path, output)
    half = {key: tensor.half() for key, tensor in STATE.items()}
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(NumericalError, match="no longer fits into F16"):
        loraport.merge(lora, tmp_path / "half.safetensors", output, strength=1e7)
    output.write_bytes(b"mine")
    with pytest.raises(FileError, match="already exists"):
        loraport.merge(lora, path, output)
    assert output.read_bytes() == b"mine"
    assert list(tmp_path.rglob("*.partial")) == []


def test_a_lora_of_zeros_is_remarked_on(lora, tmp_path):
    save_file({key: 0 * tensor for key, tensor in load_file(lora).items()}, tmp_path / "zero.safetensors")
    save_file(STATE, tmp_path / "model.safetensors")
    report = loraport.merge(tmp_path / "zero.safetensors", tmp_path / "model.safetensors", tmp_path / "out.safetensors")
    assert "every update is zero" in report.warnings[0]


def test_an_input_that_changes_meanwhile_stops_it(lora, tmp_path):
    path, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    save_file(STATE, path)

    def change(event: object) -> None:
        if isinstance(event, Written) and event.done > 0.9 * event.total:
            save_file(LORA | {"x": torch.zeros(1)}, lora)

    with pytest.raises(FileError, match="changed"):
        loraport.merge(lora, path, output, on_event=change)
    assert not output.exists()


def test_memory_is_that_of_a_tensor_and_not_of_the_file(lora, tmp_path, monkeypatch):
    """When a tensor is read nothing is left of those before it, and what does not change goes by the piece."""
    read, alive, pieces = run.read_numbers, [], []

    def watched(ref):
        assert not any(earlier() is not None for earlier in alive)
        tensor = read(ref)
        alive.append(weakref.ref(tensor))
        return tensor

    def count(event: object) -> None:
        if isinstance(event, Written):
            pieces.append(event.done)

    monkeypatch.setattr(run, "read_numbers", watched)
    monkeypatch.setattr(rewrite, "CHUNK_BYTES", 4096)
    save_file(STATE | {f"other.{n}": torch.zeros(40_000) for n in range(3)}, tmp_path / "model.safetensors")
    loraport.merge(lora, tmp_path / "model.safetensors", tmp_path / "out.safetensors", on_event=count)
    assert len(alive) == len(WANTED)
    steps = [after - before for before, after in itertools.pairwise(pieces)]
    assert len(steps) > 100
    assert max(steps) <= 4 * pico.FFN * pico.WIDTH


def test_a_gguf_file_where_its_numbers_are_plain(lora, tmp_path):
    state = {key: tensor.half() for key, tensor in STATE.items()}
    plain = {key: (tensor.numpy(), "F16") for key, tensor in state.items()}
    write_gguf(tmp_path / "model.gguf", plain)
    loraport.merge(lora, tmp_path / "model.gguf", tmp_path / "out.gguf")
    found = {key: read_tensor(ref) for key, ref in open_tensors(tmp_path / "out.gguf").groups[()].items()}
    for key, tensor in state.items():
        exact = tensor.double() + WANTED.get(key, 0)
        assert (found[key].double() - exact).abs().max() <= 2**-11 * exact.abs().max(), key
    blocks = quants.quantize(STATE["blocks.0.ffn.0.weight"].numpy(), GGMLQuantizationType.Q8_0)
    write_gguf(tmp_path / "q8.gguf", plain | {"blocks.0.ffn.0.weight": (blocks, "Q8_0")})
    with pytest.raises(UnsupportedError, match=r"1 of 20 tensors that change is quantised \(Q8_0"):
        loraport.merge(lora, tmp_path / "q8.gguf", tmp_path / "no.gguf")
