"""One update, many spellings: every dialect, suffix and place of alpha gives the same delta."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import makers
import pico
from loraport.adapters.parse import open_adapter
from makers import KOHYA, PEFT, LoraFile, diffusers_name, fastvideo_name, flat, same, spell

RANK = 4
BASE = "base_model.model."


def _conv(tensors: dict) -> dict:
    return {key: t[:, :, None, None] if t.ndim == 2 else t for key, t in tensors.items()}


def _patterns(made) -> LoraFile:
    config = {
        "transformer.r": RANK,
        "transformer.lora_alpha": 8,
        "transformer.alpha_pattern": {"^blocks.0.attn1.to_q": 4, "ffn.net.2": 16},
        "transformer.rank_pattern": {},
    }
    tensors = {}
    for name, pair in made.items():
        alpha = 4 if name == "blocks.0.self_attn.q" else 16 if name.endswith("ffn.2") else 8
        tensors |= spell({name: pair}, "transformer.", diffusers_name, *PEFT, scale=alpha / RANK)
    return LoraFile(tensors, {"lora_adapter_metadata": json.dumps(config), "format": "pt"})


def _by_turns(made) -> LoraFile:
    """Rank and alpha differ from layer to layer."""
    tensors = {}
    for turn, (name, (b, a)) in enumerate(made.items()):
        extra = turn % 3
        b = torch.cat([b, torch.zeros(b.shape[0], extra)], dim=1)
        a = torch.cat([a, torch.ones(extra, a.shape[1])], dim=0)
        alpha = 1.0 + turn
        tensors |= spell({name: (b, a)}, "lora_unet_", flat, *KOHYA, alpha=alpha, scale=alpha / (RANK + extra))
    return LoraFile(tensors)


def _half(made) -> LoraFile:
    return LoraFile(spell(made, "lora_unet_", flat, *KOHYA, alpha=2.0, alpha_dtype=torch.float16, scale=0.5))


# Every prefix and every suffix has its turn in test_formats_page.py.
SPELLINGS = {
    "diffusers": lambda d: LoraFile(spell(d, "transformer.", diffusers_name, *PEFT)),
    "universal": lambda d: LoraFile(spell(d, "diffusion_model.", same, *PEFT)),
    "bare original": lambda d: LoraFile(spell(d, "", same, *PEFT)),
    "bare diffusers": lambda d: LoraFile(spell(d, "", diffusers_name, *PEFT)),
    "kohya, alpha = rank": lambda d: LoraFile(spell(d, "lora_unet_", flat, *KOHYA, alpha=4.0)),
    "kohya, alpha = 1": lambda d: LoraFile(spell(d, "lora_unet_", flat, *KOHYA, alpha=1.0, scale=0.25)),
    "kohya, alpha = 0 means rank": lambda d: LoraFile(spell(d, "lora_unet_", flat, *KOHYA, alpha=0.0)),
    "kohya, alpha in fp16": _half,
    "kohya, rank and alpha by layer": _by_turns,
    "kohya, diffusers names": lambda d: LoraFile(
        spell(d, "lora_unet_", lambda name: flat(diffusers_name(name)), *KOHYA, alpha=2, scale=0.5)
    ),
    "flat prefix, dotted rest": lambda d: LoraFile(spell(d, "lora_unet_", same, *KOHYA, alpha=2.0, scale=0.5)),
    "double underscore": lambda d: LoraFile(spell(d, "lora_unet__", flat, *KOHYA, alpha=2.0, scale=0.5)),
    "lora_transformer_": lambda d: LoraFile(
        spell(d, "lora_transformer_", lambda name: flat(diffusers_name(name)), *KOHYA, alpha=4)
    ),
    "comfy with alpha": lambda d: LoraFile(spell(d, "diffusion_model.", same, *PEFT, alpha=8.0, scale=2.0)),
    "integer alpha of one entry": lambda d: LoraFile(
        spell(d, "model.diffusion_model.", same, *PEFT, alpha=8, alpha_dtype=torch.int64, alpha_shape=(1,), scale=2.0)
    ),
    "lora_alpha": lambda d: LoraFile(
        spell(d, "", fastvideo_name, *PEFT, alpha=8.0, alpha_key=".lora_alpha", alpha_shape=(1,), scale=2.0)
        | {f"{fastvideo_name(name)}.lora_rank": torch.tensor([RANK], dtype=torch.int32) for name in d}
    ),
    "adapter name": lambda d: LoraFile(spell(d, "", same, ".lora_A.default.weight", ".lora_B.default.weight")),
    "another adapter name": lambda d: LoraFile(spell(d, "pipe.dit.", same, ".lora_A.x-1.weight", ".lora_B.x-1.weight")),
    "adapter_config.json": lambda d: LoraFile(
        spell(d, BASE, diffusers_name, *PEFT, scale=2.0), {}, makers.peft_config()
    ),
    "rank-stabilised": lambda d: LoraFile(
        spell(d, BASE + "transformer.", diffusers_name, *PEFT, scale=4.0), {}, makers.peft_config(use_rslora=True)
    ),
    "header, prefixed": lambda d: LoraFile(
        spell(d, "transformer.", diffusers_name, *PEFT, scale=2.0),
        {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})},
    ),
    "header, not prefixed": lambda d: LoraFile(
        spell(d, "", diffusers_name, *PEFT, scale=2.0), {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 8})}
    ),
    "patterns in the header": _patterns,
    "convolution shapes": lambda d: LoraFile(_conv(spell(d, "lora_unet_", flat, *KOHYA, alpha=4.0))),
    "training wrappers": lambda d: LoraFile(
        spell(d, "model._fsdp_wrapped_module.", lambda n: n.replace(".", "._checkpoint_wrapped_module.", 1), *PEFT)
    ),
    "hybrid names": lambda d: LoraFile(
        spell(d, "lycoris_", lambda n: flat(n.replace("attn.o", "attn.to_out.0")), *KOHYA, alpha=4.0)
    ),
    "ss_network_alpha is only talk": lambda d: LoraFile(
        spell(d, "diffusion_model.", same, *PEFT), {"ss_network_alpha": "1.0", "ss_network_dim": "4"}
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_update(spelling, tmp_path, pico):
    made = makers.factors()
    path = SPELLINGS[spelling](made).write(tmp_path)
    adapter = open_adapter(path, pico)
    wanted = makers.deltas(made)
    assert adapter.layers.keys() == wanted.keys()
    for name, layer in adapter.layers.items():
        found = layer.load().dense().double()
        assert (found - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name
    assert sorted(key for layer in adapter.layers.values() for key in layer.keys) == sorted(adapter.keys)
    # The same without a model to look at.
    alone = open_adapter(path)
    assert [(n, x.scale) for n, x in alone.layers.items()] == [(n, x.scale) for n, x in adapter.layers.items()]


def test_a_torch_file_is_read_too(tmp_path, pico):
    made = makers.factors()
    path = LoraFile(spell(made, "diffusion_model.", same, *PEFT)).write(tmp_path, "lora.pt")
    found = open_adapter(path, pico).layers["blocks.1.ffn.2"].load().dense()
    torch.testing.assert_close(found.double(), makers.deltas(made)["blocks.1.ffn.2"], rtol=1e-5, atol=1e-6)


def test_a_file_of_ours_does_not_heed_a_configuration_beside_it(tmp_path, pico):
    made = makers.factors()
    file = LoraFile(spell(made, "diffusion_model.", same, *PEFT), {"loraport.version": "0"}, makers.peft_config())
    assert open_adapter(file.write(tmp_path), pico).layers["blocks.0.ffn.0"].scale == 1.0


def test_a_folder_with_one_adapter(tmp_path, pico):
    LoraFile(spell(makers.factors(), BASE, diffusers_name, *PEFT), {}, makers.peft_config()).write(
        tmp_path, "adapter_model.safetensors"
    )
    adapter = open_adapter(tmp_path, pico)
    assert {layer.scale for layer in adapter.layers.values()} == {2.0}
    assert {layer.scale_source for layer in adapter.layers.values()} == {"adapter_config.json beside the file"}
    assert adapter.dialect.alpha == "config"


class TestCarried:
    def test_biases_norms_and_modulation(self, tmp_path, pico):
        extra = {
            "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(24),
            "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.ones(24),
            "diffusion_model.blocks.0.norm3.diff_b": torch.ones(24),
            "diffusion_model.blocks.0.diff_m": torch.ones(1, 6, 24),
            "diffusion_model.head.modulation.diff": torch.ones(1, 2, 24),
            "diffusion_model.patch_embedding.diff": torch.ones(24, 4, 1, 2, 2),
            "lora_te_text_model_x.lora_down.weight": torch.ones(2, 3),
        }
        adapter = open_adapter(LoraFile(makers.universal() | extra).write(tmp_path), pico)
        assert {(item.param, item.kind) for item in adapter.passthrough} == {
            ("blocks.0.self_attn.q.bias", "diff_b"),
            ("blocks.0.self_attn.norm_q.weight", "diff"),
            ("blocks.0.norm3.bias", "diff_b"),
            ("blocks.0.modulation", "diff_m"),
            ("head.modulation", "diff"),
            ("patch_embedding.weight", "diff"),
            ("lora_te_text_model_x.lora_down.weight", "text_encoder"),
        }
        assert len(adapter.layers) == 20

    def test_diffusers_norm2_is_the_norm3_of_the_original(self, tmp_path, pico):
        extra = {"transformer.blocks.0.norm2.diff": torch.ones(24)}
        tensors = spell(makers.factors(), "transformer.", diffusers_name, *PEFT) | extra
        adapter = open_adapter(LoraFile(tensors).write(tmp_path), pico)
        assert adapter.passthrough[0].param == "blocks.0.norm3.weight"

    def test_a_whole_matrix_is_a_layer(self, tmp_path, pico):
        matrix = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
        adapter = open_adapter(
            LoraFile(makers.universal() | {"diffusion_model.head.head.diff": matrix}).write(tmp_path), pico
        )
        layer = adapter.layers["head.head"]
        assert (layer.kind, layer.rank) == ("diff", 16)
        torch.testing.assert_close(layer.load().dense(), matrix)
        assert adapter.max_rank == 4

    def test_the_bias_of_a_scaled_lora_is_scaled(self, tmp_path, pico):
        tensors = spell(makers.factors(), BASE, diffusers_name, *PEFT)
        tensors[BASE + "blocks.0.attn1.to_q.lora_B.bias"] = torch.ones(24)
        adapter = open_adapter(LoraFile(tensors, {}, makers.peft_config(lora_bias=True)).write(tmp_path), pico)
        (bias,) = adapter.passthrough
        assert (bias.kind, bias.scale) == ("lora_bias", 2.0)
        torch.testing.assert_close(bias.load(), torch.full((24,), 2.0))
        torch.testing.assert_close(adapter.scaled(2.0).passthrough[0].load(), torch.full((24,), 4.0))


TWO_THREADS = """
import sys, threading
from loraport.adapters.parse import open_adapter

begun, ended, errors = threading.Event(), threading.Event(), []
class Slow:
    def find_spec(self, name, path, target=None):
        if name == "loraport.adapters.loading.lora":
            begun.set()
            ended.wait(1)  # whoever is to wait for this has asked by then, and whoever does not wait has failed

layer = next(iter(open_adapter(sys.argv[1]).layers.values()))
def load():
    try:
        layer.load()
    except Exception as error:
        errors.append(error)

sys.meta_path.insert(0, Slow())
first = threading.Thread(target=load)
first.start()
begun.wait()
load_in_another = threading.Thread(target=lambda: (load(), ended.set()))
load_in_another.start()
for thread in (first, load_in_another):
    thread.join()
print(errors)
"""


def test_two_threads_that_are_the_first_to_load_an_update(tmp_path):
    """Each waits until all kinds are there, whichever of them loads the modules."""
    save_file(pico.lora(3), tmp_path / "lora.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", TWO_THREADS, str(tmp_path / "lora.safetensors")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
