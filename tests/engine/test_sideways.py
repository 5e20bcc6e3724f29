"""From any model of a family to any other: back from the distilled one, on to the next, off a training adapter."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import pico
from loraport.engine.plan import make_plan
from loraport.errors import UsageError

SOME = {
    name: pico.LAYERS[name]
    for name in ("blocks.0.self_attn.q", "blocks.0.cross_attn.o", "blocks.1.ffn.0", "blocks.1.ffn.2")
}
"""Layers of the LoRAs here: each shape, in two blocks."""

OFF = loraport.RunOptions(cache="off", log="off", executor="serial")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, two distilled versions of it, a LoRA, and an adapter that was on the distilled model in training."""
    files = pico.write(tmp_path_factory.mktemp("pico"))
    save_file(pico.lora(3, layers=SOME), files.lora)
    save_file(pico.distilled(load_file(files.target), 7, 0.1), files.folder / "next.safetensors")
    save_file(pico.lora(8, rank=3, layers=SOME), files.folder / "adapter.safetensors")
    merged = load_file(files.target)
    for name, update in _updates(files.folder / "adapter.safetensors").items():
        merged[f"{name}.weight"] += 0.5 * update
    save_file(merged, files.folder / "trained-on.safetensors")
    return files.folder


def _updates(path) -> dict[str, torch.Tensor]:
    tensors = load_file(path)
    prefix, down, up = "diffusion_model.", ".lora_A.weight", ".lora_B.weight"
    names = [key.removesuffix(down) for key in tensors if key.endswith(down)]
    return {name.removeprefix(prefix): tensors[name + up].float() @ tensors[name + down].float() for name in names}


def _apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over that of the second, in all layers together."""
    assert first.keys() == second.keys()
    difference = sum(float((first[name] - second[name]).norm() ** 2) for name in second)
    return (difference / sum(float(matrix.norm() ** 2) for matrix in second.values())) ** 0.5


def _carry(folder, output, lora, source, target, **settings):
    models = {role: folder / f"{name}.safetensors" for role, name in (("source", source), ("target", target)) if name}
    return loraport.transfer(lora, **models, output=output, options=OFF, dtype="float32", **settings)


def _there_and_back(folder, tmp_path, stops: list[str], **settings) -> list[dict[str, torch.Tensor]]:
    """The updates after each leg of a way."""
    found, lora = [], folder / "style.safetensors"
    for number, (source, target) in enumerate(pairwise(stops)):
        output = tmp_path / f"{number}.safetensors"
        _carry(folder, output, lora, source, target, force=number > 0, **settings)
        found.append(_updates(output))
        lora = output
    return found


@pytest.mark.parametrize("stops", [["source", "target", "source"], ["target", "next", "source", "target"]])
def test_reuse_comes_back_as_it_went(folder, tmp_path, stops):
    *_, back = _there_and_back(folder, tmp_path, stops, method="direct")
    assert _apart(back, _updates(folder / "style.safetensors")) < 1e-6


def test_casa_comes_back_nearer_than_it_went(folder, tmp_path):
    """No inverse: which rows and columns dominate is found anew on the way back, of another LoRA in another basis. But
    in either direction casa changes an update by a part of the drift, entry by entry of its routing and no more, so
    that the way there and back ends within twice the drift."""
    there, back = _there_and_back(folder, tmp_path, ["source", "target", "source"], method="casa", rank="full")
    start = _updates(folder / "style.safetensors")
    source, target = (load_file(folder / f"{name}.safetensors") for name in ("source", "target"))
    for name, update in start.items():
        drift = float((target[f"{name}.weight"] - source[f"{name}.weight"]).norm())
        assert float((there[name] - update).norm()) <= (1 + 1e-4) * drift
        assert float((back[name] - update).norm()) <= (2 + 1e-4) * drift
    assert _apart(back, start) < _apart(there, start)


# Of the methods those that read different things: basis, drift, source weight, basis of the target.
@pytest.mark.parametrize("method", ["casa", "released-code", "matched-gain", "prolora", "cross-lora"])
def test_a_lora_on_the_source_is_the_source_with_it_merged_in(folder, tmp_path, method):
    lora = folder / "style.safetensors"
    settings = {"method": method, "rank": "full"}
    one, two = tmp_path / "merged.safetensors", tmp_path / "on-top.safetensors"
    _carry(folder, one, lora, "trained-on", "source", **settings)
    adapter = f"{folder / 'adapter.safetensors'}:0.5"
    _carry(folder, two, lora, "target", "source", source_lora=adapter, **settings)
    assert _apart(_updates(two), _updates(one)) < 2e-3


@pytest.mark.parametrize("method", ["casa", "matched-gain", "prolora"])
def test_off_the_adapter_to_the_model_that_it_was_on(folder, tmp_path, method):
    """The drift is the adapter's update with the other sign, exactly, whether the target is named or left out."""
    lora, adapter = folder / "style.safetensors", f"{folder / 'adapter.safetensors'}:0.5"
    settings = {"method": method, "rank": "full"}
    paths = [tmp_path / f"{name}.safetensors" for name in ("merged", "named", "left out")]
    _carry(folder, paths[0], lora, "trained-on", "target", **settings)
    _carry(folder, paths[1], lora, "target", "target", source_lora=adapter, **settings)
    report = _carry(folder, paths[2], lora, "target", None, source_lora=adapter, **settings)
    merged, named, left_out = map(_updates, paths)
    assert _apart(named, merged) < 2e-3
    assert _apart(left_out, named) == 0.0
    assert all(layer.stats["drift_rel"] > 0 for layer in report.layers if "drift_rel" in layer.stats)


