"""The family of docs/adding-an-architecture.md, added as the page says: one yaml file and nothing else."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.adapters.convert import convert
from loraport.adapters.describe import describe
from loraport.adapters.parse import open_adapter
from loraport.containers.tensors import read_tensor
from loraport.errors import MismatchError
from loraport.models import families as family_room
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families
from loraport.models.keymap import build
from makers import LoraFile, forget_families

PAGE = Path(__file__).parents[2] / "docs" / "adding-an-architecture.md"
DATA = Path(family_room.__file__).parent / "data"
D, F = 24, 48
ATTENTION = [f"{kind}.{name}" for kind in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")]
BLOCK = {**dict.fromkeys(ATTENTION, (D, D)), "ff.net.0.proj": (F, D), "ff.net.2": (D, F)}
LAYERS = {f"transformer_blocks.{n}.{name}": shape for n in range(2) for name, shape in BLOCK.items()}


# Two kinds of blocks, and a weight that holds parts of different sizes: what FLUX and HunyuanVideo have.
FUSED = """
family: fluxlike
title: Fluxlike
spellings: [original, diffusers]
counters: {n: blocks, s: single_blocks}
linear:
  - ["double.<n>.qkv[0]", transformer_blocks.<n>.to_q, [width, width]]
  - ["double.<n>.qkv[1]", transformer_blocks.<n>.to_k, [width, width]]
  - ["double.<n>.qkv[2]", transformer_blocks.<n>.to_v, [width, width]]
  - ["single.<s>.linear1[0]", single.<s>.to_q, [width, width]]
  - ["single.<s>.linear1[1]", single.<s>.to_k, [width, width]]
  - ["single.<s>.linear1[2]", single.<s>.to_v, [width, width]]
  - ["single.<s>.linear1[3]", single.<s>.proj_mlp, [mlp, width]]
  - [out.mod, out.norm.linear, [2*width, width]]
permuted:
  diffusers: {out.norm.linear: [1, 0]}
