"""Every way of storing weights, in every container: what is read is what was stored; written again it is the same."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.containers.arrange import Put
from loraport.containers.locate import locate
from loraport.containers.rewrite import rewriting
from loraport.containers.safetensors import write_safetensors
from loraport.containers.tensors import TensorRef, digest, digest_tensor, open_tensors, read_float
from loraport.errors import FileError
from storage import WAYS, matrix, write_gguf

SHAPE = (64, 96)
SPLIT = ("a.weight", "a.weight_packed", "a.bias")  # lie in the first shard, scales and settings in the second


def one_file(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path / "x.safetensors")
    return path / "x.safetensors"


def torch_file(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    torch.save({"step": 3, "model": tensors}, path / "x.pt")
    return path / "x.pt"


def shards(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    for number in (1, 2):
        part = {key: tensor for key, tensor in tensors.items() if (key in SPLIT) == (number == 1)}
        save_file(part, path / f"x-0000{number}-of-00002.safetensors")
    return path


CONTAINERS = {"safetensors": one_file, "torch": torch_file, "shards": shards}


def again(group: dict[str, TensorRef], path: Path) -> dict[str, TensorRef]:
    """Written as plain numbers by the package, and opened."""
    write_safetensors(path, {key: read_float(ref) for key, ref in group.items()}, {})
    return open_tensors(path).groups[()]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("way", WAYS)
def test_read_write_read(way, container, tmp_path):
    tensors, wanted = WAYS[way](matrix(SHAPE))
    bias = torch.linspace(-1.0, 1.0, SHAPE[0])
    (group,) = locate(CONTAINERS[container](tmp_path, tensors | {"a.bias": bias})).groups.values()
    assert set(group) == {"a.weight", "a.bias"}
    np.testing.assert_allclose(read_float(group["a.weight"]).numpy(), wanted, rtol=2e-6, atol=1e-8)
    assert torch.equal(read_float(group["a.bias"]), bias)
    written = again(group, tmp_path / "again.safetensors")
    assert set(written) == set(group)
    for key, ref in written.items():
        assert torch.equal(read_float(ref), read_float(group[key]))
        assert torch.equal(load_file(tmp_path / "again.safetensors")[key], read_float(group[key]))
    first = (tmp_path / "again.safetensors").read_bytes()
    again(written, tmp_path / "once more.safetensors")
    assert (tmp_path / "once more.safetensors").read_bytes() == first


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_read_write_read_of_gguf(kind, tmp_path):
    weight, form = matrix(SHAPE), gguf.GGMLQuantizationType[kind]
    stored = gguf.quants.quantize(weight, form)
    write_gguf(tmp_path / "x.gguf", {"a.weight": (stored, kind)})
    (group,) = locate(tmp_path / "x.gguf").groups.values()
    assert torch.equal(read_float(group["a.weight"]), torch.from_numpy(gguf.quants.dequantize(stored, form).copy()))
    written = again(group, tmp_path / "again.safetensors")
    assert (set(written), written["a.weight"].shape) == ({"a.weight"}, SHAPE)
    assert torch.equal(read_float(written["a.weight"]), read_float(group["a.weight"]))


def test_the_digest_of_plain_numbers_is_that_of_what_was_read(tmp_path):
    tensors, _ = WAYS["fp8, rows"](matrix(SHAPE))
    group = open_tensors(one_file(tmp_path, tensors)).groups[()]
    written = again(group, tmp_path / "again.safetensors")
    assert digest(written["a.weight"]) == digest_tensor(read_float(group["a.weight"])) != digest(group["a.weight"])


def test_a_copy_that_is_not_what_was_written_is_refused(tmp_path):
    """As from a disk that fails: the header of the copy has another name."""
    path, out = one_file(tmp_path, {"a.weight": torch.ones(4), "b.weight": torch.zeros(4)}), tmp_path / "copy"
    ref = open_tensors(path).groups[()]["a.weight"]

    def copied(spoil: bytes) -> None:
        with rewriting(path, out, [Put.in_place(ref)], [], None, lambda count: None) as copy:
            copy.put(ref, torch.full((4,), 2.0))
            out.write_bytes(out.read_bytes().replace(b"b.weight", spoil))

    copied(b"b.weight")
    with pytest.raises(FileError, match="does not hold what was written"):
        copied(b"c.weight")
