"""The one table of number formats, against what torch and the stock writer do."""

import pytest
import torch
from safetensors.torch import _TYPES

from loraport.containers.dtypes import FORMATS, all_zero, common_dtype, name_of, number, rounding_floor, written_as


def test_the_table_agrees_with_torch_and_with_the_stock_writer():
    for name, known in FORMATS.items():
        dtype = getattr(torch, known.dtype)
        assert _TYPES[name] == dtype
        assert known.item_bytes == dtype.itemsize
        assert name_of(dtype) == name
        if known.significand_bits is not None:
            assert torch.finfo(dtype).eps == 2.0 ** (1 - known.significand_bits)
            assert torch.finfo(dtype).smallest_normal == 2.0**known.least_exponent
    assert name_of(torch.complex64) is None


@pytest.mark.parametrize(
    ("a", "b", "common"),
    [
        ("F32", "BF16", "bfloat16"), ("F16", "BF16", "bfloat16"), ("F32", "F16", "float16"), ("F64", "F16", "float16"),
        ("F64", "F32", None), ("BF16", "BF16", None), ("F8_E4M3", "BF16", None), ("F32", "F8_E5M2", None),
        ("I8", "F32", None),
    ],
)  # fmt: skip
def test_two_weights_are_compared_in_the_coarser_dtype_but_never_in_eight_bits(a, b, common):
    assert common_dtype(a, b) == common_dtype(b, a) == common


def test_what_factors_are_written_in():
    assert [written_as(name) for name in ("F32", "F16", "BF16")] == ["float32", "float16", "bfloat16"]
    assert {written_as(name) for name in ("F64", "F8_E4M3", "I8", "?")} == {"float32"}


@pytest.mark.parametrize(
    ("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F8_E4M3", torch.float8_e4m3fn)]
)
def test_rounding_floor_is_what_rounding_does(name, dtype):
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    y = x * (1 + 1e-5)
    measured = float(((x + 3e-9).to(dtype).float() - x).norm() / x.norm()) * 2**0.5
    assert rounding_floor(name) == pytest.approx(measured, rel=0.02)
    assert float((y - x).norm() / x.norm()) < rounding_floor(name)
    assert rounding_floor("something else") == 0.0


@pytest.mark.parametrize("rms", [0.05, 0.02, 0.008, 0.003, 0.001, 0.0003])
@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2", "BF16"])
def test_small_numbers_without_a_scale_lose_more(name, rms):
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * rms
    measured = float((x.to(getattr(torch, FORMATS[name].dtype)).float() - x).norm() / x.norm()) * 2**0.5
    assert rounding_floor(name, rms) == pytest.approx(measured, rel=0.1 if measured < 1 else 0.35)


@pytest.mark.parametrize("name", FORMATS)
def test_single_numbers_are_those_of_torch(name):
    dtype = getattr(torch, FORMATS[name].dtype)
    size = FORMATS[name].item_bytes
    if size <= 2:
        patterns = torch.arange(0, 2 if name == "BOOL" else 256**size, 1 if size == 1 else 37)
        stored = patterns.to(torch.uint8 if size == 1 else torch.uint16)
    else:
        stored = torch.randint(256, (200 * size,), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    rows = stored.view(torch.uint8).reshape(-1, size)
    for row, wanted in zip(rows, rows.view(dtype).reshape(-1).tolist(), strict=True):
        found = number(name, bytes(row.tolist()))
        assert found == wanted or (found != found and wanted != wanted)


@pytest.mark.parametrize("name", [name for name, known in FORMATS.items() if known.significand_bits is not None])
def test_zeros_are_told_from_their_bytes(name):
    dtype = getattr(torch, FORMATS[name].dtype)
    for values, zero in (([0.0, -0.0], True), ([], True), ([0.0, 2.0], False), ([float("nan")], False)):
        stored = torch.tensor(values, dtype=torch.float64).to(dtype)
        assert all_zero(name, stored.view(torch.uint8).numpy().tobytes()) is zero
    least = torch.tensor([1, 0], dtype=torch.uint8).repeat(FORMATS[name].item_bytes)[: FORMATS[name].item_bytes]
    assert not all_zero(name, least.numpy().tobytes())  # the smallest number of all
