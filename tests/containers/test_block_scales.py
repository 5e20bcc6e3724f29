"""mxfp8 and nvfp4 against an encoder that is written from their specifications, number by number."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loraport.containers.tensors import (
    TensorRef,
    digest,
    open_tensors,
    read_float,
    read_float_with_digest,
    refusal,
    rounding_floor,
)
from loraport.errors import FileError, NumericalError

E4M3 = torch.float8_e4m3fn
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # sign, two bits of exponent with bias 1, one bit of mantissa
SHAPES = [(160, 96), (128, 128), (32, 416)]  # part of a tile of 128 x 4, whole ones, more blocks than a tile


def matrix(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(5).normal(0, 0.03, shape).astype(np.float32)


def e4m3(value: float) -> float:
    return float(torch.tensor(value).to(E4M3).float())


def tiled(scales: np.ndarray) -> np.ndarray:
    """Scale by scale to the place that cuBLAS gives it, in tiles of 128 rows and 4 blocks."""
    rows, blocks = scales.shape
    across = -(-blocks // 4)
    found = np.zeros(-(-rows // 128) * across * 512, scales.dtype)
    for row in range(rows):
        for block in range(blocks):
            tile = row // 128 * across + block // 4
            found[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + block % 4] = scales[row, block]
    return found.reshape(-(-rows // 128) * 128, across * 4)


def mxfp8(weight: np.ndarray) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Stored tensors and the numbers that they stand for."""
    rows, blocks = weight.shape[0], weight.shape[1] // 32
    exponents = np.zeros((rows, blocks), np.uint8)
    stored, wanted = torch.empty(*weight.shape, dtype=E4M3), np.zeros(weight.shape)
    for row in range(rows):
        for block in range(blocks):
            part = slice(32 * block, 32 * block + 32)
            power = int(np.ceil(np.log2(np.abs(weight[row, part]).max() / 448.0)))
            exponents[row, block] = power + 127
            stored[row, part] = torch.from_numpy(weight[row, part] / 2.0**power).to(E4M3)
            wanted[row, part] = stored[row, part].float().numpy() * 2.0**power
    return {"a.weight": stored, "a.weight_scale": torch.from_numpy(tiled(exponents))}, wanted


