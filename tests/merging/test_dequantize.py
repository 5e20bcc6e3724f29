"""A quantised checkpoint in which the layers that a LoRA changes have become plain numbers, and nothing else has."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import hunyuan
import loraport
import pico
from loraport.adapters.added_lora import AddedLora
from loraport.containers.gguf import read_gguf
from loraport.containers.safetensors import read_header
from loraport.containers.stored import list_stored, read_bytes
from loraport.containers.tensors import open_tensors, read_float
from loraport.errors import NumericalError, UnsupportedError
from loraport.merging.plan import make_merge_plan
from storage import WAYS, write_gguf

CHANGED, SAME, PLAIN = "blocks.0.ffn.2", "blocks.1.ffn.2", "blocks.0.self_attn.q"
STATE = pico.weights(1)
LORA = {key: tensor for key, tensor in pico.lora(3).items() if f".{CHANGED}." in key or f".{PLAIN}." in key}
UPDATE = {
    name: LORA[f"diffusion_model.{name}.lora_B.weight"].double()
    @ LORA[f"diffusion_model.{name}.lora_A.weight"].double()
    for name in (CHANGED, PLAIN)
}
QUANTISED = [way for way in WAYS if not way.startswith(("float64", "float32", "float16", "bfloat16"))]


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    save_file(LORA, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def _stored(way: str) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """A model of which two layers are stored in a way, one of them to be changed; and the numbers of these."""
    state, numbers = {key: tensor for key, tensor in STATE.items() if CHANGED not in key and SAME not in key}, {}
    for name in (CHANGED, SAME):
        state[f"{name}.bias"] = STATE[f"{name}.bias"]
        tensors, numbers[name] = WAYS[way](STATE[f"{name}.weight"].numpy())
        state |= {key.replace("a.", f"{name}.", 1): tensor for key, tensor in tensors.items()}
    return state, numbers


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _check(before: dict[str, Tensor], after: dict[str, Tensor], numbers: np.ndarray, dtype: torch.dtype) -> None:
    """The changed layer is plain and rounded once, another plain one has its sum, the rest is bit for bit the same."""
    kept = {key for key in before if not key.startswith(f"{CHANGED}.") or key.endswith(".bias")}
    assert after.keys() == kept | {f"{CHANGED}.weight"}
    found, exact = after[f"{CHANGED}.weight"], torch.from_numpy(numbers).double() + 0.7 * UPDATE[CHANGED]
    assert found.dtype == dtype
    assert bool(((found.double() - exact).abs() <= 0.501 * torch.finfo(dtype).eps * exact.abs() + 1e-7).all())
    plain = STATE[f"{PLAIN}.weight"].double() + 0.7 * UPDATE[PLAIN]
    assert (after[f"{PLAIN}.weight"].double() - plain).norm() <= 1e-6 * plain.norm()
    for key in kept - {f"{PLAIN}.weight"}:
        assert after[key].dtype == before[key].dtype
        assert torch.equal(_bytes(after[key]), _bytes(before[key])), key


@pytest.mark.parametrize("way", QUANTISED)
def test_every_way_of_storing(way, lora, tmp_path):
    path, output = tmp_path / "model.safetensors", tmp_path / "out.safetensors"
    state, numbers = _stored(way)
    save_file(state, path, {"format": "pt"})
    with pytest.raises(UnsupportedError, match="--dequantize bfloat16"):
        loraport.merge(lora, path, output)
    plan = make_merge_plan([AddedLora.parse(str(lora))], path, dequantize="bfloat16")
    report = loraport.merge(lora, path, output, strength=0.7, dequantize="bfloat16")
    assert (report.tensors, report.requantized, report.dequantized) == (2, 0, 1)
    _check(state, load_file(output), numbers[CHANGED], torch.bfloat16)
    sizes = [sum(t.nbytes for t in load_file(file).values()) for file in (path, output)]
    assert plan.grown_bytes == sizes[1] - sizes[0]
    assert report.grown_bytes == output.stat().st_size - path.stat().st_size
    one, two = open_tensors(path).groups[()], open_tensors(output).groups[()]
    assert one.keys() == two.keys()
    np.testing.assert_allclose(read_float(two[f"{SAME}.weight"]).numpy(), numbers[SAME], rtol=2e-6, atol=1e-7)
    with safe_open(output, "pt") as file:  # the stock reader wants numbers at a multiple of their size
        assert {file.get_tensor(key).dtype for key in file.offset_keys()} >= {torch.bfloat16, torch.float32}
    header = read_header(output)
    sized = {"BF16": 2, "F32": 4}
    assert all((span.start - header.base) % sized.get(span.dtype, 1) == 0 for span in header.spans.values())


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q4_0"])
def test_gguf(kind, lora, tmp_path):
    form = gguf.GGMLQuantizationType[kind]
    stored = {key: (tensor.numpy(), "F32") for key, tensor in STATE.items()}
    stored |= {
        f"{name}.weight": (gguf.quants.quantize(STATE[f"{name}.weight"].numpy(), form), kind)
        for name in (CHANGED, SAME)
    }
    path, output = tmp_path / "model.gguf", tmp_path / "out.gguf"
    write_gguf(path, stored, {"general.name": "größe"})
    loraport.merge(lora, path, output, strength=0.7, dequantize="bfloat16")
    one, two = read_gguf(path), read_gguf(output)
    assert one.metadata == two.metadata
    assert list(one.tensors) == list(two.tensors)
    before, after = list_stored(path).groups[()], list_stored(output).groups[()]
    numbers = gguf.quants.dequantize(stored[f"{CHANGED}.weight"][0], form)
    exact = torch.from_numpy(numbers.copy()).double() + 0.7 * UPDATE[CHANGED]
    found = read_float(after[f"{CHANGED}.weight"])
    assert bool(((found.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-7).all())
    for key in before.keys() - {f"{CHANGED}.weight", f"{PLAIN}.weight"}:
        assert read_bytes(before[key]) == read_bytes(after[key])
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(output).tensors}  # as other programs see it
    assert tensors[f"{CHANGED}.weight"].tensor_type == gguf.GGMLQuantizationType.BF16
    assert tensors[f"{SAME}.weight"].tensor_type == form
    assert tensors[f"{SAME}.weight"].data.tobytes() == stored[f"{SAME}.weight"][0].tobytes()
    theirs = gguf.quants.dequantize(tensors[f"{CHANGED}.weight"].data, gguf.GGMLQuantizationType.BF16)
    assert np.array_equal(theirs, found.numpy())
    loraport.merge(lora, path, output, dequantize="float16", overwrite=True)
    assert list_stored(output).groups[()][f"{CHANGED}.weight"].dtype == "F16"


@pytest.mark.slow  # imports diffusers
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_diffusers_reads_a_gguf_file_of_which_some_layers_are_plain(dtype, lora, tmp_path):
    loading = pytest.importorskip("diffusers.models.model_loading_utils")
    theirs = pytest.importorskip("diffusers.quantizers.gguf.utils")
    form = gguf.GGMLQuantizationType.Q4_0
    stored = {key: (tensor.numpy(), "F32") for key, tensor in STATE.items()}
    for name in (CHANGED, SAME):
        stored[f"{name}.weight"] = gguf.quants.quantize(STATE[f"{name}.weight"].numpy(), form), "Q4_0"
    output = tmp_path / "out.gguf"
    loraport.merge(lora, write_gguf(tmp_path / "model.gguf", stored), output, dequantize=dtype)
    found = loading.load_gguf_checkpoint(output)
    for key, ref in open_tensors(output).groups[()].items():
        numbers = theirs.dequantize_gguf_tensor(found[key]).float().reshape(ref.shape)
        torch.testing.assert_close(numbers, read_float(ref), rtol=1e-3, atol=1e-5, msg=key)  # Q4_0 in float16 there


@pytest.mark.parametrize("way", ["int8, rows", "nvfp4", "float8_e4m3fn"])
def test_shards_and_their_index(way, lora, tmp_path):
    state, numbers = _stored(way)
    folder, names = tmp_path / "model", [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    folder.mkdir()
    parts = [{key: t for key, t in state.items() if ("scale" in key or "quant" in key) == bool(n)} for n in (0, 1)]
    parts[1]["extra"] = torch.zeros(3)
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, {"format": "pt"})
    size = sum(tensor.nbytes for part in parts for tensor in part.values())
    index = {
        "metadata": {"total_size": size},
        "weight_map": {k: n for n, p in zip(names, parts, strict=True) for k in p},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "torchao"}}')
    other = {"weight_map": dict.fromkeys(state, "model.fp16-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.fp16.json").write_text(json.dumps(other))
    (folder / "notes.json").mkdir()
    report = loraport.merge(lora, folder, tmp_path / "out", strength=0.7, dequantize="float32")
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {*names, "model.safetensors.index.json", "config.json"}
    assert any("quantization_config" in text for text in report.warnings)
    after = {name: load_file(tmp_path / "out" / name) for name in names}
    whole = {key: tensor for part in after.values() for key, tensor in part.items()}
    _check(state | {"extra": parts[1]["extra"]}, whole, numbers[CHANGED], torch.float32)
    written = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert written["weight_map"] == {key: name for name, part in after.items() for key in part}
    assert written["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    again = loraport.merge(lora, tmp_path / "out", tmp_path / "back", strength=-0.7)
    assert again.dequantized == 0


@pytest.mark.parametrize("way", ["fp8, rows", "int8, convrot", "float8_e5m2"])
def test_a_torch_file(way, lora, tmp_path):
    state, numbers = _stored(way)
    turned = state[f"{PLAIN}.weight"].T.contiguous().T
    other = {"head": state["head.head.weight"]}  # shares its numbers with one that stays
    path, output = tmp_path / "model.pt", tmp_path / "out.pt"
    torch.save({"module": {"generator": state | {f"{PLAIN}.weight": turned}}, "other": other, "step": 3}, path)
    loraport.merge(lora, path, output, strength=0.7, dequantize="bfloat16")
    found = torch.load(output, weights_only=True)
    generator = found["module"]["generator"]
    assert found["step"] == 3
    assert found["other"]["head"].data_ptr() == generator["head.head.weight"].data_ptr()
    _check(state, generator, numbers[CHANGED], torch.bfloat16)
    report = loraport.merge(lora, output, tmp_path / "back.pt", strength=-0.7)
    assert (report.dequantized, report.requantized) == (0, 0)


def test_a_torch_shard_of_which_nothing_changes_but_what_goes(lora, tmp_path):
    state, numbers = _stored("int8, rows")
    state[f"{CHANGED}.input_scale"] = torch.ones(())
    names, second = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)], (".bias", ".input_scale")
    (tmp_path / "model").mkdir()
    for n, name in enumerate(names):
        part = {key: tensor for key, tensor in state.items() if key.endswith(second) == bool(n)}
        torch.save(part, tmp_path / "model" / name)
    loraport.merge(lora, tmp_path / "model", tmp_path / "out", strength=0.7, dequantize="bfloat16")
    after = [torch.load(tmp_path / "out" / name, weights_only=True) for name in names]
    _check(state, after[0] | after[1], numbers[CHANGED], torch.bfloat16)


def test_settings_and_markers_go_with_the_last_layer_that_they_speak_of(lora, tmp_path):
    tensors = {"fp8, tensor": "scale_weight", "int8, rows": "weight_scale"}
    state, _ = _stored("fp8, tensor")
    state = {f"model.diffusion_model.{key}": tensor for key, tensor in state.items()}
    state |= {f"model.diffusion_model.{name}.scale_input": torch.ones(()) for name in (CHANGED, SAME)}
    state["model.diffusion_model.scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    layers = {name: {"format": "float8_e4m3fn"} for name in (CHANGED, SAME, "text_encoder.x")}  # without the prefix
    texts = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers}), "title": "x"}
    path, one, both = (tmp_path / f"{name}.safetensors" for name in ("model", "one", "both"))
    save_file(state, path, texts)
    loraport.merge(lora, path, one, dequantize="bfloat16")
    gone = {f"model.diffusion_model.{CHANGED}.{part}" for part in tensors.values()}
    gone |= {f"model.diffusion_model.{CHANGED}.scale_input"}
    assert load_file(one).keys() == state.keys() - gone
    said = json.loads(read_header(one).metadata["_quantization_metadata"])
    assert said == {"format_version": "1.0", "layers": {name: layers[name] for name in (SAME, "text_encoder.x")}}
    all_of_it = pico.lora(3)
    save_file(all_of_it, tmp_path / "all.safetensors")
    report = loraport.merge(tmp_path / "all.safetensors", one, both, dequantize="bfloat16")
    assert report.dequantized == 1
    assert not {key for key in load_file(both) if "scale" in key}
    assert json.loads(read_header(both).metadata["_quantization_metadata"])["layers"].keys() == {"text_encoder.x"}
    assert read_header(both).metadata["title"] == "x"


def test_that_weights_were_turned_is_said_as_long_as_any_is(lora, tmp_path):
    """Weights that have no settings of their own are not taken for plain integers because another one is gone."""
    state, _ = _stored("int8, convrot")
    save_file(pico.lora(3), tmp_path / "all.safetensors")
    path, one, both = (tmp_path / f"{name}.safetensors" for name in ("model", "one", "both"))
    save_file(state, path, {"activation_rotation": "convrot_hadamard_v1", "title": "x"})
    loraport.merge(lora, path, one, dequantize="bfloat16")
    assert read_header(one).metadata.keys() >= {"activation_rotation", "title"}
    loraport.merge(tmp_path / "all.safetensors", one, both, dequantize="bfloat16")
    assert "activation_rotation" not in read_header(both).metadata


def test_names_of_other_programs(lora, tmp_path):
    """quanto and torchao have two names for a weight and its numbers; plain ones have the usual name in both."""
    state, numbers = _stored("fp8, rows")
    for program, data, scale in (
        ("quanto", "weight._data", "weight._scale"),
        ("torchao", "_weight_qdata", "_weight_scale"),
    ):
        renamed = {".weight": f".{data}", ".weight_scale": f".{scale}"}
        path, output = tmp_path / f"{program}.safetensors", tmp_path / f"{program}-out.safetensors"
        own = {}
        for key, tensor in state.items():
            name, _, part = key.rpartition(".")
            own[name + renamed[f".{part}"] if name in (CHANGED, SAME) and part != "bias" else key] = tensor
        names = [f"{name}.weight" for name in (CHANGED, SAME)]
        texts = {name: json.dumps({"_type": "Float8Tensor", "_data": {}}) for name in names}
        texts = {**texts, "tensor_names": json.dumps(names)} if program == "torchao" else {}
        save_file(own, path, texts)
        loraport.merge(lora, path, output, strength=0.7, dequantize="bfloat16")
        _check(own, load_file(output), numbers[CHANGED], torch.bfloat16)
        kept = {key: text for key, text in read_header(output).metadata.items() if not key.startswith("loraport.")}
        assert kept == (texts | {names[0]: '{"_type": "Tensor"}'} if texts else {})


def test_what_can_be_rounded_anew_is_and_the_rest_becomes_plain(lora, tmp_path):
    state, _ = _stored("nvfp4")
    key = f"{PLAIN}.weight"
    state[key] = state[key].to(torch.float8_e4m3fn)
    save_file(state, tmp_path / "model.safetensors")
    output = tmp_path / "out.safetensors"
    with pytest.raises(UnsupportedError, match="1 of 2 tensors"):
        loraport.merge(lora, tmp_path / "model.safetensors", output, requantize=True)
    report = loraport.merge(lora, tmp_path / "model.safetensors", output, requantize=True, dequantize="float16")
    assert (report.requantized, report.dequantized) == (1, 1)
    found = load_file(output)
    assert (found[key].dtype, found[f"{CHANGED}.weight"].dtype) == (torch.float8_e4m3fn, torch.float16)
    with pytest.raises(NumericalError, match="no longer fits into F16"):
        loraport.merge(lora, tmp_path / "model.safetensors", output, strength=1e7, dequantize="float16", overwrite=True)


def test_scales_in_a_file_of_their_own(tmp_path):
    """Tencent's HunyuanVideo: its loader casts every layer to fp8, so plain numbers would be of no use to it."""
    state, made = hunyuan.model(1), hunyuan.factors(2, 3)
    name = next(iter(made))
    numbers = state[f"{name}.weight"]
    scale = numbers.abs().max() / 448
    torch.save(state | {f"{name}.weight": (numbers / scale).to(torch.float8_e4m3fn)}, tmp_path / "mp_states_fp8.pt")
    torch.save({name: scale}, tmp_path / "mp_states_fp8_map.pt")
    parts = {"lora_B": made[name][0], "lora_A": made[name][1]}
    save_file({f"{name}.{key}.weight": tensor for key, tensor in parts.items()}, tmp_path / "lora.safetensors")
    words = tmp_path / "lora.safetensors", tmp_path / "mp_states_fp8.pt", tmp_path / "out"
    with pytest.raises(UnsupportedError, match="assumes that every layer is fp8"):
        loraport.merge(*words, dequantize="bfloat16")
    assert loraport.merge(*words, requantize=True).requantized == 1


