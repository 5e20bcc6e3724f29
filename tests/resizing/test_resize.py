"""A LoRA at another rank: the best approximation by dense float64, whatever the rule."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hunyuan
import loraport
import pico
from adapter_parts import factors, gaussian, parts_of, write_lycoris
from loraport.adapters.parse import open_adapter
from loraport.engine.events import LayerDone
from loraport.engine.options import RunOptions
from loraport.errors import FileError, UnsupportedError, UsageError

RANK = 8
LORA = pico.lora(3, rank=RANK)
for number, name in enumerate(pico.LAYERS):  # layers of different weight, with a spectrum that falls
    LORA[f"diffusion_model.{name}.lora_B.weight"] *= torch.logspace(0, -0.5 - number % 3, RANK) * (1 + number % 5)
BIAS = gaussian(pico.WIDTH, seed=1)
OFF = RunOptions(cache="off", executor="serial")


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    save_file(
        LORA | {"diffusion_model.blocks.0.self_attn.q.diff_b": BIAS}, tmp_path / "style.safetensors", {"ss_tag": "x"}
    )
    return tmp_path / "style.safetensors"


def _updates(path: Path) -> dict[str, Tensor]:
    return {name: layer.load().dense().double() for name, layer in open_adapter(path).layers.items()}


def _dense() -> dict[str, Tensor]:
    down, up = ({k.rsplit(".lora_", 1)[0][16:]: t.double() for k, t in LORA.items() if x in k} for x in ("_A.", "_B."))
    return {name: up[name] @ down[name] for name in down}


def _cut(matrix: Tensor, rank: int) -> Tensor:
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vh[:rank]


def test_one_rank(lora, tmp_path):
    report = loraport.resize(lora, tmp_path / "out.safetensors", rank=3, options=OFF)
    found, wanted = _updates(tmp_path / "out.safetensors"), _dense()
    held = whole = 0.0
    for name, matrix in wanted.items():
        best = _cut(matrix, 3)
        assert (found[name] - best).norm() <= 1e-5 * best.norm()
        held, whole = held + float(best.norm() ** 2), whole + float(matrix.norm() ** 2)
    assert report.energy_kept == pytest.approx(held / whole, rel=1e-6)
    assert {layer.rank_out for layer in report.layers} == {3}
    tensors = load_file(tmp_path / "out.safetensors")
    assert torch.equal(tensors["diffusion_model.blocks.0.self_attn.q.diff_b"], BIAS)
    assert {t.shape[0] for key, t in tensors.items() if "lora_A" in key} == {3}
    more = loraport.resize(lora, tmp_path / "more.safetensors", rank=100, options=OFF)
    assert (more.energy_kept, max(layer.rank_out for layer in more.layers)) == (pytest.approx(1.0), RANK)


@pytest.mark.parametrize(
    "norm", [0.9, pytest.param(0.7, marks=pytest.mark.slow), pytest.param(0.99, marks=pytest.mark.slow)]
)
def test_a_share_is_the_square_of_kohyas_threshold(lora, tmp_path, norm):
    """Of the norm there (`sv_fro`), of the norm squared here. Here the smallest rank that keeps it; there one more."""
    report = loraport.resize(lora, tmp_path / "out.safetensors", energy=norm**2, options=OFF)
    for layer in report.layers:
        values = np.linalg.svd(_dense()[layer.name].numpy(), compute_uv=False)
        lengths = np.sqrt(np.cumsum(values**2)) / np.linalg.norm(values)
        assert layer.rank_out == 1 + np.searchsorted(lengths, norm)
        assert layer.energy_kept == pytest.approx(lengths[layer.rank_out - 1] ** 2, rel=1e-6)
    assert len({layer.rank_out for layer in report.layers}) > 1
    (said,) = [message for message in report.warnings if "rank" in message]
    assert "diffusers before 0.40" in said


def test_a_size_is_spent_where_it_holds_most(lora, tmp_path):
    plain = loraport.resize(lora, tmp_path / "plain.safetensors", rank=2, options=OFF)
    size = plain.size + 400  # what the header says more of a rule in bytes
    output = tmp_path / "out.safetensors"
    report = loraport.resize(lora, output, max_size=size, options=OFF)
    assert report.size == output.stat().st_size <= size
    assert report.energy_kept > plain.energy_kept
    ranks = {layer.name: layer.rank_out for layer in report.layers}
    values = {name: torch.linalg.svdvals(matrix)[:RANK].square() for name, matrix in _dense().items()}
    held = sum(float(found[: ranks.get(name, 0)].sum()) for name, found in values.items())
    assert report.energy_kept == pytest.approx(held / sum(float(v.sum()) for v in values.values()), rel=1e-6)
    worth = {name: found / sum(pico.LAYERS[name]) for name, found in values.items()}
    last = min(float(worth[name][rank - 1]) for name, rank in ranks.items())
    assert all(float(found[ranks.get(name, 0)]) <= last for name, found in worth.items() if ranks.get(name, 0) < RANK)
    assert set(report.left_out) == pico.LAYERS.keys() - ranks.keys()
    with pytest.raises(UsageError, match="too small") as refused:
        loraport.resize(lora, tmp_path / "no.safetensors", max_size=900, options=OFF)
    least = int(refused.value.fix.removeprefix("--max-size "))
    assert loraport.resize(lora, tmp_path / "yes.safetensors", max_size=least, options=OFF).size <= least


def test_every_kind(tmp_path):
    made, wanted = {}, {}
    for kind, name in {"loha": "blocks.0.ffn.0", "lokr": "blocks.1.ffn.2"}.items():
        made[name], wanted[name] = factors(kind, *pico.LAYERS[name])
    made["blocks.0.self_attn.q"] = parts_of("DoRA of rows", 32, 32)
    path = write_lycoris(made, tmp_path / "kinds.safetensors")
    with pytest.raises(UnsupportedError, match="DoRA"):
        loraport.resize(path, tmp_path / "out.safetensors", rank=2, options=OFF)
    save_file(pico.weights(1), tmp_path / "model.safetensors")
    model = tmp_path / "model.safetensors"
    loraport.resize(path, tmp_path / "out.safetensors", rank=2, model=model, to="universal", options=OFF)
    found = _updates(tmp_path / "out.safetensors")
    assert found.keys() == made.keys()
    for name, matrix in wanted.items():
        best = _cut(matrix.double(), 2)
        assert (found[name] - best).norm() <= 1e-5 * best.norm()


def test_fused_layers_are_cut_together(tmp_path):
    """Layers that the output has in one weight share a factor, so that three of them have the rank of one."""
    tensors, name = {}, "img_attn_q"
    for block in range(hunyuan.BLOCKS):
        for x in "qkv":
            key = f"double_blocks.{block}.{name[:-1]}{x}"
            up, down = gaussian(hunyuan.WIDTH, 4, seed=ord(x)), gaussian(4, hunyuan.WIDTH, seed=ord(x) + 1)
            tensors |= {f"{key}.lora_B.weight": up, f"{key}.lora_A.weight": down}
    save_file(tensors, tmp_path / "split.safetensors")
    loraport.resize(tmp_path / "split.safetensors", tmp_path / "out.safetensors", rank=5, to="universal", options=OFF)
    written = load_file(tmp_path / "out.safetensors")
    assert {tuple(t.shape) for key, t in written.items() if "lora_A" in key} == {(5, hunyuan.WIDTH)}
    assert all("qkv" in key for key in written)
    found = _updates(tmp_path / "out.safetensors")
    for block in range(hunyuan.BLOCKS):
        names = [f"double_blocks.{block}.img_attn_{x}" for x in "qkv"]
        whole = torch.cat(
            [tensors[f"{n}.lora_B.weight"].double() @ tensors[f"{n}.lora_A.weight"].double() for n in names]
        )
        together = torch.cat([found[n] for n in sorted(n for n in found if f".{block}." in n)])
        best = _cut(whole, 5)
        order = sorted(found)
        assert len(order) == 3 * hunyuan.BLOCKS
        assert (together.norm() - best.norm()).abs() <= 1e-5 * best.norm()


@pytest.mark.slow  # as for extract
def test_the_same_command_resumes(lora, tmp_path):
    options = RunOptions(cache=str(tmp_path / "cache"), executor="serial", overwrite=True)
    output = tmp_path / "out.safetensors"
    loraport.resize(lora, output, energy=0.9, options=OFF)
    wanted = output.read_bytes()
    output.unlink()

    def stop(event: object) -> None:
        if isinstance(event, LayerDone) and event.finished == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loraport.resize(lora, output, energy=0.9, options=options, on_event=stop)
    assert not output.exists()
    cached = []
    loraport.resize(lora, output, energy=0.9, options=options, on_event=lambda event: cached.append(event))
    assert sum(event.layer.cached for event in cached if isinstance(event, LayerDone)) == 25
    assert output.read_bytes() == wanted


def test_what_makes_no_sense(lora, tmp_path):
    output = tmp_path / "out.safetensors"
    for amount in ({}, {"rank": 2, "energy": 0.5}, {"energy": 1.5}, {"max_size": "many"}):
        with pytest.raises(UsageError):
            loraport.resize(lora, output, **amount, options=OFF)
    with pytest.raises(FileError, match="would replace the input LoRA"):
        loraport.resize(lora, lora, rank=2, options=OFF.model_copy(update={"overwrite": True}))
    loraport.resize(lora, output, rank=2, options=OFF)
    with pytest.raises(FileError, match="already exists"):
        loraport.resize(lora, output, rank=2, options=OFF)
    told = json.loads(open_adapter(output).metadata["loraport.resize"])
    assert told["rule"] == "rank=2"
    assert open_adapter(output).metadata["ss_tag"] == "x"
    assert loraport.verify(output).checks[0].passed is not False
