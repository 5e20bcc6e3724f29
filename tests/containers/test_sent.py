"""Tensors that were sent are read in the place of their files: the same numbers and digests, without a look there."""

import pickle
from dataclasses import replace

import gguf
import pytest
import torch
from safetensors.torch import save_file

from loraport.containers.references import all_zero, read_number
from loraport.containers.sent import Sent, in_place
from loraport.containers.tensors import (
    TensorRef,
    can_stream,
    digest,
    file_identity,
    open_tensors,
    read_float,
    read_tensor,
    read_with_sums,
    stored_with_sums,
    subtract,
)
from storage import WAYS, matrix, write_gguf

ROWS = ((32, 64), (0, 32))


def _sent(*refs: TensorRef) -> Sent:
    """As it comes to another machine: through pickle."""
    stored: dict = {}
    for ref in refs:
        stored |= {place: part.numpy() for place, part in stored_with_sums(ref)[0].items()}
    return pickle.loads(pickle.dumps(Sent({refs[0].file: file_identity(refs[0].file)}, stored)))


def _all_of(ref: TensorRef) -> list:
    read, sums = read_with_sums(ref)
    return [read_tensor(ref), read_float(ref), read.stored, sums, digest(ref), file_identity(ref.file)]


def _same_without_its_file(ref: TensorRef) -> None:
    here = _all_of(ref)
    assert stored_with_sums(ref)[1] == here[3]
    assert here[3].digest == here[4]
    sent = _sent(ref)
    ref.file.write_bytes(b"another file under the same name")
    with in_place(sent):
        there = _all_of(ref)
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("rows", [None, ROWS])
def test_however_it_is_stored(name, rows, tmp_path):
    stored, _ = WAYS[name](matrix((96, 64)))
    save_file(stored, tmp_path / "x.safetensors")
    whole = open_tensors(tmp_path / "x.safetensors").groups[()]["a.weight"]
    part = whole if rows is None else replace(whole, shape=(64, 64), rows=rows)
    _same_without_its_file(part)


@pytest.mark.parametrize("turned", [False, True])
def test_a_torch_file(turned, tmp_path):
    whole = torch.arange(40.0).reshape(5, 8).T if turned else torch.arange(40.0).reshape(8, 5)
    torch.save({"generator": {"w": whole}}, tmp_path / "x.pt")
    ref = open_tensors(tmp_path / "x.pt").groups["generator",]["w"]
    _same_without_its_file(replace(ref, shape=(4, 5), rows=((6, 8), (1, 3))))


def test_a_gguf_file(tmp_path):
    weight = matrix((64, 64))
    stored = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
    write_gguf(tmp_path / "x.gguf", {"w": (stored, "Q8_0")})
    ref = open_tensors(tmp_path / "x.gguf").groups[()]["w"]
    _same_without_its_file(replace(ref, shape=(32, 64), rows=((16, 48),)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_difference_is_formed_while_it_is_taken_out_of_what_was_sent(dtype, tmp_path):
    state = {name: torch.from_numpy(matrix((320, 288))).to(dtype).roll(at) for at, name in enumerate("ab")}
    save_file(state, tmp_path / "x.safetensors")
    refs = open_tensors(tmp_path / "x.safetensors").groups[()]
    sent = _sent(*refs.values())
    here, there = torch.empty(320, 288), torch.empty(320, 288)
    said = subtract(refs["a"], refs["b"], here)
    refs["a"].file.unlink()
    with in_place(sent):
        assert can_stream(refs["a"])
        assert subtract(refs["a"], refs["b"], there) == said
    assert torch.equal(here, there)


def test_what_was_not_sent_is_not_read_from_a_file_of_that_name(tmp_path):
    save_file({"a": torch.zeros(2, 2), "b": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    refs = open_tensors(tmp_path / "x.safetensors").groups[()]
    with in_place(_sent(refs["a"])):
        assert torch.equal(read_float(refs["a"]), torch.zeros(2, 2))
        for read in (read_float, digest):
            with pytest.raises(LookupError, match=r"b in .* was not sent"):
                read(refs["b"])
        with pytest.raises(AssertionError):
            open_tensors(refs["a"].file)
    assert torch.equal(read_float(refs["b"]), torch.ones(2, 2))


def test_small_numbers_and_zeros_are_taken_of_what_was_sent(tmp_path):
    save_file({"bound": torch.tensor(0.5), "w": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    refs = open_tensors(tmp_path / "x.safetensors").groups[()]
    sent = _sent(*refs.values())
    refs["w"].file.unlink()
    with in_place(sent):
        assert read_number(refs["bound"]) == 0.5
        assert all_zero(refs["w"])


def test_what_was_sent_is_not_written_to(tmp_path):
    save_file({"a": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    ref = open_tensors(tmp_path / "x.safetensors").groups[()]["a"]
    sent = _sent(ref)
    for part in sent.stored.values():
        part.flags.writeable = False  # as in an object store
    with in_place(sent):
        read_tensor(ref).add_(1.0)
        assert torch.equal(read_tensor(ref), torch.zeros(2, 2))
