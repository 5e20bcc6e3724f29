"""Paths and files that are not what they should be: one sentence each, at once, and never another exception."""

import contextlib
import json
import os
import socket
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import makers
from loraport.adapters.describe import describe
from loraport.adapters.parse import open_adapter
from loraport.containers.locate import locate
from loraport.containers.tensors import file_identity, open_tensors, read_float
from loraport.errors import FileError, LoraportError, NumericalError
from loraport.models.checkpoint import open_checkpoint
from privileges import unprivileged

OPENERS = [open_tensors, locate, open_checkpoint, open_adapter, describe]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="paths of Unix")


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "x.safetensors")
    return folder / "x.safetensors"


def listening(folder: Path) -> Path:
    here = os.getcwd()
    os.chdir(folder)  # the names of sockets are short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind("x.safetensors")
    os.chdir(here)
    return folder / "x.safetensors"


def link_loop(folder: Path) -> Path:
    (folder / "a.safetensors").symlink_to(folder / "b.safetensors")
    (folder / "b.safetensors").symlink_to(folder / "a.safetensors")
    return folder / "a.safetensors"


def link_to(target: str):
    def make(folder: Path) -> Path:
        (folder / "x.safetensors").symlink_to(target)
        return folder / "x.safetensors"

    return make


STRANGE = {
    "a pipe": (fifo, "a pipe"),
    "a link to a pipe's kin": (link_to("/dev/zero"), "a device"),
    "endless zeros": (lambda _: Path("/dev/zero"), "a device"),
    "a terminal": (lambda _: Path("/dev/tty"), r"a device|cannot be read"),
    "nothing": (lambda _: Path("/dev/null"), "a device"),
    "a socket": (listening, "a socket"),
    "memory": (lambda _: Path("/proc/self/mem"), "empty|cannot be read"),
    "made up as it is read": (lambda _: Path("/proc/self/maps"), "empty"),
    "a loop": (link_loop, "loop of symbolic links"),
    "a link into the loop": (lambda folder: link_loop(folder) / "x", "loop of symbolic links"),
    "a dangling link": (link_to("nowhere"), "no such file"),
    "three hundred letters": (lambda folder: folder / ("x" * 300 + ".safetensors"), "longer than the system allows"),
    "a long way": (lambda folder: folder / "/".join(["deep"] * 2000), "longer than the system allows"),
    "a NUL": (lambda folder: folder / "a\0b.safetensors", "no file can have this name"),
    "half a character": (lambda folder: folder / "a\udfffb.safetensors", "no such file|no file can have this name"),
    "a file for a folder": (lambda folder: makers_file(folder) / "x.safetensors", "no such file"),
    "an empty file": (lambda folder: touched(folder), "empty"),
}


def makers_file(folder: Path) -> Path:
    save_file(makers.universal(), folder / "lora.safetensors")
    return folder / "lora.safetensors"


def touched(folder: Path) -> Path:
    (folder / "x.safetensors").touch()
    return folder / "x.safetensors"


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("name", STRANGE)
def test_what_is_no_file_is_refused_at_once(name, opener, tmp_path):
    make, words = STRANGE[name]
    with pytest.raises(FileError, match=words) as caught:
        opener(make(tmp_path))
    assert caught.value.fix is not None


@pytest.mark.parametrize("name", ["a pipe", "a loop", "three hundred letters", "a NUL", "memory"])
def test_neither_have_they_an_identity(name, tmp_path):
    with pytest.raises(FileError):
        file_identity(STRANGE[name][0](tmp_path))


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("what", ["the file", "its folder", "the folder itself"])
def test_what_may_not_be_read(what, opener, tmp_path):
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents[:3]:  # pytest keeps them to itself
        os.chmod(parent, 0o755)
    folder = tmp_path / "folder"
    folder.mkdir()
    path = makers_file(folder)
    closed = {"the file": path, "its folder": folder, "the folder itself": folder}[what]
    os.chmod(closed, 0)
    given = folder if what == "the folder itself" else path
    try:
        with (
            unprivileged(),
            pytest.raises(FileError, match=r"may not be read|a folder was given|cannot tell") as caught,
        ):
            opener(given)
        assert opener is open_tensors or "chmod" in caught.value.fix
    finally:
        os.chmod(closed, 0o755)


@pytest.mark.parametrize("trouble", ["closed", "a pipe", "a loop", "no text"])
def test_a_configuration_beside_the_lora_that_cannot_be_read(trouble, tmp_path):
    path, config = makers_file(tmp_path), tmp_path / "adapter_config.json"
    if trouble == "a pipe":
        os.mkfifo(config)
    elif trouble == "a loop":
        config.symlink_to(config)
    else:
        config.write_bytes(b"{" if trouble == "closed" else b"\xff\xfe{")
    for parent in tmp_path.parents[:3]:
        os.chmod(parent, 0o755)
    os.chmod(tmp_path, 0o755)
    os.chmod(path, 0o644)
    if trouble == "closed":
        os.chmod(config, 0)
    with unprivileged(), pytest.raises(FileError, match=r"adapter_config\.json"):
        open_adapter(path)


def index_of(names: object, folder: Path) -> Path:
    path = folder / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": names}))
    return path


