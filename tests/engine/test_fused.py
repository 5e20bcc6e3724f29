"""A fused checkpoint and a split one of one family are a pair; a LoRA on either spelling gives the same transfer."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import hunyuan
import loraport
from loraport.adapters.parse import open_adapter
from loraport.adapters.verify import verify_adapter
from loraport.engine.match import open_inputs
from loraport.engine.options import RunOptions
from loraport.engine.recipe import Recipe

pytestmark = pytest.mark.slow  # whole networks of several families

RANK = 3


def _drifted(state):
    generator = torch.Generator().manual_seed(9)
    return {key: t + 0.02 * t.norm() * torch.randn(t.shape, generator=generator) / t.numel() ** 0.5
            for key, t in state.items()}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The source as repackaged for ComfyUI, the target as diffusers has it; and both the other way round."""
    folder = tmp_path_factory.mktemp("pair")
    source = hunyuan.model(1)
    target = _drifted(source)
    save_file(hunyuan.repackaged_state(source), folder / "fused-source.safetensors")
    save_file(hunyuan.diffusers_state(source), folder / "split-source.safetensors")
    save_file(hunyuan.repackaged_state(target), folder / "fused-target.safetensors")
    save_file(hunyuan.diffusers_state(target), folder / "split-target.safetensors")
    return folder


def _loras(folder):
    """One LoRA in Tencent's names, one in diffusers' names and one in ComfyUI's: the same updates."""
    made = hunyuan.factors(2, RANK)
    original, split = hunyuan.loras(made)
    comfy = {}
    for name, (b, a) in made.items():
        stem = f"diffusion_model.{hunyuan.comfyui_name(name)}"
        if "attn_q" in name and "qkv" not in name:
            # Three layers of their own A: ComfyUI's weight is fused, so the factors are joined by hand.
            three = [made[name.replace("attn_q", f"attn_{x}")] for x in "qkv"]
            up = torch.block_diag(*(b for b, _ in three))
            down = torch.cat([a for _, a in three])
            stem = f"diffusion_model.{hunyuan.comfyui_name(name.replace('attn_q', 'attn_qkv'))}"
            comfy |= {f"{stem}.lora_B.weight": up, f"{stem}.lora_A.weight": down}
        elif not name.endswith(("attn_k", "attn_v")):
            comfy |= {f"{stem}.lora_B.weight": b.clone(), f"{stem}.lora_A.weight": a.clone()}
    for name, tensors in (("original", original), ("split", split), ("comfy", comfy)):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    return made


def _updates(path):
    return {name: layer.load().dense().double() for name, layer in open_adapter(path).layers.items()}


def _transfer(pair, folder, lora, source, target, method="casa", to="diffusers"):
    output = folder / f"{lora}-{source}-{target}-{to}-out.safetensors"
    report = loraport.transfer(
        folder / f"{lora}.safetensors",
        source=pair / f"{source}-source.safetensors",
        target=pair / f"{target}-target.safetensors",
        output=output,
        method=method,
        rank="full" if method == "casa" else "same",
        to=to,
        options=RunOptions(cache="off", executor="serial", log="off"),
    )
    return output, report


def test_one_transfer_whatever_is_fused(pair, tmp_path):
    _loras(tmp_path)
    reference, report = _transfer(pair, tmp_path, "split", "split", "split")
    assert report.summary.layers == 2 * 14 + 2 * 7 + 14
    wanted = _updates(reference)
    for lora, source, target in (
        ("split", "fused", "split"),
        ("original", "fused", "split"),
        ("comfy", "split", "fused"),
        ("original", "fused", "fused"),
    ):
        found = _updates(_transfer(pair, tmp_path, lora, source, target)[0])
        assert found.keys() == wanted.keys()
        for name, update in wanted.items():
            assert (found[name] - update).norm() <= 1e-6 * update.norm(), (lora, source, target, name)


