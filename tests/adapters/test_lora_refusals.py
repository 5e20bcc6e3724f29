"""LoRA files with something wrong or doubtful: named, refused, or left out by request and listed."""

import pytest
import torch

import makers
from loraport.adapters.parse import open_adapter
from loraport.errors import MismatchError, NumericalError, UnmatchedKeysError, UnsupportedError, UsageError
from makers import PEFT, LoraFile, diffusers_name, refusal, same, spell


class TestBadKeys:
    Q = "diffusion_model.blocks.0.self_attn.q.lora_A.weight"

    def test_a_renamed_half_names_the_key_and_the_nearest(self, tmp_path, pico):
        tensors = makers.universal()
        tensors["diffusion_model.blocks.0.self_attn.qq.lora_A.weight"] = tensors.pop(self.Q)
        message = refusal(tensors, tmp_path, pico, UnmatchedKeysError)
        assert f"nearest known: {self.Q}" in message
        assert f"its other half {self.Q} is missing" in message

    def test_a_foreign_key(self, tmp_path, pico):
        message = refusal(makers.universal() | {"mystery": torch.zeros(3)}, tmp_path, pico, UnmatchedKeysError)
        assert "1 of 41 keys" in message
        assert "mystery" in message

    def test_all_keys_of_an_unknown_kind(self, tmp_path, pico):
        message = refusal({"blocks.0.self_attn.quu.lora_A.weight": torch.zeros(4, 24)}, tmp_path, pico, MismatchError)
        assert "blocks.0.self_attn.q" in message

    def test_an_alpha_alone(self, tmp_path, pico):
        tensors = makers.universal() | {"diffusion_model.head.head.alpha": torch.tensor(1.0)}
        assert "head.head.alpha" in refusal(tensors, tmp_path, pico, UnmatchedKeysError)

    def test_allow_partial_leaves_them_out_and_lists_them(self, tmp_path, pico):
        tensors = makers.universal() | {"mystery": torch.zeros(3)}
        tensors.pop(self.Q)
        adapter = open_adapter(LoraFile(tensors).write(tmp_path), pico, allow_partial=True)
        assert set(adapter.dropped) == {"mystery", self.Q.replace("lora_A", "lora_B")}
        assert len(adapter.layers) == 19
        assert any("left out" in warning for warning in adapter.warnings)

    def test_the_same_layer_twice(self, tmp_path, pico):
        tensors = makers.universal() | spell(makers.factors(), "transformer.", diffusers_name, *PEFT)
        assert "occurs twice" in refusal(tensors, tmp_path, pico, MismatchError)

    def test_factors_that_do_not_fit(self, tmp_path, pico):
        tensors = makers.universal() | {self.Q: torch.zeros(3, 24)}
        assert "do not fit each other" in refusal(tensors, tmp_path, pico, MismatchError)

    def test_layers_that_do_not_fit_each_other(self, tmp_path, pico):
        tensors = makers.universal() | {self.Q.replace("lora_A", "lora_B"): torch.zeros(26, 4)}
        message = refusal(tensors, tmp_path, pico, MismatchError)
        assert "sizes contradict each other at blocks.0.self_attn.q" in message
        assert "try:   the file is damaged" in message
        adapter = open_adapter(LoraFile(tensors).write(tmp_path), pico, drop=r"blocks\.0\.self_attn\.q")
        assert len(adapter.layers) == 19

    def test_two_adapter_names(self, tmp_path, pico):
        made = makers.factors()
        tensors = spell(made, "", same, ".lora_A.one.weight", ".lora_B.one.weight")
        tensors |= spell(made, "", same, ".lora_A.two.weight", ".lora_B.two.weight")
        path = LoraFile(tensors).write(tmp_path)
        with pytest.raises(UsageError, match="--adapter one or --adapter two"):
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
    "OFT of early LyCORIS": "lora_unet_blocks_0_ffn_0.oft_diag",
    "or in parts": "lora_unet_blocks_0_ffn_0.oft_blocks.0",
    "GLoRA with a Tucker core": "lora_unet_patch_embedding.bm.weight",
    "LoKr with a Tucker core of its first matrix": "lycoris_patch_embedding.lokr_t1",
    "T-LoRA": "lycoris_blocks_0_attn1_to_q.lambda_layer",
    "AdaLoRA": "base_model.model.blocks.0.attn1.to_q.lora_E",
    "Stand-In": "diffusion_model.blocks.0.self_attn.q_loras.down.weight",
    "a weight in another shape": "diffusion_model.patch_embedding.reshape_weight",
    "LoRA on an embedding": "base_model.model.text_embedding.lora_embedding_A",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_adapters_are_refused_by_name(kind, tmp_path, pico):
    message = refusal(makers.universal() | {REFUSED[kind]: torch.zeros(4, 4)}, tmp_path, pico, UnsupportedError)
    assert kind in message
    assert REFUSED[kind] in message


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ({"diffusion_model.blocks.0.ffn.0.lora_A.weight_scale_2": torch.zeros(4, 4)}, "nvfp4"),
        ({"diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.zeros(4, 24, dtype=torch.int8)}, "int8"),
    ],
)
def test_factors_that_cannot_be_read_are_refused_by_name(extra, word, tmp_path, pico):
    message = refusal(makers.universal() | extra, tmp_path, pico, UnsupportedError)
    assert word in message
    assert "blocks.0.ffn.0.lora_A.weight" in message


