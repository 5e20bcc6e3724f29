"""Scales that are impossible, doubtful, or another LoRA's: refused or said."""

import json

import pytest
import torch
from safetensors.torch import save_file

import makers
from loraport.adapters.parse import open_adapter
from loraport.errors import FileError, NumericalError, UnsupportedError
from makers import KOHYA, PEFT, LoraFile, flat, refusal, same, spell


class TestAlphaTensors:
    @pytest.mark.parametrize("alpha", [1e40, 1e300, 5e-324])
    def test_a_scale_beyond_all_measure(self, alpha, tmp_path, pico):
        alphas = {f"diffusion_model.{name}.alpha": torch.tensor(alpha, dtype=torch.float64) for name in makers.layers()}
        refusal(makers.universal() | alphas, tmp_path, pico, NumericalError)

    @pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
    def test_impossible_values(self, value, tmp_path, pico):
        tensors = spell(makers.factors(), "lora_unet_", flat, *KOHYA, alpha=value)
        assert ".alpha" in refusal(tensors, tmp_path, pico, NumericalError)

    def test_not_one_number(self, tmp_path, pico):
        tensors = spell(makers.factors(), "lora_unet_", flat, *KOHYA, alpha=1.0, alpha_shape=(2,))
        refusal(tensors, tmp_path, pico, FileError)


class TestConfigurations:
    @pytest.mark.parametrize(
        ("more", "word"),
        [
            ({"use_dora": True}, "no magnitudes"),
            ({"peft_type": "GRALORA"}, "GRALORA adapters are not supported"),
            ({"init_lora_weights": "pissa_niter_16"}, "initialisation"),
        ],
    )
    def test_configurations_of_other_adapters(self, more, word, tmp_path, pico):
        message = refusal(makers.universal(), tmp_path, pico, UnsupportedError, config=makers.peft_config(**more))
        assert word in message

    @pytest.mark.parametrize("key", ["miss_block", "shira_weight", "lora_magnitude"])
    def test_an_adapter_of_peft_that_is_not_read_is_no_checkpoint(self, key, tmp_path, pico):
        path = tmp_path / "adapter_model.safetensors"
        save_file({f"base_model.model.blocks.0.self_attn.q.{key}": torch.zeros(4, 24)}, path)
        path.with_name("adapter_config.json").write_text(json.dumps({"peft_type": "MISS", "r": 4}))
        with pytest.raises(UnsupportedError, match="MISS adapters are not supported"):
            open_adapter(tmp_path, pico)

    def test_a_number_in_the_header_is_not_called_a_file_beside(self, tmp_path, pico):
        path = LoraFile(makers.universal(), {"lora_alpha": "8", "lora_rank": "4"}).write(tmp_path)
        assert open_adapter(path, pico).dialect.title.endswith("alpha in the header")

    @pytest.mark.parametrize("kind", ["OFT", "BOFT", "IA3", "VERA"])
    def test_a_configuration_of_another_kind(self, kind, tmp_path, pico):
        """Refused where it must be the file's own; else it belongs to a neighbour, which is said."""
        fields = {"peft_type": kind, "r": 4}
        metadata = {"lora_adapter_metadata": json.dumps(fields)}
        message = refusal(makers.universal(), tmp_path, pico, UnsupportedError, metadata=metadata)
        assert f"it is for {kind}, and the file holds none" in message
        path = LoraFile(makers.universal(), config=fields).write(tmp_path / "beside")
        assert any(f"it is for {kind}" in text for text in open_adapter(path, pico).warnings)

    @pytest.mark.parametrize("text", ["{", "[]", "[" * 20_000, '{"r": "four"}', '{"r": true}'])
    def test_junk_in_the_header(self, text, tmp_path, pico):
        refusal(makers.universal(), tmp_path, pico, FileError, metadata={"lora_adapter_metadata": text})

    def test_a_pattern_that_would_run_for_ever(self, tmp_path, pico):
        config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"((a+)+)+$": 1, ".*" * 20 + "z": 2, "x" * 10_000: 3}}
        path = LoraFile(makers.universal(), {"lora_adapter_metadata": json.dumps(config)}).write(tmp_path)
        assert {layer.scale for layer in open_adapter(path, pico).layers.values()} == {2.0}

    def test_tensors_win_over_the_header(self, tmp_path, pico):
        tensors = spell(makers.factors(), "diffusion_model.", same, *PEFT, alpha=2.0)
        path = LoraFile(tensors, {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 8})}).write(tmp_path)
        adapter = open_adapter(path, pico)
        assert {layer.scale for layer in adapter.layers.values()} == {0.5}
        assert any("not looked at" in warning for warning in adapter.warnings)


@pytest.mark.parametrize(("alpha", "said"), [("4", False), ("4.0", False), ("1.0", True), ("None", False)])
def test_an_alpha_of_the_header_is_a_remark_only_where_it_matters(alpha, said, tmp_path):
    metadata = {"ss_network_dim": "4", "ss_network_alpha": alpha}
    warnings = open_adapter(LoraFile(spell(makers.factors(), "", same, *PEFT), metadata).write(tmp_path)).warnings
    assert any("ss_network_alpha" in text for text in warnings) is said
