"""GGUF: the header against gguf's own reader, every block format against its definition, and files that lie."""

import base64
import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from loraport.containers.codecs.gguf_blocks import ERRORS
from loraport.containers.gguf import read_gguf
from loraport.containers.locate import locate
from loraport.containers.references import common_dtype, refusal, rounding_floor
from loraport.containers.tensors import digest, open_tensors, read_float, read_float_with_digest
from loraport.errors import FileError, LoraportError, NumericalError, UnsupportedError
from storage import write_gguf

FILE = json.loads((Path(__file__).parent / "gguf_blocks.json").read_text())
GOLDEN = FILE["blocks"]
SIZES = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}


def encoded(kind: str) -> np.ndarray:
    """4 rows of 512 Gaussian numbers, as ggml's own encoder stores them."""
    return np.frombuffer(base64.b64decode(GOLDEN[kind]), np.uint8).reshape(4, -1)


def gaussian() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.03, (4, 512)).astype(np.float32)


def half(data: bytes) -> float:
    return float(np.frombuffer(data, np.float16)[0])


def scale_and_minimum(packed: bytes, part: int) -> tuple[int, int]:
    """Six bits each for eight parts in twelve bytes: Q4_K and Q5_K."""
    if part < 4:
        return packed[part] & 63, packed[part + 4] & 63
    low = packed[part + 4]
    return low & 15 | packed[part - 4] >> 6 << 4, low >> 4 | packed[part] >> 6 << 4


