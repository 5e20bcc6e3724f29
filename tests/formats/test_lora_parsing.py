"""One update, many spellings: every dialect, suffix and place of alpha gives the same delta."""

import json

import makers
import pytest
import torch
from makers import LoraFile, diffusers_name, fastvideo_name, flat, same, spell

from loraport.errors import FileError, MismatchError, NumericalError, UnmatchedKeysError, UnsupportedError, UsageError
from loraport.formats.adapter import open_adapter

RANK = 4
PEFT = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")
BASE = "base_model.model."


def _config(**more) -> dict:
    return {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "use_rslora": False, **more}


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
    "down/up without alpha": lambda d: LoraFile(spell(d, "diffusion_model.", same, *KOHYA)),
    "integer alpha of one entry": lambda d: LoraFile(
        spell(d, "model.diffusion_model.", same, *PEFT, alpha=8, alpha_dtype=torch.int64, alpha_shape=(1,), scale=2.0)
    ),
    "lora_alpha": lambda d: LoraFile(
        spell(d, "", fastvideo_name, *PEFT, alpha=8.0, alpha_key=".lora_alpha", alpha_shape=(1,), scale=2.0)
        | {f"{fastvideo_name(name)}.lora_rank": torch.tensor([RANK], dtype=torch.int32) for name in d}
    ),
    "adapter name": lambda d: LoraFile(spell(d, "", same, ".lora_A.default.weight", ".lora_B.default.weight")),
    "another adapter name": lambda d: LoraFile(spell(d, "pipe.dit.", same, ".lora_A.x-1.weight", ".lora_B.x-1.weight")),
    "adapter_config.json": lambda d: LoraFile(spell(d, BASE, diffusers_name, *PEFT, scale=2.0), {}, _config()),
    "rank-stabilised": lambda d: LoraFile(
        spell(d, BASE + "transformer.", diffusers_name, *PEFT, scale=4.0), {}, _config(use_rslora=True)
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
    "no .weight": lambda d: LoraFile(spell(d, "diffusion_model.", same, ".lora_A", ".lora_B")),
    "_lora.down": lambda d: LoraFile(spell(d, "unet.", diffusers_name, "_lora.down.weight", "_lora.up.weight")),
    ".lora.down": lambda d: LoraFile(spell(d, "unet.", diffusers_name, ".lora.down.weight", ".lora.up.weight")),
    ".lora_linear_layer": lambda d: LoraFile(
        spell(d, "dit.", same, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
    ),
    "generator.model.": lambda d: LoraFile(spell(d, "generator.model.", same, *KOHYA, alpha=8.0, scale=2.0)),
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
    file = LoraFile(spell(made, "diffusion_model.", same, *PEFT), {"loraport.version": "0"}, _config())
    assert open_adapter(file.write(tmp_path), pico).layers["blocks.0.ffn.0"].scale == 1.0


def test_a_folder_with_one_adapter(tmp_path, pico):
    LoraFile(spell(makers.factors(), BASE, diffusers_name, *PEFT), {}, _config()).write(
        tmp_path, "adapter_model.safetensors"
    )
    adapter = open_adapter(tmp_path, pico)
    assert {layer.scale for layer in adapter.layers.values()} == {2.0}
    assert {layer.scale_source for layer in adapter.layers.values()} == {"adapter_config.json beside the file"}
    assert adapter.dialect.alpha == "config"


def _universal() -> dict:
    return spell(makers.factors(), "diffusion_model.", same, *PEFT)


def _refusal(tensors: dict, tmp_path, pico, error: type, *, metadata: dict | None = None, config: dict | None = None):
    path = LoraFile(tensors, metadata or {}, config).write(tmp_path)
    with pytest.raises(error) as caught:
        open_adapter(path, pico)
    assert str(path.parent) in caught.value.message
    return caught.value.message


class TestBadKeys:
    Q = "diffusion_model.blocks.0.self_attn.q.lora_A.weight"

    def test_a_renamed_half_names_the_key_and_the_nearest(self, tmp_path, pico):
        tensors = _universal()
        tensors["diffusion_model.blocks.0.self_attn.qq.lora_A.weight"] = tensors.pop(self.Q)
        message = _refusal(tensors, tmp_path, pico, UnmatchedKeysError)
        assert f"nearest known: {self.Q}" in message
        assert f"its other half {self.Q} is missing" in message

    def test_a_foreign_key(self, tmp_path, pico):
        message = _refusal(_universal() | {"mystery": torch.zeros(3)}, tmp_path, pico, UnmatchedKeysError)
        assert "1 of 41 keys" in message
        assert "mystery" in message

    def test_all_keys_of_an_unknown_kind(self, tmp_path, pico):
        message = _refusal({"blocks.0.self_attn.quu.lora_A.weight": torch.zeros(4, 24)}, tmp_path, pico, MismatchError)
        assert "blocks.0.self_attn.q" in message

    def test_an_alpha_alone(self, tmp_path, pico):
        tensors = _universal() | {"diffusion_model.head.head.alpha": torch.tensor(1.0)}
        assert "head.head.alpha" in _refusal(tensors, tmp_path, pico, UnmatchedKeysError)

    def test_allow_partial_leaves_them_out_and_lists_them(self, tmp_path, pico):
        tensors = _universal() | {"mystery": torch.zeros(3)}
        tensors.pop(self.Q)
        adapter = open_adapter(LoraFile(tensors).write(tmp_path), pico, allow_partial=True)
        assert set(adapter.dropped) == {"mystery", self.Q.replace("lora_A", "lora_B")}
        assert len(adapter.layers) == 19
        assert any("left out" in warning for warning in adapter.warnings)

    def test_the_same_layer_twice(self, tmp_path, pico):
        tensors = _universal() | spell(makers.factors(), "transformer.", diffusers_name, *PEFT)
        assert "occurs twice" in _refusal(tensors, tmp_path, pico, MismatchError)

    def test_factors_that_do_not_fit(self, tmp_path, pico):
        tensors = _universal() | {self.Q: torch.zeros(3, 24)}
        assert "do not fit each other" in _refusal(tensors, tmp_path, pico, MismatchError)

    def test_two_adapter_names(self, tmp_path, pico):
        made = makers.factors()
        tensors = spell(made, "", same, ".lora_A.one.weight", ".lora_B.one.weight")
        tensors |= spell(made, "", same, ".lora_A.two.weight", ".lora_B.two.weight")
        path = LoraFile(tensors).write(tmp_path)
        with pytest.raises(UsageError, match="adapter=one"):
            open_adapter(path, pico)
        chosen = open_adapter(path, pico, adapter="two")
        assert len(chosen.layers) == 20
        assert len(chosen.dropped) == 40

    @pytest.mark.parametrize(
        ("high", "low"),
        [("diffusion_model.transformer_1.", "diffusion_model.transformer_2."), ("transformer.", "transformer_2.")],
    )
    def test_two_experts_in_one_file(self, high, low, tmp_path, pico):
        made = makers.factors()
        name = diffusers_name if high == "transformer." else same
        path = LoraFile(spell(made, high, name, *PEFT) | spell(made, low, name, *PEFT)).write(tmp_path)
        with pytest.raises(UsageError, match="high, low"):
            open_adapter(path, pico)
        for expert, prefix in (("high", high), ("low", low)):
            adapter = open_adapter(path, pico, expert=expert)
            assert len(adapter.layers) == 20
            assert all(key.startswith(prefix) for layer in adapter.layers.values() for key in layer.keys)

    def test_drop_by_key_or_canonical_name(self, tmp_path, pico):
        path = LoraFile(spell(makers.factors(), "transformer.", diffusers_name, *PEFT)).write(tmp_path)
        adapter = open_adapter(path, pico, drop=r"self_attn\.|ffn\.net\.2")
        assert len(adapter.layers) == 10
        assert len(adapter.dropped) == 20
        with pytest.raises(UsageError):
            open_adapter(path, pico, drop=".")


REFUSED = {
    "LoHa": "lora_unet_blocks_0_ffn_0.hada_w1_a",
    "LoKr": "lycoris_blocks_0_ffn_0.lokr_w1",
    "DoRA": "diffusion_model.blocks.0.ffn.0.dora_scale",
    "DoRA ": "diffusion_model.blocks.0.ffn.0.lora_magnitude_vector",
    "GLoRA": "lora_unet_blocks_0_ffn_0.a1.weight",
    "OFT": "lora_unet_blocks_0_ffn_0.oft_blocks",
    "Tucker": "lora_unet_patch_embedding.lora_mid.weight",
    "Stand-In": "diffusion_model.blocks.0.self_attn.q_loras.down.weight",
    "split LoRA": "lora_unet_blocks_0_ffn_0.lora_up.0.weight",
    "replaced weights": "diffusion_model.patch_embedding.set_weight",
    "scaled fp8": "diffusion_model.blocks.0.ffn.0.scale_weight",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_adapters_are_refused_by_name(kind, tmp_path, pico):
    message = _refusal(_universal() | {REFUSED[kind]: torch.zeros(4, 4)}, tmp_path, pico, UnsupportedError)
    assert kind.strip() in message
    assert REFUSED[kind] in message


def test_a_lora_on_the_convolution_is_refused(tmp_path, pico):
    conv = {
        "diffusion_model.patch_embedding.lora_A.weight": torch.zeros(2, 4, 1, 2, 2),
        "diffusion_model.patch_embedding.lora_B.weight": torch.zeros(24, 2, 1, 1, 1),
    }
    assert "patch_embedding" in _refusal(_universal() | conv, tmp_path, pico, UnsupportedError)


class TestAlpha:
    @pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
    def test_impossible_values(self, value, tmp_path, pico):
        tensors = spell(makers.factors(), "lora_unet_", flat, *KOHYA, alpha=value)
        assert ".alpha" in _refusal(tensors, tmp_path, pico, NumericalError)

    def test_not_one_number(self, tmp_path, pico):
        tensors = spell(makers.factors(), "lora_unet_", flat, *KOHYA, alpha=1.0, alpha_shape=(2,))
        _refusal(tensors, tmp_path, pico, FileError)

    def test_a_stale_rank_in_the_header(self, tmp_path, pico):
        metadata = {"lora_adapter_metadata": json.dumps({"r": 16, "lora_alpha": 16})}
        message = _refusal(_universal(), tmp_path, pico, MismatchError, metadata=metadata)
        assert "rank 16 stated, rank 4 found" in message

    @pytest.mark.parametrize(
        ("more", "word"),
        [
            ({"use_dora": True}, "DoRA"),
            ({"peft_type": "LOHA"}, "LOHA"),
            ({"init_lora_weights": "pissa_niter_16"}, "initialisation"),
        ],
    )
    def test_configurations_of_other_adapters(self, more, word, tmp_path, pico):
        message = _refusal(_universal(), tmp_path, pico, UnsupportedError, config=_config(**more))
        assert word in message

    @pytest.mark.parametrize("text", ["{", "[]", "[" * 20_000, '{"r": "four"}', '{"r": true}'])
    def test_junk_in_the_header(self, text, tmp_path, pico):
        _refusal(_universal(), tmp_path, pico, FileError, metadata={"lora_adapter_metadata": text})

    def test_a_pattern_that_would_run_for_ever(self, tmp_path, pico):
        config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"((a+)+)+$": 1, "(": 2, "x" * 10_000: 3}}
        path = LoraFile(_universal(), {"lora_adapter_metadata": json.dumps(config)}).write(tmp_path)
        assert {layer.scale for layer in open_adapter(path, pico).layers.values()} == {2.0}

    def test_tensors_win_over_the_header(self, tmp_path, pico):
        tensors = spell(makers.factors(), "diffusion_model.", same, *PEFT, alpha=2.0)
        path = LoraFile(tensors, {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 8})}).write(tmp_path)
        adapter = open_adapter(path, pico)
        assert {layer.scale for layer in adapter.layers.values()} == {0.5}
        assert any("not looked at" in warning for warning in adapter.warnings)


