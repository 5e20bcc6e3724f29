"""Targets that distillation LoRAs make: the same as a checkpoint into which they were merged beforehand."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import loraport
import pico
from loraport import AddedLora
from loraport.engine.results import TransferReport
from loraport.errors import LoraportError, MismatchError, UsageError
from loraport.report.page import render_page

Adapter = dict[str, Tensor]
LAYERS = {
    name: pico.LAYERS[name]
    for name in ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.cross_attn.o", "blocks.1.ffn.2")
}
ATTENTION = {name: shape for name, shape in LAYERS.items() if "attn" in name}


def _round(tensors: Adapter, bits: int) -> Adapter:
    """To so few bits that sums and products of them are exact in float32: what is merged loses nothing."""
    return {name: (tensor * 2**bits).round() / 2**bits for name, tensor in tensors.items()}


def _dense(lora: Adapter) -> Adapter:
    down, up = ".lora_A.weight", ".lora_B.weight"
    stems = [key.removesuffix(down) for key in lora if key.endswith(down)]
    return {
        stem.removeprefix("diffusion_model."): lora[stem + up].double() @ lora[stem + down].double() for stem in stems
    }


def _merged(weights: Adapter, *loras: tuple[Adapter, float]) -> Adapter:
    merged = {name: weight.clone() for name, weight in weights.items()}
    for lora, strength in loras:
        for name, update in _dense(lora).items():
            merged[f"{name}.weight"] += (strength * update).float()
    return merged


@pytest.fixture
def files(tmp_path) -> pico.Pico:
    """A pair, a LoRA, and two distillation LoRAs `few.safetensors` and `cfg.safetensors`, the second of few layers."""
    made = pico.write(tmp_path / "pico")
    source = _round(pico.weights(1), 10)
    save_file(source, made.source)
    save_file(_round(pico.distilled(source, 2, drift=0.05), 10), made.target)
    save_file(pico.lora(3, layers=LAYERS), made.lora)
    save_file(_round(pico.lora(11, rank=6, layers=LAYERS), 6), made.folder / "few.safetensors")
    save_file(_round(pico.lora(12, rank=3, layers=ATTENTION), 6), made.folder / "cfg.safetensors")
    return made


def _transfer(files: pico.Pico, name: str = "out", cache: str = "off", **settings) -> tuple[Path, TransferReport]:
    output = files.folder / f"{name}.safetensors"
    options = loraport.RunOptions(cache=cache, executor="serial", log="off", overwrite=True)
    settings = {"source": files.source, "lora": files.lora, "rank": "full", "method": "casa"} | settings
    return output, loraport.transfer(output=output, options=options, **settings)


def _close(one: Path, two: Path, tolerance: float) -> None:
    first, second = _dense(load_file(one)), _dense(load_file(two))
    assert first.keys() == second.keys()
    for name, update in first.items():
        assert (update - second[name]).norm() <= tolerance * second[name].norm(), name


METHODS = {
    "direct": {"method": "direct"},
    "casa": {"method": "casa"},
    "casa without arbitration": {"method": "casa", "params": {"arbitrate": False}},
}


@pytest.mark.parametrize("base", ["source", "target"])
@pytest.mark.parametrize("method", METHODS)
def test_several_equal_the_checkpoint_they_were_merged_into(files, method, base):
    few, cfg = files.folder / "few.safetensors", files.folder / "cfg.safetensors"
    whole = _merged(load_file(getattr(files, base)), (load_file(few), 0.5), (load_file(cfg), -0.25))
    save_file(whole, files.folder / "merged.safetensors")
    one, _ = _transfer(files, "one", target=files.folder / "merged.safetensors", **METHODS[method])
    target = {"target": files.target} if base == "target" else {}
    two, report = _transfer(files, "two", target_lora=[f"{few}:0.5", f"{cfg}:-0.25"], **target, **METHODS[method])
    _close(two, one, 2e-6)  # 1e-6 each, by the float32 factors of the two files
    assert report.summary.target == (str(files.target) if target else None)
    if method != "direct":
        other, _ = _transfer(files, "other", target_lora=f"{few}:0.5", **target, **METHODS[method])
        with pytest.raises(AssertionError):
            _close(other, one, 1e-3)  # the second one matters


def test_the_order_makes_no_byte_and_no_work(files, tmp_path):
    few, cfg = str(files.folder / "few.safetensors"), str(files.folder / "cfg.safetensors")
    cache = str(tmp_path / "cache")
    one, first = _transfer(files, "one", cache, target_lora=[few, f"{cfg}:0.5"])
    two, second = _transfer(files, "two", cache, target_lora=[f"{cfg}:0.5", few])
    assert one.read_bytes() == two.read_bytes()
    assert (first.summary.cached_layers, second.summary.cached_layers) == (0, len(LAYERS))
    three, _ = _transfer(files, "three", target_lora=[f"{cfg}:0.5", few])  # not because the cache was there
    assert three.read_bytes() == one.read_bytes()


@pytest.mark.parametrize("target", [False, True])
def test_each_strength_is_a_part_of_the_key(files, tmp_path, target):
    """With a target checkpoint beside them, so that bases and what CASA keeps of a pair are not those of another."""
    few, cfg = str(files.folder / "few.safetensors"), str(files.folder / "cfg.safetensors")
    more = {"target": files.target} if target else {}
    cache = str(tmp_path / "cache")
    _transfer(files, "first", cache, target=files.target)
    _transfer(files, "second", cache, target_lora=[few, cfg], **more)
    for number, given in enumerate(([few, f"{cfg}:0.5"], [few], [cfg, f"{few}:0.25"])):
        warm, report = _transfer(files, f"warm {number}", cache, target_lora=given, **more)
        cold, _ = _transfer(files, f"cold {number}", target_lora=given, **more)
        alone = len(LAYERS) - len(ATTENTION) if few in given else 0  # what the other one does not touch is the same
        assert report.summary.cached_layers == alone
        assert warm.read_bytes() == cold.read_bytes()
        again, report = _transfer(files, f"again {number}", cache, target_lora=given, **more)
        assert report.summary.cached_layers == len(LAYERS)
        assert again.read_bytes() == warm.read_bytes()


def test_a_method_that_decomposes_the_target_takes_the_one_with_the_loras(files, tmp_path):
    """Its basis is kept by the digest of the weight, and a weight that something was added to has none."""
    few = files.folder / "few.safetensors"
    save_file(_merged(load_file(files.target), (load_file(few), 1.0)), files.folder / "merged.safetensors")
    users = [name for name in loraport.list_methods() if _needs_target_basis(name)]
    assert users
    cache = str(tmp_path / "cache")
    for method in users:
        _transfer(files, "plain", cache, method=method, target=files.target)
        one, _ = _transfer(files, "one", method=method, target=files.folder / "merged.safetensors")
        two, _ = _transfer(files, "two", cache, method=method, target=files.target, target_lora=few)
        _close(two, one, 1e-4)


def _needs_target_basis(name: str) -> bool:
    from loraport.methods import registry

    method, params = registry.resolve(name, {})
    needs = method.needs(params)
    return needs.target_basis or needs.target


def test_a_layer_that_none_touches_keeps_its_update(files):
    cfg = files.folder / "cfg.safetensors"
    output, report = _transfer(files, target_lora=cfg)
    was, now = _dense(load_file(files.lora)), _dense(load_file(output))
    for name in LAYERS:
        same = torch.allclose(now[name], was[name], rtol=1e-5, atol=1e-6)
        assert same == ("ffn" in name), name
    elsewhere = {"head.head": (64, pico.WIDTH)}
    save_file(pico.lora(5, layers=elsewhere), files.folder / "head.safetensors")
    _, report = _transfer(files, target_lora=[cfg, files.folder / "head.safetensors"])
    assert any("head.safetensors: changes none of the layers" in text for text in report.warnings)


def test_choices_reach_the_file_they_are_made_for(files):
    """A combined file of both experts, a file of two adapters, and one whose scale was lost, all at once."""
    few, cfg = load_file(files.folder / "few.safetensors"), load_file(files.folder / "cfg.safetensors")
    folder = files.folder

    def respelled(tensors: Adapter, prefix: str, name: str = "") -> Adapter:
        return {
            key.replace("diffusion_model.", prefix).replace("_A.", f"_A{name}.").replace("_B.", f"_B{name}."): tensor
            for key, tensor in tensors.items()
        }

    experts = respelled(few, "diffusion_model.transformer_1.") | respelled(cfg, "diffusion_model.transformer_2.")
    adapters = respelled(cfg, "", ".teacher") | respelled(few, "", ".student")
    doubled = {key: tensor * 4 if "_B" in key else tensor for key, tensor in few.items()}
    save_file(experts, folder / "experts.safetensors")
    save_file(adapters, folder / "adapters.safetensors")
    save_file(doubled, folder / "doubled.safetensors")
    plain, _ = _transfer(files, "plain", target_lora=[folder / "few.safetensors"])
    ways = {
        "its own expert": {"target_lora": f"{folder / 'experts.safetensors'}:expert=high"},
        "everybody's expert": {"target_lora": folder / "experts.safetensors", "expert": "high"},
        "its own adapter": {"target_lora": f"{folder / 'adapters.safetensors'}:1:adapter=student"},
        "everybody's adapter": {"target_lora": folder / "adapters.safetensors", "adapter": "student"},
        "its own scale": {"target_lora": AddedLora(file=str(folder / "doubled.safetensors"), scale=0.25)},
    }
    for way, settings in ways.items():
        found, report = _transfer(files, way, **settings)
        _close(found, plain, 1e-6)
        (used,) = report.summary.target_lora
        assert used.expert == ("high" if "expert" in way else None)
        assert used.adapter == ("student" if "adapter" in way else None)
        assert any(str(used) in line for line in report.load)
    with pytest.raises(UsageError, match="one for each expert"):
        _transfer(files, target_lora=folder / "experts.safetensors")
    with pytest.raises(UsageError, match="high, low"):
        _transfer(files, target_lora=f"{folder / 'few.safetensors'}:expert=middle")
    low, _ = _transfer(files, "low", target_lora=f"{folder / 'experts.safetensors'}:expert=low", expert="high")
    one, _ = _transfer(files, "one", target_lora=folder / "cfg.safetensors")
    _close(low, one, 1e-6)  # what is said of a file goes before what is said of all


def test_both_experts_of_a_job_take_their_halves(files):
    """A combined distillation file and one for both, as LightX2V's pairs and a guidance LoRA are used together."""
    folder = files.folder
    save_file(pico.distilled(load_file(files.source), 5, 0.5), folder / "low.safetensors")
    loras = {expert: load_file(folder / f"{name}.safetensors") for expert, name in (("high", "few"), ("low", "cfg"))}
    prefixes = {"high": "diffusion_model.transformer_1.", "low": "diffusion_model.transformer_2."}
    both = {
        key.replace("diffusion_model.", prefixes[expert]): tensor
        for expert, lora in loras.items()
        for key, tensor in lora.items()
    }
    save_file(both, folder / "both.safetensors")
    more = folder / "more.safetensors"
    save_file(pico.lora(21, rank=2, layers=LAYERS), more)
    recipe = loraport.Recipe(
        lora=str(files.lora), source=str(files.source), rank="full", method="casa",
        target_lora=[folder / "both.safetensors", f"{more}:0.5"],
    )  # fmt: skip
    done = loraport.transfer_experts(
        recipe, loraport.Experts(source_low=folder / "low.safetensors"), output=folder / "two.safetensors",
        options=loraport.RunOptions(cache="off", executor="serial", log="off"),
    )  # fmt: skip
    for expert, name, source in (("high", "few", files.source), ("low", "cfg", folder / "low.safetensors")):
        alone, _ = _transfer(
            files, f"{expert} alone", source=source, target_lora=[folder / f"{name}.safetensors", f"{more}:0.5"]
        )
        report = done.reports[expert]
        _close(report.output, alone, 1e-6)
        assert [used.expert for used in report.summary.target_lora] == [expert, None]
        (said,) = [text for text in report.warnings if "both.safetensors" in text]
        assert said.endswith("each half is used for its own")
    assert any("more.safetensors is used for both experts" in text for text in done.warnings)
    assert not any("both.safetensors is used" in text for text in done.warnings)


