"""Reading one tensor at a time: exact, checked, and in the memory of one tensor."""

import os
import pickle
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraport.containers.stored import fill
from loraport.containers.tensors import (
    digest,
    digest_tensor,
    file_identity,
    open_tensors,
    read_float,
    read_float_with_digest,
    read_tensor,
)
from loraport.errors import FileError, NumericalError, UnsupportedError


@pytest.fixture
def made(tmp_path):
    tensors = {"w": torch.arange(40.0).reshape(8, 5), "b": torch.arange(5).to(torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    return tensors, tmp_path


def _refs(path):
    return open_tensors(path).groups[()]


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
@pytest.mark.parametrize("rows", [((2, 5),), ((4, 8), (0, 4)), ((6, 7), (1, 3), (1, 2))])
@pytest.mark.parametrize("turned", [False, True])
def test_rows_of_a_fused_weight(rows, name, turned, tmp_path):
    """Part of a weight, or its rows in another order; also of a tensor that lies transposed in its file."""
    whole = torch.arange(40.0).reshape(5, 8).T if turned else torch.arange(40.0).reshape(8, 5)
    if name == "x.pt":
        torch.save({"w": whole}, tmp_path / name)
    else:
        save_file({"w": whole.contiguous()}, tmp_path / name)
    wanted = torch.cat([whole[start:end] for start, end in rows])
    part = replace(_refs(tmp_path / name)["w"], shape=tuple(wanted.shape), rows=rows)
    assert torch.equal(read_tensor(part), wanted)
    assert digest(part) == digest_tensor(wanted)
    assert read_float_with_digest(part)[1] == digest_tensor(wanted)


def test_rows_that_do_not_exist(made):
    _, folder = made
    with pytest.raises(FileError):
        read_tensor(replace(_refs(folder / "x.safetensors")["w"], shape=(3, 5), rows=((7, 10),)))


def test_digests_do_not_depend_on_the_container(made):
    tensors, folder = made
    for key, tensor in tensors.items():
        stored = {digest(_refs(folder / name)[key]) for name in ("x.safetensors", "x.pt")}
        assert stored == {digest_tensor(tensor)}
    assert digest_tensor(tensors["w"]) != digest_tensor(tensors["w"].reshape(5, 8))
    assert digest_tensor(tensors["w"]) != digest_tensor(tensors["w"].view(torch.int32))


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_one_read_gives_the_numbers_and_the_digest(name, tmp_path, monkeypatch):
    tensors = {
        "w": torch.arange(2100.0).reshape(300, 7),
        "h": torch.arange(36.0).reshape(9, 4).bfloat16(),
        "e": torch.zeros(0, 3),
        "s": torch.tensor(2.0),
    }
    if name.endswith(".pt"):
        torch.save(tensors | {"t": torch.arange(30.0).reshape(5, 6).t()}, tmp_path / name)
    else:
        save_file(tensors, tmp_path / name)
    monkeypatch.setattr("loraport.containers.stored.CHUNK_BYTES", 100)  # many parts, the last one short
    refs = _refs(tmp_path / name)
    refs["rows"] = replace(refs["w"], shape=(20, 7), rows=((100, 120),))
    for key, ref in refs.items():
        found, hashed = read_float_with_digest(ref)
        assert torch.equal(found, read_float(ref)), key
        assert hashed == digest(ref), key


def test_a_file_rewritten_in_place_with_its_old_time_is_another_file(made):
    path = made[1] / "x.safetensors"
    stat, before = path.stat(), file_identity(path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert path.stat().st_ino == stat.st_ino
    assert file_identity(path) != before


def test_references_are_cheap_to_send(made):
    ref = _refs(made[1] / "x.safetensors")["w"]
    assert pickle.loads(pickle.dumps(ref)) == ref
    assert ref.nbytes == 160


def test_a_file_that_changed_is_noticed(made):
    tensors, folder = made
    path = folder / "x.safetensors"
    ref = _refs(path)["w"]
    before = file_identity(path)
    save_file({"w": tensors["w"][:4].clone()}, path)
    assert file_identity(path) != before
    with pytest.raises(FileError, match="changed"):
        read_tensor(ref)
    path.unlink()
    with pytest.raises(FileError, match="no such file"):
        read_tensor(ref)
    with pytest.raises(FileError):
        file_identity(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite_are_refused_by_name(value, dtype, tmp_path):
    tensor = torch.ones(4, 6, dtype=dtype)
    tensor[2, 3] = value
    save_file({"blocks.0.ffn.0.weight": tensor}, tmp_path / "x.safetensors")
    with pytest.raises(NumericalError, match=r"blocks.0.ffn.0.weight(.|\n)*1 of 24 entries, the first at \[2, 3\]"):
        read_float(_refs(tmp_path / "x.safetensors")["blocks.0.ffn.0.weight"])


def test_numbers_whose_sum_overflows_are_fine(tmp_path):
    save_file({"w": torch.full((64,), 3e38)}, tmp_path / "x.safetensors")
    assert read_float(_refs(tmp_path / "x.safetensors")["w"]).shape == (64,)


def test_an_unknown_number_format_is_refused_only_when_it_is_read(tmp_path):
    header = b'{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    ref = _refs(tmp_path / "x.safetensors")["a"]
    with pytest.raises(UnsupportedError, match="F4"):
        read_tensor(ref)


@pytest.mark.parametrize("name", ["folder", "x.gguf", "missing.safetensors"])
def test_what_is_no_file_of_tensors(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises((FileError, UnsupportedError)):
        open_tensors(tmp_path / name)


def _resident() -> int:
    """Bytes of this process in memory now, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["big.safetensors", "big.pt"])
def test_a_file_read_tensor_by_tensor_stays_out_of_memory(name, tmp_path):
    one = 4 * 2**20
    tensors = {f"w{n}": torch.zeros(one, dtype=torch.uint8) for n in range(24)}
    if name.endswith(".pt"):
        torch.save(tensors, tmp_path / name)
    else:
        save_file(tensors, tmp_path / name)
    del tensors
    refs = _refs(tmp_path / name)
    before, grown = _resident(), 0
    for ref in refs.values():
        held = read_tensor(ref)
        digest(ref)
        grown = max(grown, _resident() - before)
        del held
    assert grown < 4 * one, "a file of 24 such tensors must not stay resident"


def test_what_the_system_reads_in_small_pieces_is_put_together(tmp_path):
    """As it does with more than two gigabytes."""

    class Short(FileIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:3])

    (tmp_path / "x").write_bytes(bytes(range(40)))
    target = bytearray(11)
    with Short(tmp_path / "x") as file:
        fill(file, 20, memoryview(target), "x")
        assert bytes(target) == bytes(range(20, 31))
        with pytest.raises(FileError, match="cut short"):
            fill(file, 30, memoryview(target), "x")