def q4_0(b: bytes, i: int) -> float:
    return half(b[:2]) * ((b[2 + i % 16] >> 4 * (i // 16) & 15) - 8)


def q4_1(b: bytes, i: int) -> float:
    return half(b[:2]) * (b[4 + i % 16] >> 4 * (i // 16) & 15) + half(b[2:4])


def q5_0(b: bytes, i: int) -> float:
    high = int.from_bytes(b[2:6], "little") >> i & 1
    return half(b[:2]) * ((b[6 + i % 16] >> 4 * (i // 16) & 15 | high << 4) - 16)


def q5_1(b: bytes, i: int) -> float:
    high = int.from_bytes(b[4:8], "little") >> i & 1
    return half(b[:2]) * (b[8 + i % 16] >> 4 * (i // 16) & 15 | high << 4) + half(b[2:4])


def q8_0(b: bytes, i: int) -> float:
    return half(b[:2]) * struct.unpack("b", b[2 + i : 3 + i])[0]


def q2_k(b: bytes, i: int) -> float:
    scales, quants, part = b[:16], b[16:80], i // 16
    number = quants[i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32) & 3
    return half(b[80:82]) * (scales[part] & 15) * number - half(b[82:84]) * (scales[part] >> 4)


def q3_k(b: bytes, i: int) -> float:
    high, quants, scales, part = b[:32], b[32:96], b[96:108], i // 16
    number = (quants[i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32) & 3) - (0 if high[i % 32] >> i // 32 & 1 else 4)
    low = scales[part] & 15 if part < 8 else scales[part - 8] >> 4
    return half(b[108:110]) * ((low | (scales[8 + part % 4] >> 2 * (part // 4) & 3) << 4) - 32) * number


def q4_k(b: bytes, i: int) -> float:
    scale, minimum = scale_and_minimum(b[4:16], i // 32)
    number = b[16 + i // 64 * 32 + i % 32] >> 4 * (i % 64 // 32) & 15
    return half(b[:2]) * scale * number - half(b[2:4]) * minimum


def q5_k(b: bytes, i: int) -> float:
    scale, minimum = scale_and_minimum(b[4:16], i // 32)
    number = b[48 + i // 64 * 32 + i % 32] >> 4 * (i % 64 // 32) & 15 | (b[16 + i % 32] >> i // 32 & 1) << 4
    return half(b[:2]) * scale * number - half(b[2:4]) * minimum


def q6_k(b: bytes, i: int) -> float:
    part, quarter, place = i // 128, i % 128 // 32, i % 32
    low = b[part * 64 + place + 32 * (quarter % 2)] >> 4 * (quarter // 2) & 15
    high = b[128 + part * 32 + place] >> 2 * quarter & 3
    scale = struct.unpack("b", b[192 + i // 16 : 193 + i // 16])[0]
    return half(b[208:210]) * scale * ((low | high << 4) - 32)


STEPS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def iq4_nl(b: bytes, i: int) -> float:
    return half(b[:2]) * STEPS[b[2 + i % 16] >> 4 * (i // 16) & 15]


def iq4_xs(b: bytes, i: int) -> float:
    part = i // 32
    high = int.from_bytes(b[2:4], "little") >> 2 * part & 3
    scale = (b[4 + part // 2] >> 4 * (part % 2) & 15 | high << 4) - 32
    return half(b[:2]) * scale * STEPS[b[8 + part * 16 + i % 16] >> 4 * (i % 32 // 16) & 15]


DEFINITIONS = {
    "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8_0, "Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k,
    "Q5_K": q5_k, "Q6_K": q6_k, "IQ4_NL": iq4_nl, "IQ4_XS": iq4_xs,
}  # fmt: skip


def dense(kind: str, stored: np.ndarray) -> np.ndarray:
    """Number by number, from the definition of the format."""
    count, nbytes = SIZES[kind]
    blocks = [bytes(block) for block in stored.reshape(-1, nbytes)]
    return np.array([[DEFINITIONS[kind](block, i) for i in range(count)] for block in blocks]).reshape(len(stored), -1)


def test_texts_and_lists_of_any_length_are_passed_over(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    writer.add_array("tokenizer.tokens", ["a", "größe", ""])
    writer.add_array("tokenizer.scores", [1.5, 2.5, 3.5])
    writer.add_string("template", "x" * 70_000)
    writer.add_uint32("version", 3)
    writer.add_tensor("a.weight", gaussian())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    assert read_gguf(tmp_path / "x.gguf").metadata == {"general.architecture": "wan", "template": "", "version": "3"}
    assert torch.equal(read_float(open_tensors(tmp_path / "x.gguf").groups[()]["a.weight"]), torch.tensor(gaussian()))


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_blocks_are_what_their_definition_says(kind, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", {"blocks.0.ffn.0.weight": (encoded(kind), kind)})
    (ref,) = open_tensors(path).groups[()].values()
    wanted = dense(kind, encoded(kind))
    assert (ref.shape, ref.dtype, ref.stored_as, refusal(ref)) == ((4, 512), kind, f"{kind}, GGUF", None)
    assert ref.nbytes == encoded(kind).nbytes
    np.testing.assert_allclose(read_float(ref).numpy(), wanted, rtol=1e-5, atol=1e-8)
    assert read_float_with_digest(ref)[1] == digest(ref)
    part = replace(ref, shape=(3, 512), rows=((3, 4), (0, 2)))
    np.testing.assert_allclose(read_float(part).numpy(), wanted[[3, 0, 1]], rtol=1e-5, atol=1e-8)
    assert read_float_with_digest(part)[1] == digest(part) != digest(ref)


@pytest.mark.parametrize("kind", FILE["numbers"])
def test_blocks_of_tables_are_what_ggml_makes_of_them(kind, tmp_path):
    """Formats whose definition is a table of hundreds of entries: the numbers are those of ggml's own decoder."""
    (ref,) = open_tensors(write_gguf(tmp_path / "x.gguf", {"a.weight": (encoded(kind), kind)})).groups[()].values()
    assert (ref.shape, ref.stored_as, refusal(ref)) == ((4, 512), f"{kind}, GGUF", None)
    wanted = np.frombuffer(base64.b64decode(FILE["numbers"][kind]), np.float32)
    found = read_float(ref).numpy()
    np.testing.assert_array_equal(found[0, : len(wanted)], wanted)
    part = replace(ref, shape=(3, 512), rows=((3, 4), (0, 2)))
    np.testing.assert_array_equal(read_float(part).numpy(), found[[3, 0, 1]])
    assert read_float_with_digest(part)[1] == digest(part)


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_floor_is_what_rounding_does_to_gaussian_weights(kind, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", {"a.weight": (encoded(kind), kind)})
    (ref,) = open_tensors(path).groups[()].values()
    error = np.linalg.norm(read_float(ref).numpy() - gaussian()) / np.linalg.norm(gaussian())
    assert rounding_floor(ref) == pytest.approx(np.sqrt(2) * error, rel=0.2)
    assert common_dtype(ref, ref) is None


def test_every_format_that_is_read_has_a_definition_here():
    assert {*DEFINITIONS, *FILE["numbers"]} == set(ERRORS) == set(GOLDEN)


def test_plain_numbers_are_the_same_tensor_as_in_safetensors(tmp_path):
    numbers = torch.from_numpy(gaussian())
    state = {"a.weight": numbers, "a.bias": numbers[0].clone(), "b.weight": numbers.reshape(4, 16, 32).half()}
    kinds = {torch.float32: "F32", torch.float16: "F16"}
    write_gguf(tmp_path / "x.gguf", {key: (value.numpy(), kinds[value.dtype]) for key, value in state.items()})
    raw = state["a.weight"].bfloat16()
    data = raw.view(torch.uint8).numpy()
    write_gguf(tmp_path / "y.gguf", {"a.weight": (data, "BF16")})
    save_file(state, tmp_path / "x.safetensors")
    save_file({"a.weight": raw}, tmp_path / "y.safetensors")
    for name in "xy":
        other = open_tensors(tmp_path / f"{name}.safetensors").groups[()]
        for key, ref in open_tensors(tmp_path / f"{name}.gguf").groups[()].items():
            assert (ref.shape, ref.dtype) == (other[key].shape, other[key].dtype)
            assert digest(ref) == digest(other[key])
            assert torch.equal(read_float(ref), read_float(other[key]))


def test_the_header_is_what_ggufs_own_reader_finds(tmp_path):
    path = write_gguf(
        tmp_path / "x.gguf",
        {"a.weight": (encoded("Q4_K"), "Q4_K"), "b.weight": (gaussian(), "F32"), "c.bias": (gaussian()[0], "F32")},
        {"general.name": "a model", "general.license": "ü"},
    )
    found, reader = read_gguf(path), gguf.GGUFReader(path)
    assert list(found.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        mine = found.tensors[tensor.name]
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        assert (mine.span.start, mine.span.end - mine.span.start) == (tensor.data_offset, tensor.n_bytes)
        assert mine.span.dtype == tensor.tensor_type.name
    assert found.metadata["general.architecture"] == "wan"
    assert (found.metadata["general.name"], found.metadata["general.license"]) == ("a model", "ü")
    assert locate(tmp_path).metadata == locate(path).metadata == found.metadata


def test_the_shape_that_a_converter_had_to_fold(tmp_path):
    weight = gaussian().reshape(2, 16, 4, 4, 4)  # a patch embedding of five dimensions
    path = write_gguf(
        tmp_path / "x.gguf",
        {"p.weight": (gaussian(), "F32"), "q.weight": (encoded("Q8_0"), "Q8_0")},
        shapes=[("p.weight", weight.shape), ("q.weight", weight.shape)],
    )
    group = open_tensors(path).groups[()]
    np.testing.assert_array_equal(read_float(group["p.weight"]).numpy(), weight)
    wanted = dense("Q8_0", encoded("Q8_0")).reshape(weight.shape)
    np.testing.assert_allclose(read_float(group["q.weight"]).numpy(), wanted, rtol=1e-6)
    assert "another shape" in refusal(replace(group["q.weight"], shape=(1, *weight.shape[1:]), rows=((0, 1),)))


def test_formats_that_are_not_read_are_named(tmp_path):
    data = np.zeros((4, 2 * 66), np.uint8)
    path = write_gguf(tmp_path / "x.gguf", {"a.weight": (data, "TQ2_0"), "b.weight": (gaussian(), "F32")})
    unknown = path.read_bytes().replace(struct.pack("<IQ", 35, 0), struct.pack("<IQ", 99, 0))
    (tmp_path / "y.gguf").write_bytes(unknown)
    for name, word in (("x", "TQ2_0"), ("y", "format 99")):
        group = open_tensors(tmp_path / f"{name}.gguf").groups[()]
        assert group["a.weight"].shape == (4, 512)
        with pytest.raises(UnsupportedError, match=word):
            read_float(group["a.weight"])
        assert torch.equal(read_float(group["b.weight"]), torch.from_numpy(gaussian()))


def test_without_the_package_the_way_to_get_it_is_said(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "x.gguf", {"a.weight": (encoded("Q8_0"), "Q8_0"), "b.weight": (gaussian(), "F32")})
    monkeypatch.setitem(sys.modules, "gguf", None)
    group = open_tensors(path).groups[()]
    with pytest.raises(UnsupportedError, match=r"pip install 'loraport\[gguf\]'"):
        read_float(group["a.weight"])
    assert read_float(group["b.weight"]).shape == (4, 512)


def test_an_older_package_is_named(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "x.gguf", {"a.weight": (encoded("NVFP4"), "NVFP4")})
    monkeypatch.setattr("loraport.containers.codecs.gguf_blocks._known", lambda form: form != "NVFP4")
    with pytest.raises(UnsupportedError, match="needs a newer package gguf"):
        read_float(open_tensors(path).groups[()]["a.weight"])


def test_a_scale_that_is_no_number_is_named(tmp_path):
    data = encoded("Q8_0").copy()
    data[2, :2] = 0xFF
    (ref,) = open_tensors(write_gguf(tmp_path / "x.gguf", {"a.weight": (data, "Q8_0")})).groups[()].values()
    with pytest.raises(NumericalError, match="NaN"):
        read_float(ref)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def info(name: bytes = b"a", dims: tuple[int, ...] = (4, 2), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def made(pairs: bytes = b"", count: int = 0, infos: tuple[bytes, ...] = (info(),), tensors: int | None = None) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos) if tensors is None else tensors, count)
    head += pairs + b"".join(infos)
    return head + bytes(-len(head) % 32) + bytes(64)


BIG = 2**63
HOSTILE = {
    "more tensors than a model": made(tensors=BIG),
    "more tensors than there are": made(tensors=9),
    "more texts than a model": made(count=2**40),
    "a text longer than the file": made(struct.pack("<Q", BIG), 1),
    "a value longer than the file": made(text(b"k") + struct.pack("<IQ", 8, 2**40), 1),
    "a list longer than the file": made(text(b"k") + struct.pack("<IIQ", 9, 0, 2**62), 1),
    "a list of texts longer than the file": made(text(b"k") + struct.pack("<IIQ", 9, 8, 2**62), 1),
    "a list of lists": made(text(b"k") + struct.pack("<IIQ", 9, 9, 1), 1),
    "a value of no type": made(text(b"k") + struct.pack("<I", 77), 1),
    "a list of no type": made(text(b"k") + struct.pack("<IIQ", 9, 77, 1), 1),
    "a key that is no text": made(text(b"\xff\xfe") + struct.pack("<IB", 0, 1), 1),
    "an alignment of 0": made(text(b"general.alignment") + struct.pack("<II", 4, 0), 1),
    "an alignment of 33": made(text(b"general.alignment") + struct.pack("<II", 4, 33), 1),
    "an alignment that is a text": made(text(b"general.alignment") + struct.pack("<I", 8) + text(b"x" * 99), 1),
    "too many dimensions": made(infos=(info(dims=(1,) * 99),)),
    "dimensions beyond numbers": made(infos=(info(dims=(2**40, 2**40)),)),
    "a tensor beyond the end": made(infos=(info(offset=64),)),
    "an offset beyond numbers": made(infos=(info(offset=2**63 + 8),)),
    "a tensor larger than the file": made(infos=(info(dims=(4, 200)),)),
    "rows of no whole blocks": made(infos=(info(dims=(31,), kind=8),)),
    "a scalar in blocks": made(infos=(info(dims=(), kind=8),)),
    "a name twice": made(infos=(info(), info(offset=32))),
    "tensors upon each other": made(infos=(info(), info(b"b", offset=16))),
    "another size than it says": made(
        text(b"comfy.gguf.orig_shape.a") + struct.pack("<IIQ2i", 9, 5, 2, 5, 5), 1
    ),
    "a size below nothing": made(text(b"comfy.gguf.orig_shape.a") + struct.pack("<IIQ2i", 9, 5, 2, -4, -2), 1),
    "the first version": b"GGUF" + struct.pack("<III", 1, 1, 0) + bytes(64),
    "the high byte first": b"GGUF" + struct.pack(">IQQ", 3, 1, 0) + bytes(64),
    "nothing but the beginning": b"GGUF",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_lie_are_named(name, tmp_path):
    (tmp_path / "x.gguf").write_bytes(HOSTILE[name])
    with pytest.raises((FileError, UnsupportedError)) as caught:
        open_tensors(tmp_path / "x.gguf")
    assert "x.gguf" in caught.value.where


def test_the_files_above_are_wrong_in_one_thing_only(tmp_path):
    pairs = text(b"general.alignment") + struct.pack("<II", 4, 64) + text(b"comfy.gguf.orig_shape.a")
    (tmp_path / "x.gguf").write_bytes(made(pairs + struct.pack("<IIQ2i", 9, 5, 2, 4, 2), 2) + bytes(64))
    (ref,) = open_tensors(tmp_path / "x.gguf").groups[()].values()
    assert torch.equal(read_float(ref), torch.zeros(4, 2))


def test_a_file_that_ends_early_is_cut_short_wherever_it_ends(tmp_path):
    data = write_gguf(tmp_path / "x.gguf", {"a.weight": (encoded("Q4_K"), "Q4_K")}, {"k": "text"}).read_bytes()
    for end in [*range(5, 300, 7), len(data) - 1]:
        (tmp_path / "y.gguf").write_bytes(data[:end])
        with pytest.raises(FileError):
            open_tensors(tmp_path / "y.gguf")


def test_any_change_of_a_byte_is_read_or_named(tmp_path):
    data = write_gguf(tmp_path / "x.gguf", {"a.weight": (encoded("Q4_K"), "Q4_K")}, {"k": "text"}).read_bytes()
    draw = np.random.default_rng(1)
    for _ in range(300):
        changed = bytearray(data)
        changed[draw.integers(4, 400)] = draw.integers(256)
        (tmp_path / "y.gguf").write_bytes(changed)
        try:
            for ref in open_tensors(tmp_path / "y.gguf").groups[()].values():
                assert read_float(ref).shape == ref.shape
        except LoraportError:
            continue
