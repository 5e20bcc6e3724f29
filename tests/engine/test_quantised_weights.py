"""Models and LoRAs in scaled fp8 go through the whole job as what they stand for."""

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import loraport
import pico
from adapter_parts import parts_of, write_lycoris
from loraport.engine import overlap
from loraport.engine.events import LayerDone
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe
from loraport.errors import NumericalError, UnsupportedError
from storage import WAYS, write_gguf

OPTIONS = RunOptions(cache="off", log="off", overwrite=True)
COMFY = (".scale_weight", torch.float8_e4m3fn, "tensor")
LIGHTX2V = (".weight_scale", torch.float8_e4m3fn, "channel")
COARSE = (".weight_scale", torch.float8_e5m2, "channel")


def rounded(state: dict[str, Tensor], suffix: str, dtype: torch.dtype, by: str) -> tuple[dict, dict]:
    """The weights of two dimensions in 8 bits with scales, and the same numbers written out in float32."""
    stored, plain = {}, {}
    for key, weight in state.items():
        if weight.dim() != 2 or not key.endswith(".weight"):
            stored[key] = plain[key] = weight
            continue
        most = weight.abs().amax(1, keepdim=True) if by == "channel" else weight.abs().max()
        scale = most / (127 if dtype == torch.int8 else torch.finfo(dtype).max)
        stored[key] = (weight / scale).round().to(dtype) if dtype == torch.int8 else (weight / scale).to(dtype)
        stored[key.removesuffix(".weight") + suffix] = scale
        plain[key] = stored[key].to(torch.float32) * scale
    return stored, plain


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pico.Pico:
    return pico.write(tmp_path_factory.mktemp("pico"))


def updates(path) -> dict[str, Tensor]:
    tensors = load_file(path)
    down, up = ".lora_A.weight", ".lora_B.weight"
    names = [key.removesuffix(down) for key in tensors if key.endswith(down)]
    return {name: tensors[name + up].double() @ tensors[name + down].double() for name in names}