def test_off_an_adapter_and_onto_a_distillation_lora(folder, tmp_path):
    few = tmp_path / "few.safetensors"
    save_file(pico.lora(12, rank=5, layers=SOME), few)
    target = load_file(folder / "target.safetensors")
    for name, update in _updates(few).items():
        target[f"{name}.weight"] += 0.8 * update
    save_file(target, folder / "fewer.safetensors")
    lora, adapter = folder / "style.safetensors", f"{folder / 'adapter.safetensors'}:0.5"
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    _carry(folder, one, lora, "trained-on", "fewer", method="casa", rank="full")
    _carry(folder, two, lora, "target", None, source_lora=adapter, target_lora=f"{few}:0.8", method="casa", rank="full")
    assert _apart(_updates(two), _updates(one)) < 2e-3


def test_coarse_weights_do_not_blur_an_adapter(folder, tmp_path):
    """Of one quantised file as source and target the rounding cancels, and only the adapter is left."""
    coarse = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in load_file(folder / "target.safetensors").items()}
    save_file(coarse, tmp_path / "fp8.safetensors")
    settings = {"source_lora": f"{folder / 'adapter.safetensors'}:0.001", "method": "casa"}
    report = _carry(tmp_path, tmp_path / "out.safetensors", folder / "style.safetensors", "fp8", "fp8", **settings)
    assert not any("drift_rounding" in layer.stats for layer in report.layers)


def test_the_cache_tells_adapters_and_strengths_apart(folder, tmp_path, monkeypatch):
    options = loraport.RunOptions(cache=str(tmp_path / "cache"), log="off", overwrite=True)
    models = {role: folder / f"{name}.safetensors" for role, name in (("source", "target"), ("target", "source"))}
    models |= {"method": "casa", "output": tmp_path / "out.safetensors", "options": options}
    lora, adapter = folder / "style.safetensors", folder / "adapter.safetensors"
    cached = []
    for part in ((), f"{adapter}:0.5", f"{adapter}:0.25", f"{adapter}:0.5"):
        cached.append(loraport.transfer(lora, source_lora=part, **models).summary.cached_layers)
    assert cached == [0, 0, 0, len(SOME)]
    other = tmp_path / "other.safetensors"
    save_file(pico.lora(40, layers=SOME), other)
    monkeypatch.setattr("loraport.engine.layer.thin_svd", None)  # any call would fail
    assert loraport.transfer(other, source_lora=f"{adapter}:0.5", **models).summary.cached_layers == 0


def test_header_and_report_say_what_was_on_the_source(folder, tmp_path):
    from safetensors import safe_open

    output = tmp_path / "out.safetensors"
    adapter = f"{folder / 'adapter.safetensors'}:0.5"
    report = _carry(folder, output, folder / "style.safetensors", "target", "source", source_lora=adapter)
    (used,) = report.to_json()["summary"]["source_lora"]
    assert (used["file"], used["strength"]) == (str(folder / "adapter.safetensors"), 0.5)
    assert not any("together with" in way for way in report.load)
    with safe_open(output, framework="pt") as file:
        header = file.metadata()
    assert json.loads(header["loraport.recipe"])["source_lora"][0]["strength"] == 0.5
    assert "source_lora" in json.loads(header["loraport.inputs"])
    plain = tmp_path / "plain.safetensors"
    _carry(folder, plain, folder / "style.safetensors", "target", "source")
    with safe_open(plain, framework="pt") as file:
        assert "source_lora" not in file.metadata()["loraport.recipe"]


def test_a_target_is_asked_for_unless_something_is_taken_off(folder):
    lora, source = folder / "style.safetensors", folder / "target.safetensors"
    with pytest.raises(UsageError, match="target is not given"):
        loraport.Recipe(lora=lora, source=source)
    plan = make_plan(loraport.Recipe(lora=lora, source=source, source_lora=folder / "adapter.safetensors"))
    assert plan.target is None
    with pytest.raises(UsageError, match="LoRA of the source is given twice"):
        loraport.Recipe(lora=lora, source=source, source_lora=[folder / "adapter.safetensors"] * 2)