def test_an_index_that_points_at_strange_things(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    names = [
        "pipe", "folder", "page.safetensors", "loop", "device", "x" * 300, "a\0b", "", ".", "none.safetensors", 3, None,
        ["a"], {"a": 1}, "diffusion_pytorch_model.safetensors.index.json", "\ud800", "..\\x", "/dev/zero", "~",
    ]  # fmt: skip
    for name in names:
        with pytest.raises(FileError):
            locate(index_of({"blocks.0.ffn.0.weight": name}, tmp_path))
    for weight_map in ([], {}, 3, "x", None):
        with pytest.raises(FileError, match="weight_map"):
            locate(index_of(weight_map, tmp_path))


@pytest.mark.parametrize("text", ['{"error":"Invalid credentials"}', ' \n{"detail": "Not found"}', '["no"]', "[" * 300])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x"])
def test_the_error_of_a_server_is_called_so(text, name, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(FileError, match="JSON, such as a server sends"):
        open_tensors(tmp_path / name)


@pytest.mark.parametrize("length", [ord("<"), ord("{"), ord("["), ord(" ")])
def test_a_header_whose_length_looks_like_text_is_read(length, tmp_path):
    """The first byte is the length of the header; other writers than the stock one do not round it."""
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    pad = length - len(header)
    if pad < 0:
        header, data = b'{"__metadata__":{}}'.ljust(length), b""
    else:
        header, data = header.ljust(length), b"\1"
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + header + data)
    assert len(open_tensors(tmp_path / "x.safetensors").groups[()]) == (1 if data else 0)


def test_half_characters_in_a_header(tmp_path):
    for header in (
        b'{"__metadata__":{"ss_tag":"\\ud800"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"__metadata__":{"\\uDFFF":"x"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a\\udfff":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    ):
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
        with pytest.raises(FileError, match="not valid JSON"):
            open_tensors(tmp_path / "x.safetensors")
    whole = b'{"__metadata__":{"ss_tag":"\\ud83d\\ude00"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(whole)) + whole + b"\0")
    assert open_tensors(tmp_path / "x.safetensors").metadata == {"ss_tag": "\N{GRINNING FACE}"}


def test_the_largest_header_that_the_format_allows(tmp_path):
    tags = "a tag of a large data set, " * 750_000  # 20 MB
    save_file(makers.universal(), tmp_path / "x.safetensors", {"ss_tag_frequency": tags})
    assert open_tensors(tmp_path / "x.safetensors").metadata["ss_tag_frequency"] == tags


class TestTorchFiles:
    @pytest.mark.parametrize("layers", [4, 30])
    def test_mappings_that_share_one_another(self, layers, tmp_path):
        shared = {"w": torch.ones(2)}
        for _ in range(layers):
            shared = {f"n{n}": shared for n in range(30)}
        torch.save(shared, tmp_path / "x.pt")
        with contextlib.suppress(LoraportError):
            assert sum(map(len, open_tensors(tmp_path / "x.pt").groups.values())) < 300_000

    def test_a_mapping_that_holds_itself(self, tmp_path):
        content = {"w": torch.ones(2)}
        content["self"] = content
        torch.save(content, tmp_path / "x.pt")
        assert () in open_tensors(tmp_path / "x.pt").groups

    def test_the_same_weights_under_two_names_are_both_there(self, tmp_path):
        state = {"w": torch.ones(2)}
        torch.save({"generator": state, "generator_ema": state}, tmp_path / "x.pt")
        assert set(open_tensors(tmp_path / "x.pt").groups) == {("generator",), ("generator_ema",)}

    def test_a_million_keys(self, tmp_path):
        torch.save(dict.fromkeys(range(2_000_000)), tmp_path / "x.pt")
        with pytest.raises(FileError, match="more than any model has"):
            open_tensors(tmp_path / "x.pt")

    def test_half_a_character_in_a_key(self, tmp_path):
        torch.save({"a\ud800": torch.ones(2)}, tmp_path / "x.pt")
        (key,) = open_tensors(tmp_path / "x.pt").groups[()]
        key.encode()


class TestNumbers:
    def read(self, tensor: torch.Tensor, tmp_path: Path) -> torch.Tensor:
        save_file({"w": tensor}, tmp_path / "x.safetensors")
        return read_float(open_tensors(tmp_path / "x.safetensors").groups[()]["w"])

    @pytest.mark.parametrize("value", [1e39, -1e300])
    def test_beyond_float32(self, value, tmp_path):
        tensor = torch.ones(3, 4, dtype=torch.float64)
        tensor[1, 2] = value
        with pytest.raises(NumericalError, match=r"beyond the range of float32(.|\n)*1 of 12 entries(.|\n)*\[1, 2\]"):
            self.read(tensor, tmp_path)

    @pytest.mark.parametrize("value", [3.4e38, -3.4e38, 1e-45, 1e-300])
    def test_at_the_end_of_float32(self, value, tmp_path):
        tensor = torch.full((3, 4), value, dtype=torch.float64)
        assert torch.equal(self.read(tensor, tmp_path), tensor.float())

    def test_infinity_in_float64_is_infinity(self, tmp_path):
        with pytest.raises(NumericalError, match="NaN or infinity"):
            self.read(torch.full((2, 2), float("inf"), dtype=torch.float64), tmp_path)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.uint16])
    def test_integers_are_no_weights(self, dtype, tmp_path):
        with pytest.raises(LoraportError, match="w cannot be read as a weight: integers"):
            self.read(torch.ones(3, 4).to(dtype), tmp_path)