def test_drop_and_allow_partial_reach_them(files):
    strange = load_file(files.folder / "few.safetensors") | {"diffusion_model.mystery.lora_A.weight": torch.ones(2, 4)}
    del strange["diffusion_model.blocks.1.ffn.2.lora_B.weight"]
    save_file(strange, files.folder / "strange.safetensors")
    with pytest.raises(LoraportError, match="strange"):
        _transfer(files, target_lora=files.folder / "strange.safetensors")
    for settings in ({"allow_partial": True}, {"drop": r"mystery|blocks\.1\.ffn\.2"}):
        _, report = _transfer(files, target_lora=files.folder / "strange.safetensors", **settings)
        assert any("strange.safetensors: 2 keys were left out" in text for text in report.warnings)
        assert len(report.dropped) == (2 if "drop" in settings else 0)  # of the LoRA, the layer that was named


def test_changes_of_other_things_than_layers_do_not_stand_in_the_way(files):
    """Those of norms and biases are the user's when the two LoRAs are used together; those of another input size, and
    those of gates that the base does not have, touch no layer."""
    few = load_file(files.folder / "few.safetensors")
    more = {
        "blocks.0.self_attn.norm_q.diff": torch.ones(pico.WIDTH),
        "blocks.0.self_attn.q.diff_b": torch.ones(pico.WIDTH),
        "blocks.0.diff_m": torch.ones(1, 6, pico.WIDTH),
        "patch_embedding.diff": torch.ones(pico.WIDTH, 36, 1, 2, 2),  # of an image-to-video model
        "blocks.0.to_gate_compress.diff": torch.ones(pico.WIDTH, pico.WIDTH),
        "blocks.1.to_gate_compress.diff_b": torch.ones(pico.WIDTH),
    }
    save_file(
        few | {f"diffusion_model.{key}": tensor for key, tensor in more.items()}, files.folder / "all.safetensors"
    )
    plain, _ = _transfer(files, "plain", target_lora=files.folder / "few.safetensors")
    found, report = _transfer(files, "found", target_lora=files.folder / "all.safetensors")
    assert _dense(load_file(plain)).keys() == _dense(load_file(found)).keys()
    _close(found, plain, 1e-6)
    assert any("all.safetensors: 3 keys change what the model does not have" in text for text in report.warnings)
    assert not report.passthrough
    with pytest.raises(MismatchError, match="gate_compress"):  # as a LoRA to carry over, it is another matter
        _transfer(files, lora=files.folder / "all.safetensors", target=files.target)