@pytest.mark.slow  # a network of another family
def test_fused_and_split_layers(tmp_path):
    """A LoRA on split projections into a fused int8 checkpoint, and the other way round."""
    state, made = hunyuan.model(1), hunyuan.factors(2, 3)
    original, split = hunyuan.loras(made)
    summed = hunyuan.with_loras(state, made)
    for lora, of, spelled in (
        (split, "fused", hunyuan.repackaged_state),
        (original, "apart", hunyuan.diffusers_state),
    ):
        exact, before = spelled(summed), spelled(state)
        stored, rounding = {}, {}
        for key, tensor in before.items():
            stored[key] = tensor.contiguous()
            if exact[key].double().sub(tensor.double()).any() and tensor.ndim == 2:
                scale = tensor.abs().amax(1, keepdim=True) / 127
                stored[key] = (tensor / scale).round().to(torch.int8)
                stored[key.replace(".weight", ".weight_scale")] = scale
                rounding[key] = stored[key].double() * scale.double() - tensor.double()
        save_file({key: tensor.contiguous() for key, tensor in lora.items()}, tmp_path / "lora.safetensors")
        save_file(stored, tmp_path / f"{of}.safetensors")
        output = tmp_path / f"{of}-out.safetensors"
        report = loraport.merge(
            tmp_path / "lora.safetensors", tmp_path / f"{of}.safetensors", output, dequantize="float32"
        )
        assert report.dequantized == len(rounding) > 0
        for key, tensor in load_file(output).items():
            wanted = exact[key].double() + rounding.get(key, 0)
            assert (tensor.double() - wanted).norm() <= 1e-6 * wanted.norm(), (of, key)