"""


@pytest.fixture
def _added(tmp_path, monkeypatch):
    """A data folder with the page's yaml file and another beside those that are there."""
    folder = tmp_path / "package" / "data"
    folder.mkdir(parents=True)
    for path in DATA.glob("*.yaml"):
        if path.stem == "ltx_video":
            continue  # the page's family in full
        (folder / path.name).write_bytes(path.read_bytes())
    found = re.search(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert found is not None
    (folder / "ltx.yaml").write_text(found.group(1), encoding="utf-8")
    (folder / "fluxlike.yaml").write_text(FUSED, encoding="utf-8")
    monkeypatch.setattr(family_room, "resources", SimpleNamespace(files=lambda package: folder.parent))
    forget_families()
    yield
    forget_families()


def _model() -> dict[str, torch.Tensor]:
    found = {f"model.diffusion_model.{name}.weight": torch.ones(shape) for name, shape in LAYERS.items()}
    found |= {f"model.diffusion_model.transformer_blocks.{n}.scale_shift_table": torch.ones(6, D) for n in range(2)}
    norms = [f"transformer_blocks.{n}.attn1.{name}.weight" for n in range(2) for name in ("q_norm", "k_norm")]
    found |= {f"model.diffusion_model.{name}": torch.ones(D) for name in norms}
    found |= {"model.diffusion_model.patchify_proj.weight": torch.ones(D, 8)}
    return found | {"model.diffusion_model.adaln_single.linear.weight": torch.ones(6 * D, D)}


@pytest.mark.usefixtures("_added")
def test_a_page_of_yaml_is_enough(tmp_path):
    build(families()["ltx"])  # every spelling names one module
    save_file(_model(), tmp_path / "model.safetensors")
    model = open_checkpoint(tmp_path / "model.safetensors")
    assert model.architecture.title == "LTX-Video (2 blocks, width 24)"
    assert (model.unknown, model.missing, len(model.architecture.layers)) == ((), (), 22)

    flat = {}
    for name, (m, n) in LAYERS.items():
        stem = "lora_unet_" + name.replace(".", "_")
        flat |= {f"{stem}.lora_down.weight": torch.ones(4, n), f"{stem}.lora_up.weight": torch.ones(m, 4)}
        flat[f"{stem}.alpha"] = torch.tensor(2.0)
    path = LoraFile(flat).write(tmp_path)
    assert describe(path).title == "LTX-Video or LTX-2 (2 blocks, width 24)"  # until a model says which
    assert all(layer.scale == 0.5 for layer in open_adapter(path, model).layers.values())
    convert(path, tmp_path / "out.safetensors", to="diffusers", model=model.path)
    assert load_file(tmp_path / "out.safetensors").keys() == {
        f"transformer.{name}.{part}.weight" for name in LAYERS for part in ("lora_A", "lora_B")
    }


@pytest.mark.usefixtures("_added")
def test_the_others_are_still_themselves(pico_path, tmp_path):
    assert open_checkpoint(pico_path).architecture.family.name == "wan"
    factors = {"diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, D)}
    factors["diffusion_model.transformer_blocks.0.attn1.to_q.lora_B.weight"] = torch.ones(D, 4)
    with pytest.raises(MismatchError):
        open_adapter(LoraFile(factors).write(tmp_path), open_checkpoint(pico_path))


@pytest.mark.usefixtures("_added")
def test_fused_layers_and_two_kinds_of_blocks_are_yaml_too(tmp_path):
    generator = torch.Generator().manual_seed(0)
    fused, split = {}, {}
    shapes = {**{f"double.{n}.qkv": (72, 24) for n in range(2)}, **{f"single.{n}.linear1": (120, 24) for n in range(3)}}
    for name, shape in {**shapes, "out.mod": (48, 24)}.items():
        weight = torch.randn(shape, generator=generator)
        fused[name] = weight
        if name == "out.mod":
            split["out.norm.linear"] = torch.cat([weight[24:], weight[:24]])
            continue
        stem = name.replace("double", "transformer_blocks").rpartition(".")[0]
        names = ["to_q", "to_k", "to_v", "proj_mlp"][: 3 if "qkv" in name else 4]
        split |= {f"{stem}.{part}": rows for part, rows in zip(names, weight.split(24), strict=False)}
        if "linear1" in name:
            split[f"{stem}.proj_mlp"] = weight[72:]
    models = {}
    for spelling, weights in (("original", fused), ("diffusers", split)):
        path = tmp_path / f"{spelling}.safetensors"
        save_file({f"{name}.weight": tensor.contiguous() for name, tensor in weights.items()}, path)
        models[spelling] = open_checkpoint(path)
    one, other = models.values()
    assert (one.architecture.family.name, one.naming, other.naming) == ("fluxlike", "original", "diffusers")
    assert (one.architecture.dimensions["blocks"], one.architecture.dimensions["single_blocks"]) == (2, 3)
    assert one.architecture.layers == other.architecture.layers
    assert (one.unknown, one.missing, one.notes) == ((), (), ())
    for name, ref in one.tensors.items():
        assert torch.equal(read_tensor(ref), read_tensor(other.tensors[name])), name

    made = {f"lora_unet_{n.replace('.', '_')}": s for n, s in shapes.items()}
    lora = {f"{stem}.lora_up.weight": torch.randn(s[0], 4, generator=generator) for stem, s in made.items()}
    lora |= {f"{stem}.lora_down.weight": torch.randn(4, s[1], generator=generator) for stem, s in made.items()}
    lora["lora_unet_single_2_linear1.diff_b"] = torch.arange(120.0)
    path = LoraFile(lora).write(tmp_path)
    found = open_adapter(path, other.architecture)
    assert found.layers["single.1.proj_mlp"].shape == (48, 24)
    biases = {item.param: item.load().tolist() for item in found.passthrough}
    assert biases["single.2.proj_mlp.bias"] == list(range(72, 120))
    done = convert(path, tmp_path / "split.safetensors", to="diffusers")
    assert done.load == ("with any program that reads the diffusers profile, at strength 1.0",)
    kept = convert(tmp_path / "split.safetensors", tmp_path / "kept.safetensors", to="same-as-input")
    assert kept.load == ("with any program that loads the input, at strength 1.0",)
    convert(tmp_path / "split.safetensors", tmp_path / "again.safetensors", to="kohya")
    again = load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(again[key], tensor) for key, tensor in lora.items() if "diff_b" not in key)
    assert torch.equal(again["lora_unet_single_2_linear1.diff_b"], lora["lora_unet_single_2_linear1.diff_b"])