def test_what_is_advised_works_for_the_file_it_is_about(files):
    """--scale is the LoRA's own, and a whole model goes elsewhere."""
    few = load_file(files.folder / "few.safetensors")
    odd = files.folder / "odd.safetensors"
    save_file(few, odd, metadata={"alpha": "3", "rank": "99"})
    with pytest.raises(MismatchError, match=":scale=NUMBER behind the file"):
        _transfer(files, target_lora=odd)
    _transfer(files, target_lora=f"{odd}:1:scale=0.5")
    save_file(few, odd, metadata={"alpha": "3"})
    _, report = _transfer(files, target_lora=odd)
    assert any("odd.safetensors: the scale 0.5" in text and ":scale=1 behind" in text for text in report.warnings)
    with pytest.raises(MismatchError, match="with --target"):
        _transfer(files, target_lora=files.target)


def test_the_same_numbers_under_another_name_are_noticed(files):
    few, copy = files.folder / "few.safetensors", files.folder / "copy.safetensors"
    save_file(dict(reversed(load_file(few).items())), copy, metadata={"name": "another"})
    found, report = _transfer(files, "found", target_lora=[few, f"{copy}:-0.5"])
    assert any(f"{few} and {copy} hold the same LoRA" in text for text in report.warnings)
    half, report = _transfer(files, "half", target_lora=f"{few}:0.5")
    assert not any("the same LoRA" in text for text in report.warnings)
    _close(found, half, 2e-6)


