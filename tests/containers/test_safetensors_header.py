"""The header reader takes what the stock writer writes, and nothing that does not add up."""

import json
import struct
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from loraport.containers.dtypes import FORMATS
from loraport.containers.safetensors import read_header, write_safetensors
from loraport.containers.tensors import open_tensors, read_tensor
from loraport.errors import FileError, LoraportError

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _file(path, header, data: bytes = b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _entry(start: int, end: int, *, shape=None, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool],
)
def test_every_dtype_reads_as_it_was_written(dtype, tmp_path):
    tensors = {
        "a": torch.arange(12).reshape(3, 4).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "none": torch.zeros(0, 3),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"who": "äöü 漢字"})
    file = open_tensors(tmp_path / "x.safetensors")
    assert file.metadata == {"who": "äöü 漢字"}
    for key, tensor in tensors.items():
        found = read_tensor(file.groups[()][key])
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)


def test_names_of_fp8_dtypes(tmp_path):
    save_file({"a": torch.ones(4, 4).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    ref = open_tensors(tmp_path / "x.safetensors").groups[()]["a"]
    assert ref.dtype == "F8_E4M3"
    assert torch.equal(read_tensor(ref).float(), torch.ones(4, 4))


BAD = {
    "overlap": ({"a": _entry(0, 16), "b": _entry(8, 24)}, 24, "overlaps"),
    "the same bytes twice": ({"a": _entry(0, 16), "b": _entry(0, 16)}, 16, "overlaps"),
    "a gap": ({"a": _entry(0, 16), "b": _entry(24, 40)}, 40, "gap"),
    "cut short": ({"a": _entry(0, 16)}, 12, "cut short"),
    "something after the end": ({"a": _entry(0, 16)}, 20, "after the last tensor"),
    "size and shape": ({"a": _entry(0, 16, shape=[3])}, 16, "does not fit its shape"),
    "backwards": ({"a": _entry(16, 0, shape=[0])}, 16, "malformed"),
    "a negative size": ({"a": _entry(0, 16, shape=[-2, -2])}, 16, "malformed"),
    "a size that is true": ({"a": _entry(0, 4, shape=[True])}, 4, "malformed"),
    "a fractional offset": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4.0]}}, 4, "malformed"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, 4, "malformed"),
    "entry is a list": ({"a": [1]}, 4, "not a table"),
    "metadata is a list": ({"__metadata__": [1], "a": _entry(0, 4)}, 4, "not a table"),
    "astronomic": ({"a": _entry(0, 16, shape=[2**61, 2**61])}, 16, "does not fit its shape"),
    "a list": (b"[1]", 0, "not a table"),
    "twice": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":1}', 1, "occurs twice"),
    "not text": (b"\xff\xfe{}", 0, "not valid JSON"),
    "cut JSON": (b'{"a":', 0, "not valid JSON"),
    "deep": (b"[" * 50_000, 0, "not valid JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_headers_that_do_not_add_up(name, tmp_path):
    header, length, word = BAD[name]
    path = _file(tmp_path / "x.safetensors", header, bytes(length))
    with pytest.raises(FileError, match=word) as caught:
        read_header(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\0" * 8, b"\xff" * 64, b"<html>" * 9, struct.pack("<Q", 2**40) + b"{}"]
)
def test_no_header_at_all(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError):
        open_tensors(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><head>", "web page"),
        (b"hello there, this is text", "not a safetensors file"),
    ],
)
@pytest.mark.parametrize("name", ["x.safetensors", "x"])
def test_files_that_are_something_else_are_called_so(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=words):
        open_tensors(tmp_path / name)


def test_a_large_file_of_junk_costs_no_memory(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**31) + b"{")
        file.truncate(2**33)  # sparse: eight gigabytes of nothing
    tracemalloc.start()
    try:
        with pytest.raises(FileError):
            open_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**70)
    | st.text(max_size=5)
    | st.lists(st.integers(-2, 40), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*FORMATS, "X9"]) | JSON,
        "shape": st.lists(st.integers(0, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | JSON,
    }
)


@FUZZ
@given(header=st.dictionaries(st.text(max_size=4), ENTRIES | JSON, max_size=4), data=st.binary(max_size=48))
def test_any_header_is_read_or_refused_in_one_way(header, data, tmp_path):
    path = _file(tmp_path / "x.safetensors", header, data)
    try:
        file = open_tensors(path)
        for ref in file.groups[()].values():
            read_tensor(ref)
    except LoraportError:
        return
    # Whatever is accepted here is accepted by the stock reader with the same content.
    with safe_open(str(path), framework="pt") as stock:
        assert set(stock.keys()) == set(file.groups[()])


@FUZZ
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 10_000))
def test_a_flipped_byte_or_a_cut_never_escapes(place, byte, cut, tmp_path):
    data = bytearray(save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half()}, metadata={"k": "v"}))
    data[place % len(data)] = byte
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(data[: len(data) - cut % 40]))
    try:
        for ref in open_tensors(path).groups[()].values():
            read_tensor(ref)
    except LoraportError:
        pass


def test_the_same_content_gives_the_same_bytes(tmp_path):
    metadata = {f"key {index}": 'text with "quotes", \\ and ünïcode \n\x01' for index in range(12)}
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2, dtype=torch.bfloat16)}
    written = set()
    for attempt in range(8):
        path = tmp_path / f"{attempt}.safetensors"
        write_safetensors(path, tensors, dict(reversed(metadata.items())) if attempt % 2 else metadata)
        written.add(path.read_bytes())
    assert len(written) == 1
    with safe_open(str(path), framework="pt") as file:
        assert file.metadata() == metadata
        assert torch.equal(file.get_tensor("b"), tensors["b"])
