"""Scaled fp8 in every layout that circulates, against the formula written out; what is not read is named."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loraport.containers.codecs.base import Codec
from loraport.containers.codecs.refused import Refused
from loraport.containers.codecs.registry import CODECS
from loraport.containers.decoding import decode
from loraport.containers.dtypes import FORMATS
from loraport.containers.locate import locate
from loraport.containers.references import common_dtype, identity, refusal, rounding_floor
from loraport.containers.tensors import digest, open_tensors, read_float, read_float_with_digest, read_tensor
from loraport.errors import FileError, LoraportError, NumericalError, UnsupportedError

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def matrix(seed: int = 0, rows: int = 12, columns: int = 20) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.03


def minifloat(byte: int, exponent_bits: int, mantissa_bits: int) -> float:
    """The number that an 8-bit pattern stands for, from its definition."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = (byte & 0x7F) >> mantissa_bits, byte & (2**mantissa_bits - 1)
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)


def numbers(stored: torch.Tensor) -> np.ndarray:
    bits = (4, 3) if stored.dtype == E4M3 else (5, 2)
    flat = [minifloat(byte, *bits) for byte in stored.reshape(-1).view(torch.uint8).tolist()]
    return np.array(flat).reshape(stored.shape)


def quantised(weight: torch.Tensor, dtype: torch.dtype, by: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored numbers and float32 scale, as the writers make them: the largest entry becomes the largest number."""
    most = torch.finfo(dtype).max
    if by == "tensor":
        scale = weight.abs().max() / most
        return (weight / scale).to(dtype), scale
    scale = weight.abs().amax(1, keepdim=True) / most
    return (weight / scale).to(dtype), scale


# How numbers share scales is in test_scales.py.
LAYOUTS = {
    "ComfyUI, first": (".scale_weight", "tensor", {"scaled_fp8": torch.zeros(0, dtype=E4M3)}),
    "ComfyUI, first, under a prefix": (".scale_weight", "tensor", {"model.diffusion_model.scaled_fp8": torch.ones(2)}),
    "ComfyUI, settings": (".weight_scale", "tensor", {"a.comfy_quant": {"format": "float8_e4m3fn"}}),
    "LightX2V": (".weight_scale", "channel", {}),
}


def layout(name: str, dtype: torch.dtype, module: str = "a") -> tuple[dict[str, torch.Tensor], np.ndarray]:
    suffix, by, extra = LAYOUTS[name]
    stored, scale = quantised(matrix(), dtype, by)
    wanted = numbers(stored) * scale.double().numpy()
    tensors = {f"{module}.weight": stored, f"{module}{suffix}": scale.clone(), f"{module}.bias": torch.ones(12)}
    for key, value in extra.items():
        if isinstance(value, dict):
            form = "float8_e4m3fn" if dtype == E4M3 else "float8_e5m2"
            value = comfy(value | {"format": form})
        tensors[key] = value
    return tensors, wanted


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("inputs", [{}, {"a.scale_input": torch.tensor(3.0)}, {"a.input_scale": torch.tensor([7.0])}])
def test_scaled_fp8_is_read_as_its_dense_formula(name, dtype, inputs, tmp_path):
    tensors, wanted = layout(name, dtype)
    save_file(tensors | inputs, tmp_path / "x.safetensors")
    group = open_tensors(tmp_path / "x.safetensors").groups[()]
    assert set(group) == {"a.weight", "a.bias"}  # nothing else is to be seen
    ref = group["a.weight"]
    assert ref.shape == (12, 20)
    assert refusal(ref) is None
    for found in (read_float(ref), read_tensor(ref), read_float_with_digest(ref)[0]):
        np.testing.assert_allclose(found.double().numpy(), wanted, rtol=1e-6, atol=0)
    assert read_float_with_digest(ref)[1] == digest(ref)
    assert locate(tmp_path / "x.safetensors").groups[()] == group


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_fp8_without_a_scale_is_a_cast(dtype, tmp_path):
    stored = matrix().to(dtype)
    save_file({"a.weight": stored, "scaled_fp8": torch.zeros(2).to(dtype)}, tmp_path / "x.safetensors")
    group = open_tensors(tmp_path / "x.safetensors").groups[()]
    assert set(group) == {"a.weight"}
    np.testing.assert_array_equal(read_float(group["a.weight"]).double().numpy(), numbers(stored))


@pytest.mark.parametrize("known", [known for known in FORMATS.values() if known.significand_bits is not None])
def test_plain_numbers_of_every_format_are_a_weight(known, tmp_path):
    stored = matrix().to(getattr(torch, known.dtype))
    save_file({"a.weight": stored}, tmp_path / "x.safetensors")
    ref = open_tensors(tmp_path / "x.safetensors").groups[()]["a.weight"]
    assert (ref.codec, refusal(ref)) == ("raw", None)
    assert torch.equal(read_float(ref), stored.float())


@pytest.mark.parametrize(
    ("dtype", "word"), [("F4", "fp4"), ("F6_E3M2", "fp6_e3m2"), ("F8_E8M0", "fp8_e8m0"), ("X9", "X9")]
)
def test_formats_that_are_not_known_are_named(dtype, word, tmp_path):
    header = json.dumps({"a.weight": {"dtype": dtype, "shape": [3, 4], "data_offsets": [0, 6]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(6))
    ref = open_tensors(tmp_path / "x.safetensors").groups[()]["a.weight"]
    with pytest.raises(UnsupportedError, match=word):
        read_float(ref)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_layer_that_was_kept_fine_has_a_scale_too(dtype, tmp_path):
    """ComfyUI writes `scale_weight` beside every linear layer, those it did not round included."""
    weight = matrix().to(dtype)
    save_file({"a.weight": weight, "a.scale_weight": torch.tensor(0.5)}, tmp_path / "x.safetensors")
    ref = open_tensors(tmp_path / "x.safetensors").groups[()]["a.weight"]
    assert torch.equal(read_float(ref), weight.float() * 0.5)


def test_another_scale_is_another_weight(tmp_path):
    tensors, _ = layout("LightX2V", E4M3)
    found = []
    for name, factor in (("x", 1.0), ("y", 2.0)):
        changed = tensors | {"a.weight_scale": tensors["a.weight_scale"] * factor}
        save_file(changed, tmp_path / f"{name}.safetensors")
        found.append(open_tensors(tmp_path / f"{name}.safetensors").groups[()]["a.weight"])
    assert digest(found[0]) != digest(found[1])
    plain = replace(found[0], codec="raw", companions=())
    assert len({digest(plain), *map(digest, found)}) == 3
    assert identity(plain)[1] != identity(found[0])[1]


def test_the_scale_may_lie_in_another_shard(tmp_path):
    tensors, wanted = layout("LightX2V", E4M3)
    parts = [{"a.weight": tensors["a.weight"]}, {"a.weight_scale": tensors["a.weight_scale"]}]
    names = [f"model-{n:05d}-of-00002.safetensors" for n in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, tmp_path / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    group = locate(tmp_path).groups[()]
    assert set(group) == {"a.weight"}
    np.testing.assert_allclose(read_float(group["a.weight"]).double().numpy(), wanted, rtol=1e-6)
    assert identity(group["a.weight"])[0].count("\n") == 1  # both files are watched


@pytest.mark.parametrize("name", ["a", "model.diffusion_model.a"])
def test_settings_of_all_modules_in_the_header(name, tmp_path):
    tensors, wanted = layout("LightX2V", E4M3, name)
    layers = {"a": {"format": "float8_e4m3fn"}}
    save_file(tensors, tmp_path / "x.safetensors", {"_quantization_metadata": json.dumps({"layers": layers})})
    ref = open_tensors(tmp_path / "x.safetensors").groups[()][f"{name}.weight"]
    np.testing.assert_allclose(read_float(ref).double().numpy(), wanted, rtol=1e-6)
    layers = {"a": {"format": "float8_of_tomorrow"}}
    save_file(tensors, tmp_path / "x.safetensors", {"_quantization_metadata": json.dumps({"layers": layers})})
    assert (
        refusal(open_tensors(tmp_path / "x.safetensors").groups[()][f"{name}.weight"]) == "ComfyUI's float8_of_tomorrow"
    )


def comfy(value: object) -> torch.Tensor:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return torch.tensor(list(text), dtype=torch.uint8)


FP8 = {"a.weight": matrix().to(E4M3), "a.weight_scale": torch.tensor(0.1)}
INT8 = {"a.weight": torch.ones(12, 20, dtype=torch.int8)}


@pytest.mark.parametrize("stored", [FP8, INT8 | {"a.weight_scale": torch.ones(12, 1)}])
def test_a_header_that_says_that_weights_were_turned(stored, tmp_path):
    save_file(stored, tmp_path / "x.safetensors", {"activation_rotation": "convrot_hadamard_v1"})
    (ref,) = open_tensors(tmp_path / "x.safetensors").groups[()].values()
    assert "in a rotated basis" in refusal(ref)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": 3}', "[" * 9999])
def test_settings_in_the_header_that_are_none(text, tmp_path):
    save_file({"a.weight": matrix()}, tmp_path / "x.safetensors", {"_quantization_metadata": text})
    with pytest.raises(FileError, match="_quantization_metadata"):
        open_tensors(tmp_path / "x.safetensors")


REFUSED = {
    "int8 whose scale is missing": INT8,
    "zero points": INT8 | {"a.weight_scale": torch.ones(12, 1), "a.weight_zero_point": torch.ones(12, 1)},
    "convrot in groups of 256": INT8
    | {"a.weight_scale": torch.ones(12, 1), "a.comfy_quant": comfy({"format": "int8_tensorwise", "convrot": True})},
    "convrot in groups of [4]": INT8
    | {"a.weight_scale": torch.ones(12, 1)}
    | {"a.comfy_quant": comfy({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": [4]})},
    "int8 by its settings and F8_E4M3 by its numbers": FP8 | {"a.comfy_quant": comfy({"format": "int8_tensorwise"})},
    "float8_e4m3fn in a rotated basis": FP8
    | {"a.comfy_quant": comfy({"format": "float8_e4m3fn", "params": {"convrot": True}})},
    "nvfp4 with other scales": {"a.weight": torch.ones(12, 10, dtype=torch.uint8)}
    | {"a.weight_scale": torch.ones(12, 2).to(E4M3), "a.weight_scale_2": torch.tensor(1.0)}
    | {"a.comfy_quant": comfy({"format": "nvfp4"})},
    "nvfp4 without ComfyUI's settings": {"a.weight": torch.ones(128, 32, dtype=torch.uint8)}
    | {"a.weight_scale": torch.ones(128, 4).to(E4M3), "a.weight_scale_2": torch.tensor(1.0)},
    "nvfp4 of another program": {
        "a.weight": torch.ones(12, 10, dtype=torch.uint8),
        "a.input_global_scale": torch.tensor(1.0),
    },
    "mxfp4, 6 or 8 in bytes": {"a.weight": torch.ones(12, 10, dtype=torch.uint8)}
    | {"a.weight_scale": torch.ones(128, 4, dtype=torch.uint8)},
    "packed integers (compressed-tensors)": {"a.weight_packed": torch.ones(12, 5, dtype=torch.int32)}
    | {"a.weight_scale": torch.ones(12, 1), "a.weight_shape": torch.tensor([12, 40])},
    "torchao": {"a._weight_qdata": torch.ones(12, 10, dtype=torch.int8), "a._weight_scale": torch.ones(12, 1)},
    "int4 in a rotated basis (convrot in groups of 256)": INT8
    | {"a.weight_scale": torch.ones(12), "a.comfy_quant": comfy({"format": "convrot_w4a4"})},
    "ComfyUI's awq_w4a16": INT8
    | {"a.weight_scale": torch.ones(1, 12), "a.weight_zeros": torch.ones(1, 12)}
    | {"a.comfy_quant": comfy({"format": "awq_w4a16"})},
    "mxfp8": FP8 | {"a.weight_scale": torch.ones(12, 1, dtype=torch.uint8)},
    "mxfp8 with other scales": FP8 | {"a.comfy_quant": comfy({"format": "mxfp8"})},
    "asym_w4a8_int8": INT8 | {"a.comfy_quant": comfy({"format": "asym_w4a8_int8"})},
    "ComfyUI's raw": FP8 | {"a.comfy_quant": comfy({"format": "raw"})},
    "ComfyUI's int8": INT8 | {"a.weight_scale": torch.ones(12, 1), "a.comfy_quant": comfy({"format": "int8"})},
    "do not name": FP8 | {"a.comfy_quant": comfy(b"\xff\xfe")},
    "do not name ": FP8 | {"a.comfy_quant": comfy({"format": "x\n" * 20})},
    "do not name  ": FP8 | {"a.comfy_quant": comfy([1])},
    "do not name   ": INT8 | {"a.weight_scale": torch.ones(12, 1), "a.comfy_quant": comfy({"bits": 8})},
    "pre_quant_scale": FP8 | {"a.pre_quant_scale": torch.ones(20)},
    "scale is missing": {"a.weight": FP8["a.weight"], "a.comfy_quant": comfy({"format": "float8_e4m3fn"})},
    "bitsandbytes": {"a.weight": torch.ones(120, 1, dtype=torch.uint8), "a.weight.absmax": torch.ones(3)}
    | {"a.weight.quant_state.bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8)},
    "bitsandbytes ": INT8 | {"a.SCB": torch.ones(12)},
    "GPTQ or AWQ": {"a.qweight": torch.ones(4, 4, dtype=torch.int32), "a.qzeros": torch.ones(4, 4, dtype=torch.int32)}
    | {"a.scales": torch.ones(4), "a.g_idx": torch.ones(4, dtype=torch.int32)},
    "SVDQuant": {"a.qweight": torch.ones(12, 10, dtype=torch.int8), "a.wscales": torch.ones(2, 12)},
    "quanto": {"a.weight._data": torch.ones(12, 20, dtype=torch.uint8), "a.weight._scale": torch.ones(12, 1)},
    "a scale of another program (scale)": FP8 | {"a.scale": torch.ones(12, 1), "a.weight_scale": None},
    "a scale of another program (scale) ": INT8 | {"a.scale": torch.ones(12, 1)},
    "a scale of another program (weight_scales)": FP8 | {"a.weight_scales": torch.ones(12, 1), "a.weight_scale": None},
    "a scale of another program (scale)  ": FP8 | {"a.weight.scale": torch.ones(12, 1), "a.weight_scale": None},
    "a scale of another program (scales)": INT8 | {"a.scales": torch.ones(12, 1)},
    "SDNQ": {"a.weight": torch.ones(60, dtype=torch.uint8), "a.scale": torch.ones(12, 1)}
    | {"a.svd_up": torch.ones(12, 2), "a.svd_down": torch.ones(2, 20)},
    "int8 of TurboDiffusion": {"a.int8_weight": INT8["a.weight"], "a.scale": torch.ones(1, 1)},
    "HQQ": {"a.W_q": torch.ones(6, 20, dtype=torch.uint8)},
    "NVIDIA ModelOpt": {"a.weight": FP8["a.weight"], "a.weight_quantizer._scale": torch.tensor(0.1)},
    "packed bytes": {"a.weight": torch.ones(12, 20, dtype=torch.uint8)},
    "integers (I64)": {"a.weight": torch.ones(12, 20, dtype=torch.int64)},
    "integers (BOOL)": {"a.weight": torch.ones(12, 20, dtype=torch.bool)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_storage_is_listed_as_one_weight_and_refused_by_name(name, tmp_path):
    tensors = {key: tensor for key, tensor in REFUSED[name].items() if tensor is not None}
    save_file(tensors | {"a.bias": torch.ones(12)}, tmp_path / "x.safetensors")
    group = open_tensors(tmp_path / "x.safetensors").groups[()]
    beside = {"a.scale", "a.weight_scales", "a.weight.scale"}
    assert {"a.weight", "a.bias"} <= set(group) <= {"a.weight", "a.bias"} | beside
    assert name.strip() in refusal(group["a.weight"])
    as_stored = () if group["a.weight"].codec == "raw" else (read_tensor,)  # integers may be what is asked for
    for read in (read_float, read_float_with_digest, *as_stored):
        with pytest.raises(UnsupportedError) as caught:
            read(group["a.weight"])
        assert name.strip() in caught.value.message
        assert "bf16" in caught.value.fix
    assert read_float(group["a.bias"]).sum() == 12


def test_a_stored_nan_is_named(tmp_path):
    weight = FP8["a.weight"].clone()
    weight.view(torch.uint8)[3, 4] = 0x7F
    save_file(FP8 | {"a.weight": weight}, tmp_path / "x.safetensors")
    with pytest.raises(NumericalError, match=r"a.weight(.|\n)*\[3, 4\]"):
        read_float(open_tensors(tmp_path / "x.safetensors").groups[()]["a.weight"])


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_the_rounding_floor_covers_what_rounding_does(dtype, tmp_path):
    """Two weights that differ by nothing that can be seen, each stored with its own scale."""
    refs, read = [], []
    for n, factor in enumerate((1.0, 1.0001)):
        weight = matrix(0, 400, 300) * factor + matrix(1, 400, 300) * 1e-3
        stored, scale = quantised(weight, dtype, "channel")
        save_file({"a.weight": stored, "a.weight_scale": scale}, tmp_path / f"{n}.safetensors")
        refs.append(open_tensors(tmp_path / f"{n}.safetensors").groups[()]["a.weight"])
        read.append((read_float(refs[-1]), weight))
    for found, weight in read:
        error = float((found - weight).norm() / weight.norm())
        assert 0.5 * rounding_floor(refs[0]) < error < rounding_floor(refs[0])
    assert common_dtype(refs[0], refs[1]) is None


def test_every_codec_keeps_the_protocol():
    for codec in CODECS:
        assert isinstance(codec, Codec)
        assert isinstance(codec, Refused) or decode.dispatch(type(codec)) is not decode.dispatch(object)
    assert len({codec.name for codec in CODECS}) == len(CODECS)


SUFFIXES = [
    "weight",
    "scale_weight",
    "weight_scale",
    "weight_scale_inv",
    "input_scale",
    "comfy_quant",
    "qweight",
    "bias",
    "bias_scale",
    "scale",
    "weight_scale_2",
    "weight_global_scale",
    "weight_packed",
    "alpha",
    "input_global_scale",
    "pre_quant_scale",
    "weight._data",
    "weight._scale",
    "_weight_qdata",
    "_weight_scale",
]


@pytest.mark.parametrize("seed", range(12))
def test_any_mixture_of_companions_is_read_or_refused(seed, tmp_path):
    draw = np.random.default_rng(seed)
    dtypes = [E4M3, E5M2, torch.float32, torch.bfloat16, torch.int8, torch.uint8]
    shapes = [(), (1,), (4,), (4, 1), (4, 6), (4, 2, 1), (6, 4), (0,)]
    tensors = {
        f"m{module}.{suffix}": torch.ones(shapes[draw.integers(len(shapes))]).to(dtypes[draw.integers(len(dtypes))])
        for module in range(20)
        for suffix in SUFFIXES
        if draw.random() < 0.3
    } | {"scaled_fp8": torch.zeros(2)}
    save_file(tensors, tmp_path / "x.safetensors")
    for ref in open_tensors(tmp_path / "x.safetensors").groups[()].values():
        with contextlib.suppress(LoraportError):
            assert read_float(ref).shape == ref.shape