def test_the_report_says_what_the_result_is_used_with(files, tmp_path):
    few, cfg = files.folder / "few.safetensors", files.folder / "cfg.safetensors"
    _, report = _transfer(files, target_lora=[few, f"{cfg}:0.5"])
    assert report.summary.target is None
    assert [(used.file, used.strength) for used in report.summary.target_lora] == [(str(few), 1.0), (str(cfg), 0.5)]
    said = f"together with {few} at strength 1, {cfg} at strength 0.5, on the source"
    assert any(said in way for way in report.load)
    assert json.loads(json.dumps(report.to_json()))["summary"]["target_lora"][1]["strength"] == 0.5
    assert f"{cfg} at strength 0.5, on the source" in render_page(report.to_json())
    _, report = _transfer(files, target=files.target, target_lora=few)
    assert any(f"together with {few} at strength 1, on {files.target}" in way for way in report.load)


@pytest.mark.parametrize("where", ["header", "beside"])
def test_what_a_file_says_of_its_sampling_is_passed_on(files, where):
    few = load_file(files.folder / "few.safetensors")
    told = {"denoising_step_list": "[1000, 750, 500, 250]", "enable_cfg": "no", "ss_steps": "2000", "sampler": "None"}
    save_file(few, files.folder / "few.safetensors", metadata=told if where == "header" else None)
    if where == "beside":
        config = {"denoising_step_list": [1000, 750, 500, 250], "enable_cfg": False, "model_cls": "wan2.1"}
        (files.folder / "inference_config.json").write_text(json.dumps(config))
    _, report = _transfer(files, target_lora=files.folder / "few.safetensors")
    said = "denoising_step_list [1000, 750, 500, 250], enable_cfg no"
    (used,) = report.summary.target_lora
    assert used.usage.startswith(f"{said} (")
    assert any("few.safetensors says how it is sampled" in way and said in way for way in report.load)
    (files.folder / "inference_config.json").write_text("{ no JSON")
    save_file(few, files.folder / "few.safetensors")
    _, report = _transfer(files, target_lora=files.folder / "few.safetensors")
    assert report.summary.target_lora[0].usage is None


def test_the_header_names_each_by_its_content(files):
    few, cfg = files.folder / "few.safetensors", files.folder / "cfg.safetensors"

    def header(given) -> tuple[list[dict], str]:
        output, _ = _transfer(files, target_lora=given)
        with safe_open(str(output), framework="pt") as file:
            found = file.metadata()
        assert str(files.folder) not in "".join(found.values())
        return json.loads(found["loraport.recipe"])["target_lora"], json.loads(found["loraport.inputs"])["target_lora"]

    alone = {name: header(path)[1] for name, path in (("few", few), ("cfg", cfg))}
    both, digests = header([few, f"{cfg}:0.5"])
    assert {each["digest"]: each["strength"] for each in both} == {alone["few"]: 1.0, alone["cfg"]: 0.5}
    assert digests == " ".join(sorted(alone.values()))
