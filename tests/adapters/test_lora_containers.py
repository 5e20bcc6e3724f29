"""A LoRA is the same in any container: keys, updates, what is passed on, digests, and what is written from it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from corpus import write
from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.convert import convert
from loraport.adapters.parse import open_adapter
from loraport.containers.safetensors import read_header
from loraport.containers.tensors import digest

Tensors = dict[str, torch.Tensor]


def plain(folder: Path, tensors: Tensors) -> Path:
    torch.save(tensors, folder / "lora.pt")
    return folder / "lora.pt"


def nested(folder: Path, tensors: Tensors) -> Path:
    torch.save({"generator_lora": tensors, "step": 700, "config": {"lr": 1e-4}}, folder / "lora.ckpt")
    return folder / "lora.ckpt"


def folder_of_peft(folder: Path, tensors: Tensors) -> Path:
    torch.save(tensors, folder / "adapter_model.bin")
    return folder


def views(folder: Path, tensors: Tensors) -> Path:
    """As trainers leave them: turned around, and parts of one storage."""
    whole = torch.cat([tensor.reshape(-1).float() for tensor in tensors.values()])
    parts = whole.split([tensor.numel() for tensor in tensors.values()])
    found = {}
    for (key, tensor), part in zip(tensors.items(), parts, strict=True):
        shared = part.reshape(tensor.shape)
        found[key] = shared.T.contiguous().T if tensor.dim() == 2 and len(found) % 2 else shared
    torch.save(found, folder / "views.pt")
    return folder / "views.pt"


CONTAINERS = {"torch": plain, "nested": nested, "a folder": folder_of_peft, "views": views}
# One of each kind and of the ways to spell; a torch file has no header, so none whose header says the scale.
NAMES = ["musubi", "lokr-musubi", "loha-musubi", "lightx2v-extraction", "krea2-musubi"]
CASES = [
    *((name, container) for name in NAMES for container in ("nested", "views")),
    *(("diffsynth", container) for container in ("torch", "a folder")),
]


def contents(adapter: LoraAdapter) -> dict[str, object]:
    parts = {
        f"{name} {role}": digest(ref) for name, layer in adapter.layers.items() for role, ref in layer.parts.items()
    }
    scales = {name: (layer.kind, layer.scale, layer.rank) for name, layer in adapter.layers.items()}
    return parts | scales | {item.param: item.load().tolist() for item in adapter.passthrough}


@pytest.mark.parametrize(("name", "container"), CASES)
def test_a_lora_is_the_same_in_any_container(name, container, tmp_path):
    (tmp_path / "other").mkdir()
    first = write(name, tmp_path / "in")
    tensors = load_file(first)
    if container == "views" and any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        tensors = {key: tensor.float() for key, tensor in tensors.items()}
        first = plain(tmp_path, tensors)
    other = CONTAINERS[container](tmp_path / "other", tensors)
    one, two = open_adapter(first), open_adapter(other)
    assert sorted(one.keys) == sorted(two.keys)
    assert contents(one) == contents(two)
    written = []
    for number, path in enumerate((first, other)):
        written.append(tmp_path / f"{number}.safetensors")
        convert(path, written[-1], to="universal")
    assert set(read_header(written[0]).spans) == set(read_header(written[1]).spans)
    for key, tensor in load_file(written[0]).items():
        assert torch.equal(tensor, load_file(written[1])[key]), key
    again = tmp_path / "again.safetensors"
    convert(written[1], again, to="universal")
    assert contents(open_adapter(again)) == contents(open_adapter(written[1]))