def nvfp4(weight: np.ndarray) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    rows, blocks = weight.shape[0], weight.shape[1] // 16
    whole = np.float32(np.abs(weight).max() / (448.0 * 6.0))
    scales, wanted = np.zeros((rows, blocks), np.float32), np.zeros(weight.shape)
    packed = np.zeros((rows, weight.shape[1] // 2), np.uint8)
    for row in range(rows):
        for block in range(blocks):
            part = weight[row, 16 * block : 16 * block + 16]
            scales[row, block] = e4m3(float(np.abs(part).max() / 6.0 / whole))
            for place, value in enumerate(part / (scales[row, block] * whole), start=16 * block):
                code = min(range(8), key=lambda n: abs(E2M1[n] - abs(value)))
                bits = code | (8 if value < 0 else 0)
                packed[row, place // 2] |= bits << 4 if place % 2 == 0 else bits  # the first in the upper half
                wanted[row, place] = np.sign(value) * E2M1[code] * float(scales[row, block]) * float(whole)
    stored = {"a.weight": torch.from_numpy(packed), "a.weight_scale": torch.from_numpy(tiled(scales)).to(E4M3)}
    return stored | {"a.weight_scale_2": torch.tensor(whole)}, wanted


FORMATS = {"mxfp8": mxfp8, "nvfp4": nvfp4}


def header_of(path) -> dict:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def rewrite_header(path, change) -> None:
    data, entries = path.read_bytes(), header_of(path)
    length = int.from_bytes(data[:8], "little")
    change(entries)
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def write(path, form: str, tensors: dict[str, torch.Tensor], where: str = "beside") -> TensorRef:
    metadata = None
    if where == "beside":
        tensors = tensors | {"a.comfy_quant": torch.tensor(list(json.dumps({"format": form}).encode())).byte()}
    else:
        metadata = {"_quantization_metadata": json.dumps({"layers": {"a": {"format": form}}})}
    save_file(tensors, path, metadata)
    if form == "mxfp8" and where == "header":  # torch itself has this format only since 2.7
        rewrite_header(path, lambda entries: entries["a.weight_scale"].update(dtype="F8_E8M0"))
    (ref,) = open_tensors(path).groups[()].values()
    return ref


@pytest.mark.parametrize("where", ["beside", "header"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMATS)
def test_block_scaled_weights_are_what_their_specification_says(form, shape, where, tmp_path):
    tensors, wanted = FORMATS[form](matrix(shape))
    ref = write(tmp_path / "x.safetensors", form, tensors | {"a.input_scale": torch.tensor(2.0)}, where)
    assert (ref.codec, ref.shape, refusal(ref)) == (form, shape, None)
    np.testing.assert_allclose(read_float(ref).numpy(), wanted, rtol=1e-6)
    assert read_float_with_digest(ref)[1] == digest(ref)
    rows = ((20, 32), (3, 7))
    part = replace(ref, shape=(16, shape[1]), rows=rows)
    np.testing.assert_allclose(read_float(part).numpy(), wanted[[*range(20, 32), *range(3, 7)]], rtol=1e-6)
    assert read_float_with_digest(part)[1] == digest(part) != digest(ref)
    own = sum(tensor.nbytes for key, tensor in tensors.items())
    assert ref.nbytes == own


def test_scales_of_nvfp4_as_bytes(tmp_path):
    tensors, wanted = nvfp4(matrix(SHAPES[0]))
    tensors["a.weight_scale"] = tensors["a.weight_scale"].view(torch.uint8)
    np.testing.assert_allclose(read_float(write(tmp_path / "x", "nvfp4", tensors)).numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
def test_the_floor_is_what_rounding_does_to_gaussian_weights(form, tmp_path):
    weight = matrix((256, 256))
    tensors, _ = FORMATS[form](weight)
    ref = write(tmp_path / "x.safetensors", form, tensors)
    error = np.linalg.norm(read_float(ref).numpy() - weight) / np.linalg.norm(weight)
    assert rounding_floor(ref) == pytest.approx(np.sqrt(2) * error, rel=0.2)


@pytest.mark.parametrize("change", ["weight_scale", "weight_scale_2", "weight"])
@pytest.mark.parametrize("form", FORMATS)
def test_another_scale_is_another_weight(form, change, tmp_path):
    tensors, _ = FORMATS[form](matrix(SHAPES[1]))
    if f"a.{change}" not in tensors:
        return
    before = digest(write(tmp_path / "x.safetensors", form, tensors))
    changed = tensors[f"a.{change}"].clone()
    changed.reshape(-1).view(torch.uint8)[0] ^= 1
    assert digest(write(tmp_path / "y.safetensors", form, tensors | {f"a.{change}": changed})) != before


@pytest.mark.parametrize("form", FORMATS)
def test_scales_that_do_not_fit_are_named(form, tmp_path):
    tensors, _ = FORMATS[form](matrix(SHAPES[0]))
    for scale in (tensors["a.weight_scale"][:128], tensors["a.weight_scale"].float(), None):
        given = {key: tensor for key, tensor in tensors.items() if key != "a.weight_scale"}
        given |= {} if scale is None else {"a.weight_scale": scale.contiguous()}
        assert f"{form} with other scales" in refusal(write(tmp_path / "x.safetensors", form, given))


def test_an_exponent_that_is_no_number_is_named(tmp_path):
    tensors, _ = mxfp8(matrix(SHAPES[1]))
    tensors["a.weight_scale"][3, 2] = 255
    with pytest.raises(NumericalError, match=r"a\.weight_scale"):
        read_float(write(tmp_path / "x.safetensors", "mxfp8", tensors))


def test_exponents_that_are_cut_short_are_a_damaged_file(tmp_path):
    """The header cannot be held against the size of a format that torch may not have, so reading does it."""
    tensors, _ = mxfp8(matrix(SHAPES[1]))
    path = tmp_path / "x.safetensors"
    write(path, "mxfp8", tensors, "header")
    data = path.read_bytes()
    last = max(entry["data_offsets"][1] for entry in header_of(path).values() if "data_offsets" in entry)

    def shorten(entries):
        (entry,) = (entry for entry in entries.values() if entry.get("data_offsets", [0, 0])[1] == last)
        assert entry["dtype"] == "F8_E8M0"
        entry["data_offsets"][1] -= 100

    rewrite_header(path, shorten)
    path.write_bytes(path.read_bytes()[:-100])
    assert len(path.read_bytes()) < len(data)
    with pytest.raises(FileError, match="size of a tensor does not fit"):
        read_float(open_tensors(path).groups[()]["a.weight"])