class TestOtherFiles:
    def test_a_checkpoint_given_as_a_lora(self, pico, pico_path):
        with pytest.raises(MismatchError, match="this file is a checkpoint"):
            open_adapter(pico_path, pico)

    @pytest.mark.parametrize(
        ("key", "title"),
        [
            ("transformer.double_blocks.0.img_attn_qkv.lora_A.weight", "HunyuanVideo"),
            ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "a Stable Diffusion UNet"),
            ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "FLUX"),
            ("diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight", "LTX"),
        ],
    )
    def test_another_family_in_one_sentence(self, key, title, tmp_path, pico):
        message = _refusal({key: torch.zeros(4, 24)}, tmp_path, pico, MismatchError)
        assert message.startswith(
            f"This LoRA is for {title}" if title != "Stable Diffusion" else "This LoRA is for a St"
        )
        assert "the source is Wan (2 blocks, width 24)" in message

    def test_another_size_in_one_sentence(self, tmp_path, pico):
        tensors = {
            "diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.zeros(1, 5120),
            "diffusion_model.blocks.0.ffn.0.lora_B.weight": torch.zeros(13824, 1),
        }
        message = _refusal(tensors, tmp_path, pico, MismatchError)
        assert message.startswith(
            "This LoRA is for Wan 14B (1 block, width 5120), the source is Wan (2 blocks, width 24)."
        )

    def test_more_blocks(self, tmp_path, pico):
        tensors = {
            "diffusion_model.blocks.7.self_attn.q.lora_A.weight": torch.zeros(1, 24),
            "diffusion_model.blocks.7.self_attn.q.lora_B.weight": torch.zeros(24, 1),
        }
        assert "blocks.7.self_attn.q" in _refusal(tensors, tmp_path, pico, MismatchError)

    def test_image_layers_on_a_text_model(self, tmp_path, pico):
        tensors = spell(makers.factors(image=True), "diffusion_model.", same, *PEFT)
        message = _refusal(tensors, tmp_path, pico, UnmatchedKeysError)
        assert "k_img" in message
        assert "8 of 48 keys" in message

    def test_nan_in_a_factor_is_found_when_it_is_read(self, tmp_path, pico):
        tensors = _universal()
        tensors["diffusion_model.blocks.1.ffn.2.lora_B.weight"][3, 2] = float("nan")
        adapter = open_adapter(LoraFile(tensors).write(tmp_path), pico)
        with pytest.raises(NumericalError, match=r"blocks.1.ffn.2.lora_B.weight(.|\n)*\[3, 2\]"):
            adapter.layers["blocks.1.ffn.2"].load()


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
        adapter = open_adapter(LoraFile(_universal() | extra).write(tmp_path), pico)
        assert {(item.param, item.kind) for item in adapter.carried} == {
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
        assert adapter.carried[0].param == "blocks.0.norm3.weight"

    def test_a_whole_matrix_is_a_layer(self, tmp_path, pico):
        matrix = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
        adapter = open_adapter(
            LoraFile(_universal() | {"diffusion_model.head.head.diff": matrix}).write(tmp_path), pico
        )
        layer = adapter.layers["head.head"]
        assert (layer.kind, layer.rank) == ("diff", 16)
        torch.testing.assert_close(layer.load().dense(), matrix)
        assert adapter.max_rank == 4

    def test_the_bias_of_a_scaled_lora_is_scaled(self, tmp_path, pico):
        tensors = spell(makers.factors(), BASE, diffusers_name, *PEFT)
        tensors[BASE + "blocks.0.attn1.to_q.lora_B.bias"] = torch.ones(24)
        adapter = open_adapter(LoraFile(tensors, {}, _config(lora_bias=True)).write(tmp_path), pico)
        (bias,) = adapter.carried
        assert (bias.kind, bias.scale) == ("lora_bias", 2.0)
        torch.testing.assert_close(bias.load(), torch.full((24,), 2.0))


@pytest.mark.parametrize(("alpha", "said"), [("4", False), ("4.0", False), ("1.0", True), ("None", False)])
def test_an_alpha_of_the_header_is_a_remark_only_where_it_matters(alpha, said, tmp_path):
    metadata = {"ss_network_dim": "4", "ss_network_alpha": alpha}
    warnings = open_adapter(LoraFile(spell(makers.factors(), "", same, *PEFT), metadata).write(tmp_path)).warnings
    assert any("ss_network_alpha" in text for text in warnings) is said


def test_unmatched_keys_are_named_once_a_module(tmp_path):
    tensors = {key.replace(".q.", ".queries."): t for key, t in spell(makers.factors(), "", same, *PEFT).items()}
    with pytest.raises(UnmatchedKeysError, match="8 of 40 keys") as caught:
        open_adapter(LoraFile(tensors).write(tmp_path))
    assert caught.value.message.count("queries") == 3
    assert "and 5 more" in caught.value.message
