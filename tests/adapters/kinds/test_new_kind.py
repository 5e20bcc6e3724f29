"""The kind of docs/adding-an-adapter-kind.md, run as it stands there."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import makers
from formats_page import PAGES, rows
from loraport.adapters.convert import convert
from loraport.adapters.grammar import _split, any_refused, grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import OnSource
from loraport.adapters.loading import change, load
from loraport.adapters.parse import open_adapter
from loraport.errors import UnmatchedKeysError
from makers import LoraFile

PAGE = Path(__file__).parents[3] / "docs" / "adding-an-adapter-kind.md"


@pytest.fixture
def documented(monkeypatch):
    before = dict(KINDS)
    files = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for room, code in zip(("kinds", "loading"), files, strict=True):
        file = ModuleType(f"loraport.adapters.{room}.outer")
        monkeypatch.setitem(sys.modules, file.__name__, file)
        exec(compile(code, PAGE.name, "exec"), vars(file))
    for cached in (grammar, any_refused, _split):
        cached.cache_clear()
    yield
    KINDS.clear()
    KINDS.update(before)
    for cached in (grammar, any_refused, _split):
        cached.cache_clear()


@pytest.mark.usefixtures("documented")
def test_its_own_files_are_enough(tmp_path, pico):
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(48, generator=generator), torch.randn(24, generator=generator)
    stem = "diffusion_model.blocks.0.ffn.0"
    mine = {f"{stem}.outer_u": u, f"{stem}.outer_v": v, f"{stem}.alpha": torch.tensor(0.5)}
    tensors = {key: tensor for key, tensor in makers.universal().items() if not key.startswith(stem)} | mine
    path = LoraFile(tensors).write(tmp_path)
    layer = open_adapter(path, pico).layers["blocks.0.ffn.0"]
    assert (layer.kind, layer.rank, layer.scale) == ("outer", 1, 0.5)
    torch.testing.assert_close(layer.load().dense(), 0.5 * torch.outer(u, v))
    convert(path, tmp_path / "out.safetensors")
    found = open_adapter(tmp_path / "out.safetensors", pico).layers["blocks.0.ffn.0"]
    torch.testing.assert_close(found.load().dense(), 0.5 * torch.outer(u, v))
    del tensors[f"{stem}.outer_v"]
    with pytest.raises(UnmatchedKeysError, match=f"its other half {stem}.outer_v is missing"):
        open_adapter(LoraFile(tensors).write(tmp_path), pico)


def test_every_kind_says_what_it_must():
    for name, kind in KINDS.items():
        of = change if isinstance(kind, OnSource) else load
        assert of.dispatch(type(kind)) is not of.dispatch(object), name
        assert kind.name == name
        assert kind.title
        assert kind.essential
        assert set(kind.linear) <= set(kind.essential)
        assert set(kind.endings) <= {*kind.essential, *kind.optional, *kind.shared}


def test_the_pages_name_every_kind_and_every_refusal():
    told = {cells[0]: cells for cells in rows("kind | keys, after the layer")}
    assert set(told) == {kind.title for kind in KINDS.values()}
    for kind in KINDS.values():
        _, keys, _, of_source, *_ = told[kind.title]
        assert of_source == ("yes" if isinstance(kind, OnSource) else "no")
        for part, texts in kind.endings.items():
            plain = min(texts, key=len).lstrip(".")
            numbered = re.search(r"\.[1-9]\d*", plain)  # the first of a row of numbers stands for all
            assert numbered or plain in keys or plain[:-2] in keys, (kind.title, part)
    refused = PAGES["formats"].split("## Refused\n")[1]
    for name, _ in grammar().refused:
        assert name in refused
