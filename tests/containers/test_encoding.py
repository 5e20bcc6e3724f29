"""Other numbers in the place of an fp8 weight: rounded to the nearest under their scale, however scales are shared."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraport.containers import encoding
from loraport.containers.codecs.registry import CODECS, ENCODED
from loraport.containers.encoded import encoded
from loraport.containers.references import can_encode
from loraport.containers.tensors import open_tensors, read_float

SCALES = {
    "a tensor": ((), 48, 40),
    "a row": ((48, 1), 1, 40),
    "a block of a row": ((48, 5, 1), 1, 8),
    "squares": ((6, 5), 8, 8),
    "squares with a rest": ((2, 2), 128, 128),
}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("shared_by", SCALES)
def test_rounded_to_the_nearest(shared_by: str, dtype: torch.dtype, tmp_path: Path) -> None:
    scale_shape, high, wide = SCALES[shared_by]
    rows, columns = (200, 150) if high == 128 else (48, 40)
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(rows, columns, generator=generator).to(dtype)
    scale = 0.5 + torch.rand(scale_shape, generator=generator)
    save_file({"a.weight": stored, "a.weight_scale_inv": scale}, tmp_path / "x.safetensors")
    ref = open_tensors(tmp_path / "x.safetensors").groups[()]["a.weight"]
    assert can_encode(ref)
    before = read_float(ref)
    same = encoded(ref, before)
    assert torch.equal(same.tensors[0][1].float(), stored.float())
    assert torch.equal(same.tensors[1][1], scale)
    largest = torch.finfo(dtype).max
    numbers = before.clone()
    numbers[-1, -1] = 3 * largest  # does not fit under its scale
    found = encoded(ref, numbers)
    assert torch.equal(found.numbers, encoded(ref, found.numbers).numbers)
    assert found.numbers[-1, -1] == pytest.approx(3 * largest)
    # Within half a step of the format, or of its smallest step under the scale that its neighbours made larger.
    by = found.tensors[1][1].reshape(-1, *([scale_shape[1]] if len(scale_shape) > 1 else [1]))
    by = by.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
    step = torch.maximum(
        numbers.abs() * torch.finfo(dtype).eps, by * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    )
    assert bool(((found.numbers - numbers).abs() <= 0.5 * step * (1 + 1e-5)).all())
    changed = found.tensors[1][1] != scale
    assert int(changed.sum()) == 1
    alone = torch.isclose(by, by[-1, -1])
    assert torch.equal(found.tensors[0][1].float()[~alone], stored.float()[~alone])


def test_a_row_of_zeros_under_a_scale_of_zero(tmp_path: Path) -> None:
    """As it is, and with numbers in it."""
    before = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    stored = {"a.weight": before.to(torch.float8_e4m3fn), "a.weight_scale": torch.tensor([[1.0], [0.0]])}
    save_file(stored, tmp_path / "x.safetensors")
    ref = open_tensors(tmp_path / "x.safetensors").groups[()]["a.weight"]
    assert torch.equal(encoded(ref, read_float(ref)).numbers, before)
    assert torch.equal(encoded(ref, before + 1).numbers, before + 1)


def test_what_headers_say_can_be_encoded_is_what_has_an_encoder() -> None:
    nobody = encoding.encode.dispatch(object)
    for codec in CODECS:
        assert isinstance(codec, ENCODED) == (encoding.encode.dispatch(type(codec)) is not nobody), codec.name
