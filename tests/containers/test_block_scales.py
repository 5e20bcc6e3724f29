"""mxfp8 and nvfp4 against an encoder that is written from their specifications, number by number."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loraport.containers.references import refusal, rounding_floor
from loraport.containers.tensors import TensorRef, digest, open_tensors, read_float, read_float_with_digest
from loraport.errors import FileError, NumericalError
from storage import OTHERS, SHAPES, comfy, matrix, mxfp8, nvfp4

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
        tensors = tensors | {"a.comfy_quant": comfy(format=form)}
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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("program", OTHERS)
def test_nvfp4_of_other_programs(program, shape, tmp_path):
    tensors, wanted = OTHERS[program](matrix(shape))
    save_file(tensors | {"a.bias": torch.ones(shape[0])}, tmp_path / "x.safetensors")
    group = open_tensors(tmp_path / "x.safetensors").groups[()]
    assert set(group) == {"a.weight", "a.bias"}
    ref = group["a.weight"]
    assert (ref.codec, ref.shape, refusal(ref)) == (f"nvfp4 of {program}", shape, None)
    np.testing.assert_allclose(read_float(ref).numpy(), wanted, rtol=1e-5, atol=1e-9)
    part = replace(ref, shape=(16, shape[1]), rows=((20, 32), (3, 7)))
    np.testing.assert_allclose(read_float(part).numpy(), wanted[[*range(20, 32), *range(3, 7)]], rtol=1e-5, atol=1e-9)
    assert read_float_with_digest(part)[1] == digest(part) != digest(ref)
    error = np.linalg.norm(wanted - matrix(shape)) / np.linalg.norm(matrix(shape))
    assert rounding_floor(ref) == pytest.approx(np.sqrt(2) * error, rel=0.2)


@pytest.mark.parametrize("program", OTHERS)
def test_scales_of_other_programs_that_do_not_fit(program, tmp_path):
    tensors, _ = OTHERS[program](matrix(SHAPES[0]))
    whole = next(key for key in tensors if key.endswith(("weight_global_scale", "alpha")))
    for key, value in (
        ("a.weight_scale", tensors["a.weight_scale"][:7]),
        ("a.weight_scale", tensors["a.weight_scale"].float()),
        ("a.weight_scale", None),
        (whole, torch.ones(2)),
        (whole, torch.ones(1).bfloat16()),
    ):
        given = {name: tensor for name, tensor in tensors.items() if name != key}
        save_file(given | ({} if value is None else {key: value.contiguous()}), tmp_path / "x.safetensors")
        group = open_tensors(tmp_path / "x.safetensors").groups[()]
        assert set(group) == {"a.weight"}
        assert refusal(group["a.weight"]) == f"nvfp4 with other scales than {program}'s"


@pytest.mark.parametrize("form", ["nvfp4", *OTHERS])
@pytest.mark.parametrize("value", [0.0, -1e-3, float("nan")])
def test_a_scale_for_all_that_no_quantisation_makes(form, value, tmp_path):
    tensors, _ = nvfp4(matrix(SHAPES[1])) if form == "nvfp4" else OTHERS[form](matrix(SHAPES[1]))
    whole = next(key for key in tensors if key.endswith(("weight_global_scale", "alpha", "weight_scale_2")))
    tensors[whole] = torch.full_like(tensors[whole], value)
    if form == "nvfp4":
        ref = write(tmp_path / "x.safetensors", form, tensors)
    else:
        save_file(tensors, tmp_path / "x.safetensors")
        ref = open_tensors(tmp_path / "x.safetensors").groups[()]["a.weight"]
    with pytest.raises(NumericalError, match=whole):
        read_float(ref)


def test_a_rescaled_input_is_part_of_the_weight(tmp_path):
    """ModelOpt's AWQ, as ComfyUI runs it: W (s * x) is (W diag(s)) x."""
    tensors, wanted = nvfp4(matrix(SHAPES[0]))
    inputs = torch.linspace(0.5, 2.0, SHAPES[0][1])
    ref = write(tmp_path / "x.safetensors", "nvfp4", tensors | {"a.pre_quant_scale": inputs})
    np.testing.assert_allclose(read_float(ref).numpy(), wanted * inputs.numpy(), rtol=1e-6)
    ref = write(tmp_path / "y.safetensors", "nvfp4", tensors | {"a.pre_quant_scale": inputs[:9].clone()})
    assert "nvfp4 with other scales than ComfyUI's" in refusal(ref)


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


@pytest.mark.parametrize(
    ("form", "change"),
    [(form, part) for form in FORMATS for part in ("weight", "weight_scale")] + [("nvfp4", "weight_scale_2")],
)
def test_another_scale_is_another_weight(form, change, tmp_path):
    tensors, _ = FORMATS[form](matrix(SHAPES[1]))
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
