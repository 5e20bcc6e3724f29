"""How numbers share scales, in fp8 and int8 alike, against the scales written out; and what is no scale."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loraport.containers.references import refusal, rounding_floor
from loraport.containers.tensors import TensorRef, digest, open_tensors, read_float, read_float_with_digest
from loraport.errors import NumericalError
from storage import comfy, scaled

NUMBERS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "int8": torch.int8}
ROWS, COLUMNS = 12, 20


def stored(numbers: str, shape: tuple[int, ...] = (ROWS, COLUMNS)) -> torch.Tensor:
    whole = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(1)).float()
    return whole.to(NUMBERS[numbers])


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 0.01 + 0.001


def spread(scale: torch.Tensor, down: int, across: int, shape: tuple[int, int] = (ROWS, COLUMNS)) -> np.ndarray:
    """Every scale over its block of so many rows and columns, cut at the edges."""
    by = scale.double().reshape(-(-shape[0] // down), -(-shape[1] // across)).numpy()
    return np.kron(by, np.ones((down, across)))[: shape[0], : shape[1]]


# the shape of the scale, and rows and columns of the block that shares one
SHARED = {
    "the tensor": ((), ROWS, COLUMNS),
    "the tensor, [1]": ((1,), ROWS, COLUMNS),
    "the tensor, [1, 1]": ((1, 1), ROWS, COLUMNS),
    "a row, flat": ((ROWS,), 1, COLUMNS),
    "a row": ((ROWS, 1), 1, COLUMNS),
    "a block of a row (musubi-tuner)": ((ROWS, 5, 1), 1, 4),
    "a group of a row (compressed-tensors)": ((ROWS, 5), 1, 4),
    "a square": ((3, 5), 4, 4),
}


def opened(path, tensors: dict[str, torch.Tensor]) -> TensorRef:
    save_file(tensors, path)
    return open_tensors(path).groups[()]["a.weight"]


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale", "weight_scale_inv", "fp8_scale"])
@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("numbers", NUMBERS)
def test_a_weight_is_number_times_scale(numbers, shared, suffix, tmp_path):
    shape, down, across = SHARED[shared]
    weight, scale = stored(numbers), scales(*shape)
    ref = opened(tmp_path / "x.safetensors", {"a.weight": weight, f"a.{suffix}": scale})
    wanted = weight.double().numpy() * spread(scale, down, across)
    assert (refusal(ref), ref.shape) == (None, (ROWS, COLUMNS))
    np.testing.assert_allclose(read_float(ref).numpy(), wanted, rtol=1e-6)
    part = replace(ref, shape=(6, COLUMNS), rows=((9, 12), (2, 5)))
    np.testing.assert_allclose(read_float(part).numpy(), wanted[[9, 10, 11, 2, 3, 4]], rtol=1e-6)
    assert read_float_with_digest(part)[1] == digest(part) != digest(ref) == read_float_with_digest(ref)[1]


@pytest.mark.parametrize("form", [None, "blockwise"])
@pytest.mark.parametrize("shape", [(256, 128), (130, 300), (128, 128), (100, 20)])
@pytest.mark.parametrize("numbers", ["e4m3", "int8"])
def test_squares_of_128_have_a_rest_at_the_edges(numbers, shape, form, tmp_path):
    """DeepSeek's and Transformers' `weight_scale_inv`, LightX2V's fp8-b128, `*_blockwise` of ComfyUI's settings."""
    weight, scale = stored(numbers, shape), scales(-(-shape[0] // 128), -(-shape[1] // 128))
    tensors = {"a.weight": weight, "a.weight_scale_inv": scale}
    if form:
        name = {"e4m3": "float8_e4m3fn", "int8": "int8"}[numbers]
        tensors["a.comfy_quant"] = comfy(format=f"{name}_blockwise", group_size=128)
    ref = opened(tmp_path / "x.safetensors", tensors)
    wanted = weight.double().numpy() * spread(scale, 128, 128, shape)
    np.testing.assert_allclose(read_float(ref).numpy(), wanted, rtol=1e-6)
    rows = ((90, 100), (0, 3)) if shape[0] == 100 else ((120, 130), (0, 3)) if shape[0] > 128 else ((100, 110), (0, 3))
    part = replace(ref, shape=(13, shape[1]), rows=rows)
    chosen = [n for start, end in rows for n in range(start, end)]
    np.testing.assert_allclose(read_float(part).numpy(), wanted[chosen], rtol=1e-6)


def test_a_convolution_has_a_scale_for_each_row(tmp_path):
    weight, scale = stored("e4m3", (ROWS, 2, 1, 2, 2)), scales(ROWS, 1)
    ref = opened(tmp_path / "x.safetensors", {"a.weight": weight, "a.weight_scale": scale})
    np.testing.assert_allclose(read_float(ref).numpy(), weight.float() * scale.reshape(-1, 1, 1, 1, 1), rtol=1e-6)


def test_a_bias_may_have_a_scale(tmp_path):
    bias = stored("e4m3", (ROWS,))
    save_file({"a.bias": bias, "a.bias_scale": torch.tensor(0.25)}, tmp_path / "x.safetensors")
    group = open_tensors(tmp_path / "x.safetensors").groups[()]
    assert set(group) == {"a.bias"}
    assert torch.equal(read_float(group["a.bias"]), bias.float() * 0.25)


REFUSED = {
    "a matrix of neither rows nor squares": (scales(2, 2), {}),
    "a scale for each input": (scales(1, COLUMNS), {}),
    "too many rows": (scales(ROWS + 1, 1), {}),
    "blocks that do not divide a row": (scales(ROWS, 3, 1), {}),
    "squares of another side than the settings say": (scales(3, 5), {"group_size": 8}),
    "squares by the settings, rows by the shape": (scales(ROWS, 1), {"group_size": 4}),
    "no scale at all": (scales(0), {}),
    "scales in 8 bits": (scales(ROWS, 1).to(torch.float8_e4m3fn), {}),
    "scales that are integers": (torch.ones(ROWS, 1, dtype=torch.int32), {}),
    "four dimensions": (scales(ROWS, 1, 5, 1), {}),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("numbers", ["e4m3", "int8"])
def test_scales_that_do_not_fit_are_refused_by_their_shape(numbers, name, tmp_path):
    scale, settings = REFUSED[name]
    tensors = {"a.weight": stored(numbers), "a.weight_scale": scale}
    if settings:
        form = {"e4m3": "float8_e4m3fn_blockwise", "int8": "int8_blockwise"}[numbers]
        tensors["a.comfy_quant"] = comfy(format=form, **settings)
    ref = opened(tmp_path / "x.safetensors", tensors)
    assert f"with scales of the shape {list(scale.shape)}" in refusal(ref)


@pytest.mark.parametrize("shape", [(10, 16), (12, 16)])
def test_only_squares_of_128_have_a_rest_at_the_edges(shape, tmp_path):
    ref = opened(tmp_path / "x.safetensors", {"a.weight": stored("e4m3", shape), "a.weight_scale": scales(3, 4)})
    assert (refusal(ref) is None) == (shape[0] % 4 == 0)


@pytest.mark.parametrize("first", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("numbers", ["e4m3", "int8"])
def test_two_scales_contradict_each_other(numbers, first, tmp_path):
    tensors = {"a.weight": stored(numbers), f"a.{first}": scales(), "a.weight_scale_inv": scales(ROWS, 1)}
    save_file(tensors, tmp_path / "x.safetensors")
    group = open_tensors(tmp_path / "x.safetensors").groups[()]
    assert list(group) == ["a.weight"]
    assert "two scales" in refusal(group["a.weight"])


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale", "weight_scale_inv", "bias_scale"])
def test_a_scale_whose_weight_is_not_there(suffix, tmp_path):
    save_file({f"a.{suffix}": scales(), "b.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    group = open_tensors(tmp_path / "x.safetensors").groups[()]
    key = "a.bias" if suffix == "bias_scale" else "a.weight"
    assert set(group) == {key, "b.weight"}
    assert refusal(group[key]) == "a scale without its weight"


@pytest.mark.parametrize("shared", ["a row", "a block of a row (musubi-tuner)", "a square"])
@pytest.mark.parametrize(
    ("value", "word"), [(0.0, "is 0"), (-0.1, "is -0.1"), (float("nan"), "NaN"), (float("inf"), "inf")]
)
@pytest.mark.parametrize("numbers", ["e4m3", "int8"])
def test_one_scale_of_many_that_no_quantisation_makes(numbers, value, word, shared, tmp_path):
    scale = scales(*SHARED[shared][0])
    scale.reshape(-1)[1] = value
    ref = opened(tmp_path / "x.safetensors", {"a.weight": stored(numbers), "a.weight_scale": scale})
    with pytest.raises(NumericalError, match=rf"(?i){word}(.|\n)*a\.weight_scale|a\.weight_scale(.|\n)*{word}"):
        read_float(ref)


def test_rows_of_zeros_may_have_a_scale_of_zero(tmp_path):
    weight, scale = stored("e4m3"), scales(ROWS, 1)
    weight[3], scale[3] = 0.0, 0.0
    ref = opened(tmp_path / "x.safetensors", {"a.weight": weight, "a.weight_scale": scale})
    assert torch.equal(read_float(ref), weight.float() * scale)


@pytest.mark.parametrize("shared", ["a row", "a block of a row (musubi-tuner)", "a square", "the tensor"])
def test_the_floor_of_integers_follows_how_many_share_a_scale(shared, tmp_path):
    rows, columns = 256, 320
    down, across = {"a row": (1, columns), "a square": (64, 64), "the tensor": (rows, columns)}.get(shared, (1, 32))
    weight = np.random.default_rng(4).normal(0, 0.03, (rows, columns))
    tensors, _ = scaled(weight, torch.int8, down, across)
    if "block" in shared:
        tensors["a.weight_scale"] = tensors["a.weight_scale"].unsqueeze(2)
    ref = opened(tmp_path / "x.safetensors", tensors)
    error = np.linalg.norm(read_float(ref).double().numpy() - weight) / np.linalg.norm(weight)
    assert rounding_floor(ref) == pytest.approx(np.sqrt(2) * error, rel=0.2)
    part = replace(ref, shape=(64, columns), rows=((64, 128),))
    assert rounding_floor(part) == pytest.approx(np.sqrt(2) * error, rel=0.2)


SUBCLASSES = {
    "quanto, fp8": ("weight._data", "weight._scale", "e4m3", (ROWS, 1)),
    "quanto, int8": ("weight._data", "weight._scale", "int8", (ROWS, 1)),
    "torchao, rows": ("_weight_qdata", "_weight_scale", "e4m3", (ROWS, 1)),
    "torchao, tensor": ("_weight_qdata", "_weight_scale", "e4m3", (1, 1)),
}


@pytest.mark.parametrize("name", SUBCLASSES)
def test_tensor_subclasses_that_were_taken_apart(name, tmp_path):
    data, scale, numbers, shape = SUBCLASSES[name]
    weight, by = stored(numbers), scales(*shape)
    tensors = {f"a.{data}": weight, f"a.{scale}": by, "a.bias": torch.ones(ROWS)}
    others = {"a.input_scale": torch.tensor(1.0), "a.output_scale": torch.tensor(1.0)} if "quanto" in name else {}
    save_file(tensors | others, tmp_path / "x.safetensors")
    group = open_tensors(tmp_path / "x.safetensors").groups[()]
    assert set(group) == {"a.weight", "a.bias"}
    assert torch.equal(read_float(group["a.weight"]), weight.float() * by)
    assert digest(group["a.weight"]) == read_float_with_digest(group["a.weight"])[1]


@pytest.mark.parametrize("name", SUBCLASSES)
def test_of_these_what_is_more_than_number_and_scale_is_refused(name, tmp_path):
    data, scale, numbers, shape = SUBCLASSES[name]
    tensors = {f"a.{data}": stored(numbers), f"a.{scale}": scales(*shape)}
    program = name.partition(",")[0]
    other = {"quanto": "weight._shift", "torchao": "_weight_zero_point"}[program]
    packed = {f"a.{data}": torch.ones(ROWS, COLUMNS // 2, dtype=torch.uint8)}
    for changed, metadata in (
        ({f"a.{other}": scales(ROWS, 1)}, {}),
        (packed, {}),
        ({}, {"activation_rotation": "convrot_hadamard_v1"}),
    ):
        save_file(tensors | changed, tmp_path / "x.safetensors", metadata)
        group = open_tensors(tmp_path / "x.safetensors").groups[()]
        assert set(group) == {"a.weight"}
        assert refusal(group["a.weight"]) == program