@pytest.mark.parametrize("name", ["a1", "b2", "magnitude", "rescale", "default"])
def test_an_adapter_may_be_called_as_parts_of_other_kinds_are(name, tmp_path, pico):
    pair = (f".lora_A.{name}.weight", f".lora_B.{name}.weight")
    adapter = open_adapter(LoraFile(spell(makers.factors(), "diffusion_model.", same, *pair)).write(tmp_path), pico)
    assert len(adapter.layers) == 20


WORDS = {
    "base_model.model.heads.modules_to_save.default.weight": "of no module that is known here",
    "base_model.model.heads.weight": "only of a module that is known",
    "base_model.model.blocks.0.self_attn.q.base_layer.weight": "a parameter of the model itself",
}


@pytest.mark.parametrize("key", WORDS)
def test_what_peft_saves_beside_a_lora_has_its_own_words_and_can_be_left_out(key, tmp_path, pico):
    path = LoraFile(makers.universal() | {key: torch.zeros(16, 24)}).write(tmp_path)
    with pytest.raises(UnmatchedKeysError, match="--allow-partial") as caught:
        open_adapter(path, pico)
    assert WORDS[key] in caught.value.message
    assert open_adapter(path, pico, allow_partial=True).dropped == (key,)


class TestNumberFormats:
    @pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
    @pytest.mark.parametrize(
        ("key", "shape"),
        [
            ("blocks.0.self_attn.q.lora_A.weight", (4, 24)),
            ("blocks.0.norm3.diff", (24,)),
            ("blocks.0.self_attn.q.diff_b", (24,)),
            ("head.head.diff", (16, 24)),
        ],
    )
    def test_integers_are_no_factors_and_no_changes(self, dtype, key, shape, tmp_path, pico):
        key = f"diffusion_model.{key}"
        tensors = makers.universal() | {key: torch.ones(shape).to(dtype)}
        message = refusal(tensors, tmp_path, pico, UnsupportedError)
        assert key in message
        assert "try:" in message

    def test_float64_is_read(self, tmp_path, pico):
        path = LoraFile({key: tensor.double() for key, tensor in makers.universal().items()}).write(tmp_path)
        found = open_adapter(path, pico).layers["blocks.0.ffn.0"].load().dense().double()
        torch.testing.assert_close(found, makers.deltas(makers.factors())["blocks.0.ffn.0"], rtol=1e-5, atol=1e-6)

    def test_float64_beyond_float32_is_refused_by_name(self, tmp_path, pico):
        tensors = {key: tensor.double() * 1e200 for key, tensor in makers.universal().items()}
        layer = open_adapter(LoraFile(tensors).write(tmp_path), pico).layers["blocks.0.ffn.0"]
        with pytest.raises(NumericalError, match=r"blocks\.0\.ffn\.0"):
            layer.load()


class TestMany:
    """Files made to keep a reader busy: refused in one look, with the count."""

    def test_halves(self, tmp_path, pico):
        tensors = {f"diffusion_model.blocks.{n}.self_attn.q.lora_A.weight": torch.zeros(4, 24) for n in range(4_000)}
        assert "4,000 of 4,000 keys" in refusal(tensors, tmp_path, pico, UnmatchedKeysError)

    def test_unknown_keys(self, tmp_path, pico):
        tensors = {f"diffusion_model.blocks.{n}.attn.strange.lora_A.weight": torch.zeros(1, 1) for n in range(4_000)}
        message = refusal(makers.universal() | tensors, tmp_path, pico, UnmatchedKeysError)
        assert "4,000 of 4,040 keys" in message
        assert "and 3997 more" in message


