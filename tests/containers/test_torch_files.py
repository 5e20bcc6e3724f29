"""Torch files: nothing is executed, and every tensor is found where it lies."""

import os
import pickle
import zipfile
from argparse import Namespace
from collections import OrderedDict

import pytest
import torch

import makers
from loraport.adapters.parse import open_adapter
from loraport.containers.tensors import open_tensors, read_tensor
from loraport.errors import FileError, UnsupportedError, UsageError
from loraport.models.checkpoint import open_checkpoint


class Trap:
    """Unpickling it without restriction runs a command."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.system, (f"touch {self.mark}",))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.bin", "x"])
@pytest.mark.parametrize("how", ["inside a torch file", "a bare pickle"])
def test_a_malicious_pickle_is_refused_and_does_not_run(how, name, tmp_path):
    mark, path = tmp_path / "ran", tmp_path / name
    content = {"generator": makers.model(), "trap": Trap(mark)}
    if how == "a bare pickle":
        path.write_bytes(pickle.dumps(content["trap"]))
    else:
        torch.save(content, path)
    for opener in (open_tensors, open_checkpoint):
        with pytest.raises(FileError):
            opener(path)
    assert not mark.exists()


def test_other_objects_are_refused_with_a_way_out(tmp_path):
    torch.save({"args": Namespace(a=1), "model": makers.model()}, tmp_path / "x.pt")
    with pytest.raises(FileError, match=r"nothing in it was executed(.|\n)*Namespace(.|\n)*safetensors"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [True, False])
def test_damaged_or_old_files(legacy, tmp_path):
    path = tmp_path / "x.pt"
    if legacy:
        torch.save(makers.model(), path, _use_new_zipfile_serialization=False)
    else:
        torch.save(makers.model(), path)
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FileError):
        open_checkpoint(path)


def test_a_compressed_archive(tmp_path):
    torch.save({"w": torch.zeros(64)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(FileError):
        open_tensors(tmp_path / "y.pt")


def test_an_archive_of_something_else(tmp_path):
    """A download that was never unpacked, whatever it is called."""
    with zipfile.ZipFile(tmp_path / "x.safetensors", "w") as archive:
        archive.writestr("style.safetensors", b"numbers")
    with pytest.raises(FileError, match=r"zip archive that torch did not write[\s\S]*it holds style\.safetensors"):
        open_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("order", [b"little", b"big", b"middle", b""])
def test_numbers_with_the_high_byte_first(order, tmp_path):
    """Saved on such a machine: torch turns the bytes when it loads, and nobody does when they are read by place."""
    torch.save({"w": torch.arange(4.0)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, order if name.endswith("byteorder") else old.read(name))
    if order == b"little":
        assert torch.equal(read_tensor(open_tensors(tmp_path / "y.pt").groups[()]["w"]), torch.arange(4.0))
    else:
        with pytest.raises(UnsupportedError, match="high byte first"):
            open_tensors(tmp_path / "y.pt")


def test_views_shared_storages_and_odd_tensors(tmp_path):
    whole = torch.arange(60.0).reshape(6, 10)
    content = {
        "whole": whole,
        "row": whole[2],
        "rows": whole[1:4],
        "columns": whole[:, 3:5],
        "turned": whole.T,
        "scalar": torch.tensor(7.0, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "same size a": torch.full((60,), 1.0),
        "same size b": torch.full((60,), 2.0),
        "integers": torch.arange(5),
    }
    torch.save(content, tmp_path / "x.pt")
    refs = open_tensors(tmp_path / "x.pt").groups[()]
    for key, tensor in content.items():
        assert torch.equal(read_tensor(refs[key]), tensor.detach()), key


def test_sparse_tensors_are_refused(tmp_path):
    torch.save({"w": torch.eye(4).to_sparse()}, tmp_path / "x.pt")
    with pytest.raises((UnsupportedError, FileError)):
        open_tensors(tmp_path / "x.pt")


class TestNesting:
    @pytest.fixture
    def path(self, tmp_path):
        self.plain, self.average = makers.model(1), makers.model(2)
        wrapped = {
            f"model._fsdp_wrapped_module.{k.replace('.self_attn', '._fsdp_wrapped_module.self_attn')}": t
            for k, t in self.average.items()
        }
        content = {
            "generator": OrderedDict((f"model.{k}", t) for k, t in self.plain.items()),
            "generator_ema": wrapped,
            "critic": {f"model._orig_mod.{k}": t for k, t in makers.model(3).items()},
            "step": 1000,
        }
        torch.save(content, tmp_path / "x.pt")
        return tmp_path / "x.pt"

    def test_the_moving_average_is_taken_and_said_so(self, path):
        found = open_checkpoint(path)
        assert found.nested == "generator_ema"
        assert found.prefix == "model."
        assert found.unknown == ()
        assert "generator" in found.notes[0]
        weight = read_tensor(found.tensors["blocks.0.self_attn.q.weight"])
        assert torch.equal(weight, self.average["blocks.0.self_attn.q.weight"])

    def test_a_choice(self, path):
        found = open_checkpoint(path, nested="generator")
        assert found.notes == ()
        weight = read_tensor(found.tensors["blocks.1.ffn.2.weight"])
        assert torch.equal(weight, self.plain["blocks.1.ffn.2.weight"])
        assert open_checkpoint(path, nested="critic").nested == "critic"

    def test_a_choice_that_is_not_there(self, path):
        with pytest.raises(UsageError, match=r"'teacher'(.|\n)*generator, generator_ema, critic"):
            open_checkpoint(path, nested="teacher")

    def test_no_way_to_tell(self, tmp_path):
        torch.save({"left": makers.model(1), "right": makers.model(2)}, tmp_path / "x.pt")
        with pytest.raises(UsageError, match="left, right"):
            open_checkpoint(tmp_path / "x.pt")
        assert open_checkpoint(tmp_path / "x.pt", nested="right").nested == "right"

    @pytest.mark.parametrize("first", ["ema", "model_ema", "ema_model", "params_ema", "student", "generator"])
    @pytest.mark.parametrize("second", ["model", "module", "state_dict", "model_state_dict", "params"])
    def test_the_average_before_the_rest(self, first, second, tmp_path):
        torch.save({second: makers.model(1), first: makers.model(2), "optimizer": {"step": 3}}, tmp_path / "x.pt")
        assert open_checkpoint(tmp_path / "x.pt").nested == first
        assert open_checkpoint(tmp_path / "x.pt", nested=second).nested == second

    @pytest.mark.parametrize(
        "nest", [["model"], ["state_dict"], ["model_state_dict"], ["module"], ["params"], ["model", "generator"], []]
    )
    def test_deeper_and_flatter(self, nest, tmp_path):
        content = makers.model()
        for name in reversed(nest):
            content = {name: content, "epoch": 3}
        torch.save(content, tmp_path / "x.pt")
        found = open_checkpoint(tmp_path / "x.pt")
        assert found.nested == ".".join(nest)
        assert found.notes == ()
        assert len(found.tensors) == len(makers.model())

    @pytest.mark.parametrize("opened", [open_checkpoint, open_adapter])
    def test_how_deep_is_looked_is_said(self, opened, tmp_path):
        content = makers.model() if opened is open_checkpoint else makers.universal()
        for deep, name in enumerate("edcba"):
            torch.save(content, tmp_path / f"{deep}.pt")
            content = {name: content, "epoch": 3}
        torch.save(content, tmp_path / "5.pt")
        assert opened(tmp_path / "4.pt")
        with pytest.raises(UnsupportedError, match="within 4 names") as caught:
            opened(tmp_path / "5.pt")
        assert "a/b/c/d/e" in caught.value.message