@pytest.mark.parametrize("layout", [COMFY, LIGHTX2V, COARSE])
@pytest.mark.parametrize("role", ["target", "source"])
def test_a_model_in_scaled_fp8_is_the_model_written_out(layout, role, files, tmp_path):
    stored, plain = rounded(load_file(getattr(files, role)), *layout)
    if layout is COMFY:
        stored["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    found = []
    for name, state in (("fp8", stored), ("plain", plain)):
        save_file(state, tmp_path / f"{name}.safetensors")
        given = {"source": files.source, "target": files.target, role: tmp_path / f"{name}.safetensors"}
        out = tmp_path / f"{name}-out.safetensors"
        report = loraport.transfer(files.lora, **given, output=out, method="casa", rank="full", options=OPTIONS)
        found.append(updates(out))
        assert len(report.layers) == len(pico.LAYERS)
    for name, update in found[0].items():
        torch.testing.assert_close(update, found[1][name], rtol=1e-4, atol=1e-6)


def test_what_is_brought_ahead_in_fp8_is_counted_as_the_float32_that_it_becomes(files, tmp_path):
    save_file(rounded(load_file(files.target), *LIGHTX2V)[0], tmp_path / "fp8.safetensors")
    named = {"lora": str(files.lora), "source": str(files.source), "target": str(tmp_path / "fp8.safetensors")}
    for job in make_plan(Recipe.build({**named, "method": "matched-gain"})).jobs:
        assert overlap._brought_bytes(job) >= 2 * 4 * job.shape[0] * job.shape[1]


def test_a_model_in_gguf_is_the_model_written_out(files, tmp_path):
    rough, plain = {}, {}
    for key, weight in load_file(files.target).items():
        kind = "F32" if weight.dim() != 2 or weight.shape[1] % 32 else "Q8_0"
        form = gguf.GGMLQuantizationType[kind]
        stored = gguf.quants.quantize(weight.numpy(), form)
        plain[key] = torch.from_numpy(gguf.quants.dequantize(stored, form)).reshape(weight.shape).clone()
        rough[key] = (stored, kind)
    write_gguf(tmp_path / "target.gguf", rough)
    save_file(plain, tmp_path / "target.safetensors")
    found = []
    for name in ("target.gguf", "target.safetensors"):
        out = tmp_path / f"{name}-out.safetensors"
        pair = {"source": files.source, "target": tmp_path / name, "output": out, "rank": "full"}
        loraport.transfer(files.lora, **pair, method="casa", options=OPTIONS)
        found.append(updates(out))
    for name, update in found[0].items():
        torch.testing.assert_close(update, found[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", [COMFY, LIGHTX2V])
def test_a_lora_in_scaled_fp8_is_the_lora_written_out(layout, files, tmp_path):
    stored, plain = rounded(load_file(files.lora), *layout)
    save_file(stored, tmp_path / "fp8.safetensors")
    pair = {"source": files.source, "target": files.target, "method": "direct", "options": OPTIONS}
    loraport.transfer(tmp_path / "fp8.safetensors", output=tmp_path / "out.safetensors", **pair)
    for name, update in updates(tmp_path / "out.safetensors").items():
        wanted = plain[f"{name}.lora_B.weight"].double() @ plain[f"{name}.lora_A.weight"].double()
        torch.testing.assert_close(update, wanted, rtol=1e-5, atol=1e-7)


def test_a_drift_that_is_mostly_rounding_is_refused_before_the_work(files, tmp_path):
    stored, _ = rounded(load_file(files.source), *LIGHTX2V)
    save_file(stored, tmp_path / "fp8.safetensors")
    pair = {"source": files.source, "target": tmp_path / "fp8.safetensors", "options": OPTIONS}
    done = []
    with pytest.raises(NumericalError) as caught:
        loraport.transfer(files.lora, **pair, output=tmp_path / "out.safetensors", method="casa", on_event=done.append)
    assert caught.value.exit_code == 4
    assert "F8_E4M3, scaled" in caught.value.where
    assert all(way in caught.value.fix for way in ("bf16", "--method direct", "--strength", "--force"))
    assert not any(isinstance(event, LayerDone) for event in done)
    assert not (tmp_path / "out.safetensors").exists()
    forced = loraport.transfer(files.lora, **pair, output=None, method="casa", force=True)
    assert all(layer.stats["drift_is_rounding"] for layer in forced.layers)
    assert all(layer.stats["drift_rounding"] > 0.8 for layer in forced.layers)
    assert any("rounding" in warning for warning in forced.warnings)
    assert loraport.transfer(files.lora, **pair, output=None, method="direct").warnings == ()


def test_the_share_of_rounding_is_what_was_measured(files, tmp_path):
    """A target with a drift of its own, then rounded: the share is that of the squared norm that rounding added."""
    draw = torch.Generator().manual_seed(5)
    source, own = load_file(files.source), {}
    for key, weight in source.items():
        if weight.dim() == 2:
            weight = source[key] = torch.randn(weight.shape, generator=draw)
        own[key] = weight + 0.04 * torch.randn(weight.shape, generator=draw) * (weight.dim() == 2)
    save_file(source, tmp_path / "source.safetensors")
    stored, plain = rounded(own, *LIGHTX2V)
    save_file(stored, tmp_path / "fp8.safetensors")
    report = loraport.transfer(
        files.lora, source=tmp_path / "source.safetensors", target=tmp_path / "fp8.safetensors", output=None,
        method="casa", options=OPTIONS,
    )  # fmt: skip
    for layer in report.layers:
        key = f"{layer.name}.weight"
        added = float((plain[key] - own[key]).norm() / (plain[key] - source[key]).norm()) ** 2
        assert layer.stats["drift_rounding"] == pytest.approx(added, rel=0.4)  # a fifth of the norm
        assert not layer.stats["drift_is_rounding"]
    assert not any("rounding" in warning for warning in report.warnings)


def test_the_drift_of_a_distillation_lora_holds_no_rounding(files, tmp_path):
    stored, _ = rounded(load_file(files.source), *LIGHTX2V)
    save_file(stored, tmp_path / "fp8.safetensors")
    (tmp_path / "fast.safetensors").write_bytes(files.lora.read_bytes())
    report = loraport.transfer(
        files.lora, source=tmp_path / "fp8.safetensors", target_lora=f"{tmp_path / 'fast.safetensors'}:0.01",
        output=None, method="casa", options=OPTIONS,
    )  # fmt: skip
    assert not any(layer.stats["drift_is_rounding"] or "drift_rounding" in layer.stats for layer in report.layers)


def test_a_fine_weight_is_never_rounded_to_fp8(files, tmp_path):
    source = {key: tensor.bfloat16() for key, tensor in load_file(files.source).items()}
    save_file(source, tmp_path / "source.safetensors")
    for name, state in (
        ("scaled", rounded(load_file(files.target), *LIGHTX2V)[0]),
        ("cast", {key: tensor.to(torch.float8_e4m3fn) for key, tensor in load_file(files.target).items()}),
    ):
        save_file(state, tmp_path / f"{name}.safetensors")
        recipe = Recipe(
            lora=str(files.lora),
            source=str(tmp_path / "source.safetensors"),
            target=str(tmp_path / f"{name}.safetensors"),
        )
        assert {job.round_to for job in make_plan(recipe).jobs} == {None}


@pytest.mark.parametrize("where", ["in the model", "beside it"])
def test_what_cannot_be_read_matters_only_where_it_is_needed(where, files, tmp_path):
    key = "blocks.0.ffn.0.weight" if where == "in the model" else "text_model.layers.0.mlp.weight"
    packed = {key: torch.zeros(64, 32, dtype=torch.uint8), key + "_scale_2": torch.ones(1)}
    save_file(load_file(files.target) | packed, tmp_path / "x.safetensors")
    recipe = Recipe(lora=str(files.lora), source=str(files.source), target=str(tmp_path / "x.safetensors"))
    if where == "in the model":
        with pytest.raises(UnsupportedError, match="nvfp4"):
            make_plan(recipe)
    else:
        assert len(make_plan(recipe).jobs) == len(pico.LAYERS)


def stored_as(state: dict[str, Tensor], how: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The matrices of the blocks in a format, as a file holds them, and the numbers they stand for."""
    if how == "fp8, scaled":
        return rounded(state, *LIGHTX2V)
    if how == "int8":
        return rounded(state, ".weight_scale", torch.int8, "channel")
    dtype = {"fp8, cast": torch.float8_e4m3fn, "bf16": torch.bfloat16, "fp32": torch.float32}[how]
    changed = {key: tensor.to(dtype) if tensor.dim() == 2 else tensor for key, tensor in state.items()}
    return changed, {key: tensor.float() for key, tensor in changed.items()}


def pair_of_models(drift: float, scale: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draw, source, target = torch.Generator().manual_seed(5), pico.weights(1), {}
    for key, weight in source.items():
        if weight.dim() == 2:
            source[key] = scale * torch.randn(weight.shape, generator=draw)
        target[key] = source[key] + drift * scale * torch.randn(weight.shape, generator=draw) * (weight.dim() == 2)
    return source, target


MIXTURES = [
    ("bf16", "fp8, scaled"),
    ("fp8, scaled", "fp8, scaled"),
    ("fp8, cast", "fp8, cast"),
    ("int8", "fp8, scaled"),
    ("fp32", "int8"),
    ("fp8, cast", "bf16"),
]


@pytest.mark.parametrize("formats", MIXTURES, ids=" and ".join)
def test_the_share_of_rounding_in_mixtures_is_what_was_measured(formats, files, tmp_path):
    """Weights of the size that real models have, where fp8 without a scale loses more than fp8 with one."""
    states = pair_of_models(0.06, 0.02)
    paths, plain = [], []
    for name, state, how in zip(("source", "target"), states, formats, strict=True):
        tensors, numbers = stored_as(state, how)
        save_file(tensors, tmp_path / f"{name}.safetensors")
        paths.append(tmp_path / f"{name}.safetensors")
        plain.append(numbers)
    report = loraport.transfer(
        files.lora, source=paths[0], target=paths[1], output=None, method="casa", options=OPTIONS, force=True
    )
    found, measured = 0.0, 0.0
    for layer in report.layers:
        key = f"{layer.name}.weight"
        own = states[1][key] - states[0][key]
        drift = plain[1][key] - plain[0][key]
        measured += float((drift - own).norm() / drift.norm()) ** 2 / len(report.layers)
        found += layer.stats.get("drift_rounding", 0.0) / len(report.layers)
    assert found == pytest.approx(measured, rel=0.3, abs=0.01)  # narrow layers


@pytest.mark.parametrize("formats", [("fp8, scaled", "int8"), ("fp8, cast", "fp8, scaled"), ("bf16", "fp8, cast")])
def test_one_model_in_two_formats_has_no_drift_to_read(formats, files, tmp_path):
    state = load_file(files.source)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, how in zip(paths, formats, strict=True):
        save_file(stored_as(state, how)[0], path)
    pair = {"source": paths[0], "target": paths[1], "output": None, "options": OPTIONS}
    with pytest.raises(NumericalError, match="mostly the rounding"):
        loraport.transfer(files.lora, **pair, method="casa")
    assert loraport.transfer(files.lora, **pair, method="direct").warnings == ()
    grid = {"source": paths[0], "target": paths[1], "method": ["casa", "prolora"]}
    report = loraport.sweep(files.lora, grid, output=tmp_path / "made", options=OPTIONS)
    assert [row.state for row in report.cells] == ["failed", "done"]  # the latter reads both weights, and no drift


@pytest.mark.parametrize("share", ["a few", "most"])
def test_of_a_file_that_is_quantised_in_part_only_these_layers_count(share, files, tmp_path):
    """Layers that were kept in 16 bits have a drift of their own; the report says which have not."""
    source, target = pair_of_models(0.02, 0.02)
    layers = list(pico.LAYERS)
    fine = set(layers[5:] if share == "a few" else layers[:5])
    tensors = {}
    for key, (name, _, suffix) in {key: key.rpartition(".") for key in target}.items():
        one = {key: target[key]}
        tensors |= stored_as(one, "bf16" if name in fine or suffix == "bias" else "fp8, scaled")[0]
    save_file(stored_as(source, "bf16")[0], tmp_path / "source.safetensors")
    save_file(tensors, tmp_path / "target.safetensors")
    pair = {"source": tmp_path / "source.safetensors", "target": tmp_path / "target.safetensors", "output": None}
    if share == "most":
        with pytest.raises(NumericalError, match="of 20 layers"):
            loraport.transfer(files.lora, **pair, method="casa", options=OPTIONS)
        return
    report = loraport.transfer(files.lora, **pair, method="casa", options=OPTIONS)
    assert {layer.name for layer in report.layers if layer.stats["drift_is_rounding"]} == set(layers) - fine
    assert any("in 5 of 20 layers" in warning and "rounding" in warning for warning in report.warnings)


def test_a_layer_without_a_scale_among_others_with_one_is_a_cast(files, tmp_path):
    state = load_file(files.target)
    tensors, plain = stored_as(state, "fp8, scaled")
    key = "blocks.1.ffn.0.weight"
    tensors[key] = state[key].to(torch.float8_e4m3fn)
    del tensors["blocks.1.ffn.0.weight_scale"]
    plain[key] = tensors[key].float()
    save_file(tensors | {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}, tmp_path / "fp8.safetensors")
    save_file(plain, tmp_path / "plain.safetensors")
    found = []
    for name in ("fp8", "plain"):
        out = tmp_path / f"{name}-out.safetensors"
        pair = {"source": files.source, "target": tmp_path / f"{name}.safetensors", "output": out, "rank": "full"}
        loraport.transfer(files.lora, **pair, method="casa", options=OPTIONS)
        found.append(updates(out))
    for name, update in found[0].items():
        torch.testing.assert_close(update, found[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["fp8, rows", "int8, convrot", "mxfp8", "nvfp4"])
def test_convert_takes_the_numbers_of_a_quantised_model(way, tmp_path):
    """For a kind that is a function of the weights that it was trained on."""
    name, state, found = "blocks.0.ffn.2", pico.weights(1), []
    tensors, numbers = WAYS[way](state[f"{name}.weight"].numpy())
    stored = {key.replace("a.", f"{name}.", 1): tensor for key, tensor in tensors.items()}
    lora = write_lycoris({name: parts_of("DoRA of rows", *pico.LAYERS[name])}, tmp_path / "dora.safetensors")
    for label, own in (("stored", stored), ("plain", {f"{name}.weight": torch.from_numpy(numbers).float()})):
        save_file(state | own, tmp_path / f"{label}.safetensors")
        output = tmp_path / f"{label}-out.safetensors"
        loraport.convert(lora, output, model=tmp_path / f"{label}.safetensors")
        (update,) = updates(output).values()
        found.append(update)
    assert (found[0] - found[1]).norm() <= 1e-5 * found[1].norm() > 0
