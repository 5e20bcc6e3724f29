"""Key sets as trainers write them: each parses, goes round in its own dialect, and is written in every other."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpus import CORPUS, write
from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.convert import convert
from loraport.adapters.describe import describe
from loraport.adapters.parse import open_adapter
from loraport.containers.safetensors import read_header
from loraport.containers.tensors import open_tensors, read_tensor
from loraport.errors import LoraportError

GOOD = [name for name, entry in CORPUS.items() if "error" not in entry["expect"] and "needs_source" not in entry]
PROFILES = ["universal", "diffusers", "kohya", "original", "same-as-input"]
# Everything is tried with every key set; the fast suite opens each and writes the profile that most people load, and
# does the rest with one key set of each sort.
OFTEN = [p if p == "universal" else pytest.param(p, marks=pytest.mark.slow) for p in PROFILES]
SORTS = (
    *("ai-toolkit-wan22", "diffusers", "dora", "fastvideo", "hunyuan-video-musubi", "hybrid", "lightx2v-extraction"),
    *("loha-peft", "lokr-musubi", "minimax-h3-diffsynth", "musubi", "peft", "sdxl", "z-image-kohya"),
)
# Names that follow no naming come back in the nearest one; LoKr, LoHa and VeRA come back as plain factors.
MIXED = ("flux2-musubi-converted", "hybrid", "krea2-simpletuner-fused")
ROUND = [name for name in GOOD if name not in MIXED and not name.startswith(("lokr", "loha", "split", "vera"))]


def _fast_for_sorts(names):
    return [name if name in SORTS else pytest.param(name, marks=pytest.mark.slow) for name in names]


def _accounted(adapter: LoraAdapter) -> list[str]:
    """Every key, as often as it has a place; of the layers of a fused weight, which share its keys, once."""
    layers = {key for layer in adapter.layers.values() for key in layer.keys}
    passthrough = {key for item in adapter.passthrough for key in item.keys}
    return sorted([*layers, *passthrough, *adapter.dropped])


def _deltas(adapter: LoraAdapter) -> dict[str, torch.Tensor]:
    return {name: layer.load().dense().double() for name, layer in adapter.layers.items()}


def _effects(adapter: LoraAdapter) -> dict[str, torch.Tensor]:
    """What is carried, by the parameter it changes; zero changes (added for some loaders) do not count."""
    found = {item.param: item.load().float() for item in adapter.passthrough}
    return {param: tensor for param, tensor in found.items() if tensor.any()}


@pytest.mark.parametrize("name", CORPUS)
def test_it_parses_or_is_refused_as_expected(name, tmp_path):
    entry, path = CORPUS[name], write(name, tmp_path)
    expect = entry["expect"]
    if "error" in expect:
        with pytest.raises(LoraportError, match=expect["error"]):
            open_adapter(path)
        assert expect["error"] in describe(path).refused
        return
    adapter = open_adapter(path, expert=entry.get("expert"))
    assert adapter.architecture.family.name == expect.get("family", adapter.architecture.family.name)
    assert len(adapter.layers) == expect["layers"]
    assert len(adapter.passthrough) == expect["passthrough"]
    assert len(adapter.dropped) == entry.get("dropped", 0)
    assert _accounted(adapter) == sorted(entry["keys"])
    for field in ("prefix", "names", "flat", "adapter", "alpha"):
        if field in expect:
            assert getattr(adapter.dialect, field) == expect[field]
    assert list(adapter.dialect.others) == expect.get("others", list(adapter.dialect.others))
    if "scale" in expect:
        assert all(layer.scale == pytest.approx(expect["scale"]) for layer in adapter.layers.values())
    assert adapter.dtype == entry.get("dtype", "F32")
    assert all(layer.needs_source == entry.get("needs_source", False) for layer in adapter.layers.values())


@pytest.mark.parametrize("profile", OFTEN)
@pytest.mark.parametrize("name", GOOD)
def test_it_is_written_in_every_dialect_without_a_change(name, profile, tmp_path):
    entry, path = CORPUS[name], write(name, tmp_path / "in")
    output = tmp_path / "out" / "lora.safetensors"
    before = open_adapter(path, expert=entry.get("expert"))
    # of names that families share, at a size that none of them has, the user decides
    family = before.architecture.family.name if before.others else "auto"
    options = {"to": profile, "expert": entry.get("expert"), "architecture": family}
    if profile not in entry.get("profiles", PROFILES):
        with pytest.raises(LoraportError, match="do not take a change of"):
            convert(path, output, **options)
        assert not output.exists()
        return
    done = convert(path, output, **options)
    after = open_adapter(output)
    if after.architecture.family.name != before.architecture.family.name:
        assert before.architecture.family in after.others
        after = open_adapter(output, before.architecture)
    assert done.layers == len(after.layers) >= len(before.layers)
    if any(layer.factored for layer in after.layers.values()):  # whole matrices do not show whether alphas are written
        assert done.after in _titles(after) or profile == "same-as-input"
    wanted, found = _deltas(before), _deltas(after)
    for layer, delta in found.items():
        if layer not in wanted:
            assert not delta.any(), f"{layer} was added and is not zero"
            continue
        tolerance = 8e-3 if layer in done.folded and before.dtype in ("BF16", "F16") else 1e-5
        assert (delta - wanted[layer]).norm() <= tolerance * wanted[layer].norm(), layer
        exact = before.layers[layer].kind == "lora" and layer not in done.folded
        exact &= before.layers[layer].rank == after.layers[layer].rank  # not so where it is fused or taken apart
        if exact:
            assert torch.equal(_stored(before, layer, "B"), _stored(after, layer, "B")), layer
            assert torch.equal(_stored(before, layer, "A"), _stored(after, layer, "A")), layer
    first, second = _effects(before), _effects(after)
    assert first.keys() == second.keys()
    for param, tensor in first.items():
        torch.testing.assert_close(second[param], tensor, rtol=8e-3, atol=1e-6)
    if profile == "same-as-input" and not before.dialect.others:
        kept = set(entry["keys"]) - set(before.dropped)
        missing = kept - set(after.keys)
        assert not {key for key in missing if not key.endswith((".diff", ".lora_B.bias"))} or name in MIXED


def _titles(adapter: LoraAdapter) -> set[str]:
    """What its spelling may be called: several namings may agree on all its layers."""
    spell, own = adapter.architecture.family.spell, adapter.dialect
    return {
        replace(own, names=naming).title
        for naming in adapter.architecture.family.namings
        if all(spell(layer, naming) == spell(layer, own.names) for layer in adapter.layers)
    }


def _stored(adapter: LoraAdapter, layer: str, which: str) -> torch.Tensor:
    ref = adapter.layers[layer].parts[which]
    return read_tensor(ref).reshape(ref.shape[0], ref.shape[1])


@pytest.mark.parametrize("name", _fast_for_sorts(ROUND))
def test_a_round_trip_in_the_own_dialect_gives_the_same_keys(name, tmp_path):
    entry, path = CORPUS[name], write(name, tmp_path / "in")
    output = tmp_path / "out.safetensors"
    convert(path, output, to="same-as-input", expert=entry.get("expert"))
    before = open_adapter(path, expert=entry.get("expert"))
    assert set(read_header(output).spans) == set(before.keys) - set(before.dropped)
    # ... and once more, byte for byte.
    again = tmp_path / "again.safetensors"
    convert(output, again, to="same-as-input")
    assert again.read_bytes() == output.read_bytes()


@pytest.mark.parametrize("name", _fast_for_sorts(CORPUS))
def test_it_is_described(name, tmp_path):
    entry, path = CORPUS[name], write(name, tmp_path)
    found = describe(path)
    assert found.kind == "lora"
    assert sum(found.dtypes.values()) == len(entry["keys"])
    assert found.nbytes == sum(ref.nbytes for ref in open_tensors(path).groups[()].values())
    if "error" not in entry["expect"] and "expert" not in entry:
        assert found.layers == entry["expect"]["layers"]
        assert sum(len(keys) for keys in found.passthrough.values()) == entry["expect"]["passthrough"]
        assert json.loads(json.dumps(found.to_json()))["refused"] == ""


PARTITION = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PARTITION
@given(data=st.data(), name=st.sampled_from([name for name in GOOD if "config" not in CORPUS[name]]))
def test_every_key_ends_in_exactly_one_place(data, name, tmp_path):
    """Keys taken away, renamed, mixed with those of other trainers: what is opened accounts for each once."""
    keys = dict(CORPUS[name]["keys"])
    for key in data.draw(st.lists(st.sampled_from(sorted(keys)), max_size=6, unique=True)):
        change = data.draw(st.sampled_from(["remove", "rename", "prefix", "text encoder"]))
        shape = keys.pop(key)
        if change == "rename":
            keys[key.replace("blocks", "block5")] = shape
        elif change == "prefix":
            keys["other." + key] = shape
        elif change == "text encoder":
            keys["lora_te_" + key] = shape
    if not keys:
        return
    path = write(name, tmp_path, keys)
    drop = data.draw(st.sampled_from([None, "ffn", r"blocks[._]1"]))
    try:
        adapter = open_adapter(path, expert=CORPUS[name].get("expert"), drop=drop, allow_partial=True)
    except LoraportError:
        return
    assert _accounted(adapter) == sorted(keys)
    try:
        strict = open_adapter(path, expert=CORPUS[name].get("expert"), drop=drop)
    except LoraportError:
        assert adapter.dropped
    else:
        assert _accounted(strict) == sorted(keys)