def test_a_distillation_lora_makes_one_target_whatever_is_fused(pair, tmp_path):
    _loras(tmp_path)
    carried = shutil.copyfile(tmp_path / "split.safetensors", tmp_path / "carried.safetensors")
    found = {}
    for spelled, source in (("split", "split"), ("comfy", "split"), ("original", "fused")):
        output = tmp_path / f"{spelled}-{source}-out.safetensors"
        loraport.transfer(
            carried, source=pair / f"{source}-source.safetensors", output=output, to="diffusers",
            target_lora=f"{tmp_path / spelled}.safetensors:-0.5", method="casa", rank="full",
            options=RunOptions(cache="off", executor="serial", log="off"),
        )  # fmt: skip
        found[spelled] = _updates(output)
    for spelled in ("comfy", "original"):
        assert found[spelled].keys() == found["split"].keys()
        for name, update in found["split"].items():
            assert (found[spelled][name] - update).norm() <= 2e-6 * update.norm(), (spelled, name)


def test_neither_file_lacks_anything_the_other_has(pair, tmp_path):
    _loras(tmp_path)
    settings = {"lora": tmp_path / "split.safetensors", "target": pair / "split-target.safetensors"}
    inputs = open_inputs(
        Recipe(source=str(pair / "fused-source.safetensors"), **{k: str(v) for k, v in settings.items()})
    )
    assert inputs.extras == ((), ())
    assert inputs.notes == ()


@pytest.mark.parametrize("to", ["universal", "diffusers", "original", "kohya"])
def test_direct_reuse_gives_the_updates_back_in_every_profile(pair, tmp_path, to):
    made = _loras(tmp_path)
    wanted = hunyuan.in_diffusers({name: b.double() @ a.double() for name, (b, a) in made.items()})
    output, _ = _transfer(pair, tmp_path, "original", "fused", "split", "direct", to)
    again = _updates(output)
    assert len(again) == len(wanted)
    stored = load_file(output)
    if to == "universal":
        up = stored["diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight"]
        assert up.shape == (72, 3 * RANK)
        assert not [key for key in stored if "attn_q." in key]
    for module, tensors in _by_module(stored, to).items():
        update = tensors["up"].double() @ tensors["down"].double()
        for name, part in hunyuan.in_diffusers({module: update}).items():
            torch.testing.assert_close(part, wanted[name], rtol=1e-5, atol=1e-6)
    failed = [check for check in verify_adapter(output) if check.passed is False]
    assert not failed


def _by_module(stored, to):
    """The factors of an output by Tencent's module names, fused ones cut by hand."""
    names = {}
    for module in hunyuan.layers():
        others = hunyuan.to_diffusers(module)
        if to == "diffusers":
            names[module] = [f"transformer.{other}" for other in others]
        elif to == "original":
            names[module] = [module]
        elif to == "kohya":
            names[module] = ["lora_unet_" + module.replace(".", "_")]
        else:
            names[module] = ["diffusion_model." + hunyuan.comfyui_name(module)]
    down, up = (".lora_down.weight", ".lora_up.weight") if to == "kohya" else (".lora_A.weight", ".lora_B.weight")
    found = {}
    for module, stems in names.items():
        if to == "universal" and module.endswith(("attn_q", "attn_k", "attn_v")):
            stem, place = stems[0][:-2] + "." + "qkv", "qkv".index(module[-1])
            rows = slice(24 * place, 24 * place + 24)
            found[module] = {"up": stored[stem + up][rows], "down": stored[stem + down]}
        elif len(stems) == 1:
            tensor = stored[stems[0] + up]
            if to == "diffusers" and module == "final_layer.adaLN_modulation.1":
                tensor = hunyuan.swapped(tensor)
            found[module] = {"up": tensor, "down": stored[stems[0] + down]}
        else:
            parts = [(stored[stem + up], stored[stem + down]) for stem in stems]
            found[module] = {"up": torch.block_diag(*(b for b, _ in parts)), "down": torch.cat([a for _, a in parts])}
    return found
