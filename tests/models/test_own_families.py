"""Families of the user's own: a yaml file outside the package, and every way in which it may be wrong."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.adapters.convert import convert
from loraport.errors import FileError
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families
from makers import LoraFile, forget_families

OWN = """
family: own
title: My model
spellings: [original, diffusers]
linear:
  - ["trunk.<n>.mix.qk[0]", stages.<n>.mixer.to_q, [width, width]]
  - ["trunk.<n>.mix.qk[1]", stages.<n>.mixer.to_k, [width, width]]
"""


@pytest.fixture(autouse=True)
def _fresh():
    forget_families()
    yield
    forget_families()


def _random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _named(monkeypatch, folder, text, *, file=False):
    folder.mkdir(exist_ok=True)
    (folder / "own.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("LORAPORT_FAMILIES", str(folder / "own.yaml" if file else folder))


@pytest.mark.parametrize("file", [True, False])
def test_it_is_a_family_like_the_others(file, tmp_path, monkeypatch):
    _named(monkeypatch, tmp_path / "mine", OWN, file=file)
    save_file({f"trunk.{n}.mix.qk.weight": _random(16, 8) for n in range(2)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path / "model.safetensors").architecture.title == "My model (2 blocks, width 8)"
    factors = {"lora_unet_trunk_0_mix_qk.lora_up.weight": _random(16, 2),
               "lora_unet_trunk_0_mix_qk.lora_down.weight": _random(2, 8)}  # fmt: skip
    convert(LoraFile(factors).write(tmp_path), tmp_path / "x.safetensors", to="diffusers")
    split = load_file(tmp_path / "x.safetensors")
    joined = torch.cat([split[f"transformer.stages.0.mixer.to_{x}.lora_B.weight"] for x in "qk"])
    assert torch.equal(joined, factors["lora_unet_trunk_0_mix_qk.lora_up.weight"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2", "does not describe a family"),
        ("just words", "does not describe a family"),
        ("", "does not describe a family"),
        (OWN.replace("title: My model\n", ""), "does not describe a family"),
        (OWN.replace(", [width, width]]", "]"), "does not describe a family"),
        (OWN.replace("<n>", "<z>"), "does not describe a family"),
        (OWN + "lookalikes: [{title: x, pattern: '('}]", "does not describe a family"),
        (OWN + "norm: [[[width]]]", "does not describe a family"),
        (OWN + "aliases: {a.b: trunk.<n>.mix.v}", "does not describe a family"),
        (OWN + "sizes: [{width: 8}]", "does not describe a family"),
        (OWN + "variants: [small]", "does not describe a family"),
        (OWN.replace("diffusers]", "null]"), "needs the spellings"),
        (OWN.replace("original, diffusers", "original, other"), "needs the spellings"),
        (OWN.replace("<n>", "0"), "linear layers with <n>"),
        (OWN.replace("family: own", "family: wan"), "already exists"),
    ],
)
def test_a_file_that_is_none_is_named(text, said, tmp_path, monkeypatch):
    _named(monkeypatch, tmp_path, text)
    with pytest.raises(FileError, match=said) as caught:
        families()
    assert "own.yaml" in str(caught.value.where)


def test_what_lies_beside_them_is_left_alone(tmp_path, monkeypatch):
    _named(monkeypatch, tmp_path, OWN)
    (tmp_path / "own.yaml").rename(tmp_path / "own.yml")
    (tmp_path / "README.md").write_text("About my models.", encoding="utf-8")
    (tmp_path / "old").mkdir()
    assert families()["own"].title == "My model"
    monkeypatch.setenv("LORAPORT_FAMILIES", str(tmp_path / "own.yml"))
    forget_families()
    assert families()["own"].title == "My model"


def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAPORT_FAMILIES", str(tmp_path / "nowhere"))
    with pytest.raises(FileError, match="cannot be read") as caught:
        families()
    assert "nowhere" in str(caught.value.where)


@pytest.mark.skipif(os.name == "nt", reason="Windows knows everybody's home")
def test_a_user_without_a_home_folder_has_none(monkeypatch):
    """As in a container that runs under a number that nobody gave a name."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CONFIG_HOME", "LORAPORT_FAMILIES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert "wan" in families()