class TestOtherFiles:
    def test_a_checkpoint_given_as_a_lora(self, pico, pico_path):
        with pytest.raises(MismatchError, match="this file is a checkpoint"):
            open_adapter(pico_path, pico)

    @pytest.mark.parametrize(
        ("key", "title"),
        [
            ("transformer.double_blocks.0.img_mlp.fc1.lora_A.weight", "HunyuanVideo"),
            ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "a Stable Diffusion UNet"),
            ("lora_unet_single_blocks_0_modulation_lin.lora_down.weight", "FLUX"),
            ("diffusion_model.transformer_blocks.0.attn2.to_q.lora_A.weight", "LTX"),
        ],
    )
    def test_another_family_in_one_sentence(self, key, title, tmp_path, pico):
        message = refusal({key: torch.zeros(4, 24)}, tmp_path, pico, MismatchError)
        assert message.startswith(f"This LoRA is for {title}")
        assert "the source is Wan (2 blocks, width 24)" in message

    def test_another_family_than_the_one_asked_for(self, tmp_path):
        with pytest.raises(MismatchError) as refused:
            open_adapter(LoraFile(makers.universal()).write(tmp_path), architecture="z_image")
        message = str(refused.value)
        assert message.startswith("This LoRA is for Wan (2 blocks, width 24), one for Z-Image is needed.")
        assert "give a LoRA for Z-Image" in message

    def test_vace_in_names_of_wan2gp(self, tmp_path, pico):
        tensors = spell(makers.factors(), "", lambda name: name.replace(".0.", ".0.vace.", 1), *PEFT)
        tensors = {key: tensor for key, tensor in tensors.items() if ".vace." in key}
        message = refusal(tensors, tmp_path, pico, MismatchError)
        assert message.startswith("This LoRA is for Wan VACE in names of Wan2GP")
        message = refusal(makers.universal() | tensors, tmp_path, pico, UnmatchedKeysError)
        assert "a part of Wan VACE in names of Wan2GP" in message

    def test_every_family_that_it_may_be_for(self, tmp_path, pico):
        """As many double blocks as FLUX.1, of a width that no family is known by."""
        sides = {f"lora_unet_double_blocks_{n}_img_attn_proj": (24, 24) for n in range(19)}
        sides |= {f"lora_unet_single_blocks_{n}_linear1": (168, 24) for n in range(38)}
        tensors = {f"{name}.lora_down.weight": torch.zeros(2, side) for name, (_, side) in sides.items()}
        tensors |= {f"{name}.lora_up.weight": torch.zeros(side, 2) for name, (side, _) in sides.items()}
        assert "FLUX.1" in refusal(tensors, tmp_path, pico, MismatchError).partition(",")[0]

    def test_another_size_in_one_sentence(self, tmp_path, pico):
        tensors = {
            "diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.zeros(1, 5120),
            "diffusion_model.blocks.0.ffn.0.lora_B.weight": torch.zeros(13824, 1),
        }
        message = refusal(tensors, tmp_path, pico, MismatchError)
        assert message.startswith(
            "This LoRA is for Wan 14B (1 block, width 5120), the source is Wan (2 blocks, width 24)."
        )

    def test_more_blocks(self, tmp_path, pico):
        tensors = {
            "diffusion_model.blocks.7.self_attn.q.lora_A.weight": torch.zeros(1, 24),
            "diffusion_model.blocks.7.self_attn.q.lora_B.weight": torch.zeros(24, 1),
        }
        assert "blocks.7.self_attn.q" in refusal(tensors, tmp_path, pico, MismatchError)

    def test_image_layers_on_a_text_model(self, tmp_path, pico):
        tensors = spell(makers.factors(image=True), "diffusion_model.", same, *PEFT)
        message = refusal(tensors, tmp_path, pico, UnmatchedKeysError)
        assert "k_img" in message
        assert "8 of 48 keys" in message

    def test_nan_in_a_factor_is_found_when_it_is_read(self, tmp_path, pico):
        tensors = makers.universal()
        tensors["diffusion_model.blocks.1.ffn.2.lora_B.weight"][3, 2] = float("nan")
        adapter = open_adapter(LoraFile(tensors).write(tmp_path), pico)
        with pytest.raises(NumericalError, match=r"blocks.1.ffn.2.lora_B.weight(.|\n)*\[3, 2\]"):
            adapter.layers["blocks.1.ffn.2"].load()


def test_unmatched_keys_are_named_once_a_module(tmp_path):
    tensors = {key.replace(".q.", ".queries."): t for key, t in spell(makers.factors(), "", same, *PEFT).items()}
    with pytest.raises(UnmatchedKeysError, match="8 of 40 keys") as caught:
        open_adapter(LoraFile(tensors).write(tmp_path))
    assert caught.value.message.count("queries") == 3
    assert "and 5 more" in caught.value.message
