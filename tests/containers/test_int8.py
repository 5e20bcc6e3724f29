"""Weights of 8-bit integers, in their own basis and in a rotated one, against the formula written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loraport.containers.codecs.int8 import GROUPS
from loraport.containers.decoding.int8 import rotation
from loraport.containers.references import identity, refusal, rounding_floor
from loraport.containers.tensors import TensorRef, digest, open_tensors, read_float, read_float_with_digest
from storage import comfy, convrot_of_4_bits

ROWS, COLUMNS = 12, 64


def matrix(rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.03, (rows, columns))


def turned(weight: np.ndarray, size: int) -> np.ndarray:
    """Each group of inputs times the matrix of signs, whose sign is the product over digits in base 4, from ConvRot:
    minus where the digits of row and column add up to 3."""
    digits = round(np.log(size) / np.log(4))
    sign = np.ones((size, size))
    for i in range(size):
        for j in range(size):
            for place in range(digits):
                if (i // 4**place) % 4 + (j // 4**place) % 4 == 3:
                    sign[i, j] *= -1
    groups = weight.reshape(len(weight), -1, size)
    return np.einsum("rgj,ij->rgi", groups, sign / np.sqrt(size)).reshape(weight.shape)


def rounded(weight: np.ndarray, by: str) -> tuple[np.ndarray, np.ndarray]:
    most = np.abs(weight).max(1, keepdims=True) if by == "row" else np.abs(weight).max()
    scale = np.asarray(most / 127, dtype=np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def write(path, stored: np.ndarray, scale: np.ndarray, settings: dict | None) -> TensorRef:
    tensors = {"a.weight": torch.from_numpy(stored), "a.weight_scale": torch.from_numpy(scale)}
    if settings is not None:
        tensors["a.comfy_quant"] = comfy(**settings)
    save_file(tensors, path)
    (ref,) = open_tensors(path).groups[()].values()
    return ref


@pytest.mark.parametrize(
    "settings",
    [
        None,
        {"format": "int8_tensorwise"},
        {"format": "int8_tensorwise", "params": {}},
        {"convrot": False, "per_row": True},  # ComfyUI-INT8-Fast, before formats had names
    ],
)
@pytest.mark.parametrize("by", ["tensor", "row"])
def test_int8_is_integer_times_scale(by, settings, tmp_path):
    """Whatever the settings say; how numbers share scales is in test_scales.py."""
    stored, scale = rounded(matrix(), by)
    ref = write(tmp_path / "x.safetensors", stored, scale, settings)
    assert (ref.codec, ref.shape, refusal(ref)) == ("int8", (ROWS, COLUMNS), None)
    np.testing.assert_allclose(read_float(ref).numpy(), stored.astype(float) * scale, rtol=1e-6)


@pytest.mark.parametrize("size", [4, 16, 64])
@pytest.mark.parametrize("place", ["beside", "in params", "no format"])
def test_a_rotated_weight_is_turned_back(size, place, tmp_path):
    weight = matrix()
    stored, scale = rounded(turned(weight, size), "row")
    details = {"convrot": True, "convrot_groupsize": size}
    settings = {
        "beside": {"format": "int8_tensorwise"} | details,
        "in params": {"format": "int8_tensorwise", "params": details},
        "no format": details | {"per_row": True},
    }[place]
    ref = write(tmp_path / "x.safetensors", stored, scale, settings)
    assert refusal(ref) is None
    wanted = turned(stored.astype(float) * scale, size)  # the matrix is its own inverse
    np.testing.assert_allclose(read_float(ref).numpy(), wanted, atol=1e-7)
    assert np.linalg.norm(read_float(ref).numpy() - weight) < 0.01 * np.linalg.norm(weight)
    part = replace(ref, shape=(3, COLUMNS), rows=((7, 10),))
    np.testing.assert_allclose(read_float(part).numpy(), wanted[7:10], atol=1e-7)


def test_the_size_of_the_groups_is_part_of_what_the_weight_is(tmp_path):
    stored, scale = rounded(matrix(), "row")
    settings = [None, *({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": n} for n in (4, 16))]
    refs = [write(tmp_path / f"{n}.safetensors", stored, scale, given) for n, given in enumerate(settings)]
    assert len({digest(ref) for ref in refs}) == 3
    assert len({identity(ref)[1] for ref in refs}) == 3


def test_groups_of_256_where_the_settings_do_not_say(tmp_path):
    weight = matrix(4, 512)
    stored, scale = rounded(turned(weight, 256), "row")
    ref = write(tmp_path / "x.safetensors", stored, scale, {"format": "int8_tensorwise", "convrot": True})
    assert np.linalg.norm(read_float(ref).numpy() - weight) < 0.01 * np.linalg.norm(weight)


@pytest.mark.parametrize("size", GROUPS)
def test_rotations_are_symmetric_and_orthogonal(size):
    matrix = rotation(size)
    assert torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, torch.eye(size))


@pytest.mark.parametrize("by", ["row", "tensor"])
@pytest.mark.parametrize("convrot", [False, True])
def test_the_floor_is_what_rounding_does_to_gaussian_weights(by, convrot, tmp_path):
    weight = matrix(400, 1024)
    stored, scale = rounded(turned(weight, 64) if convrot else weight, by)
    settings = {"format": "int8_tensorwise", "convrot": convrot, "convrot_groupsize": 64}
    ref = write(tmp_path / "x.safetensors", stored, scale, settings)
    error = np.linalg.norm(read_float(ref).numpy() - weight) / np.linalg.norm(weight)
    assert rounding_floor(ref) == pytest.approx(np.sqrt(2) * error, rel=0.2)  # of two weights, each with its error


def test_4_bits_in_a_rotated_basis(tmp_path):
    weight = matrix(64, 1024)
    tensors, wanted = convrot_of_4_bits(weight)
    save_file(tensors, tmp_path / "x.safetensors")
    ref = open_tensors(tmp_path / "x.safetensors").groups[()]["a.weight"]
    assert (ref.codec, ref.shape, ref.nbytes) == ("int4 convrot 16", (64, 1024), 64 * 512 + 64 * 4)
    part = replace(ref, shape=(7, 1024), rows=((60, 64), (1, 4)))
    np.testing.assert_allclose(read_float(part).numpy(), wanted[[60, 61, 62, 63, 1, 2, 3]], atol=1e-7)
    assert read_float_with_digest(part)[1] == digest(part) != digest(ref)
    error = np.linalg.norm(read_float(ref).numpy() - weight) / np.linalg.norm(weight)
    assert rounding_floor(ref) == pytest.approx(np.sqrt(2) * error, rel=0.2)
    for scale, word in ((torch.ones(16, 64), "int4 with scales"), (torch.ones(64, 2), "groups of 16")):
        save_file(tensors | {"a.weight_scale": scale}, tmp_path / "y.safetensors")
        assert word in refusal(open_tensors(tmp_path / "y.safetensors").groups[()]["a.weight"])
