"""The scale stated by hand, the strength, and what is said of where a scale came from."""

import json

import pytest
import torch
from typer.testing import CliRunner

import makers
from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.convert import convert
from loraport.adapters.parse import open_adapter
from loraport.cli.main import app
from loraport.errors import FileError, MismatchError, NumericalError, UnsupportedError, UsageError
from makers import KOHYA, PEFT, LoraFile, flat, same, spell

Q = "blocks.0.self_attn.q"


def _dense(adapter: LoraAdapter) -> dict[str, torch.Tensor]:
    return {name: layer.load().dense().double() for name, layer in adapter.layers.items()}


def _kohya(alpha: float | None) -> LoraFile:
    tensors = spell(makers.factors(), "lora_unet_", flat, *KOHYA)
    if alpha is not None:
        tensors |= {f"lora_unet_{flat(name)}.alpha": torch.tensor(alpha) for name in makers.layers()}
    return LoraFile(tensors)


class TestByHand:
    @pytest.mark.parametrize("alpha", [None, 1.0, float("nan"), -1.0])
    def test_it_wins_over_alpha_tensors_and_over_nothing(self, alpha, tmp_path, pico):
        adapter = open_adapter(_kohya(alpha).write(tmp_path), pico, scale=3.0)
        for name, dense in makers.deltas(makers.factors()).items():
            torch.testing.assert_close(_dense(adapter)[name], 3 * dense, rtol=1e-5, atol=1e-6)
        assert {layer.scale_source for layer in adapter.layers.values()} == {"stated by hand"}
        assert "the scale 3 was taken from: stated by hand" in adapter.warnings

    @pytest.mark.parametrize("config", [{"r": 16, "lora_alpha": 64}, "no JSON at all"])
    def test_it_wins_over_a_configuration_that_contradicts_the_file(self, config, tmp_path, pico):
        path = LoraFile(makers.universal()).write(tmp_path)
        (path.parent / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        assert {layer.scale for layer in open_adapter(path, pico, scale=2.0).layers.values()} == {2.0}

    def test_an_outdated_rank_in_the_header_can_be_overridden_and_the_message_says_so(self, tmp_path, pico):
        header = {"lora_adapter_metadata": json.dumps({"transformer.r": 16, "transformer.lora_alpha": 16})}
        tensors = spell(makers.factors(), "transformer.", makers.diffusers_name, *PEFT)
        path = LoraFile(tensors, header).write(tmp_path)
        with pytest.raises(
            MismatchError, match="rank 16 in lora_adapter_metadata in the header, rank 4 found"
        ) as caught:
            open_adapter(path, pico)
        assert "--scale" in caught.value.fix
        assert open_adapter(path, pico, scale=1.0).layers[Q].scale == 1.0

    @pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-45, 1e-300, 1e38])
    def test_what_is_no_scale_is_refused(self, scale, tmp_path):
        with pytest.raises(UsageError, match="scale"):
            open_adapter(_kohya(None).write(tmp_path), scale=scale)

    @pytest.mark.parametrize("to", ["universal", "kohya", "same-as-input"])
    def test_a_conversion_writes_it_down(self, to, tmp_path):
        header = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 4})}
        path = LoraFile(makers.universal(), header).write(tmp_path)
        convert(path, tmp_path / "out.safetensors", to=to, scale=0.5)
        for name, dense in makers.deltas(makers.factors()).items():
            found = _dense(open_adapter(tmp_path / "out.safetensors"))[name]
            torch.testing.assert_close(found, dense / 2, rtol=1e-5, atol=1e-6)


def test_the_command_convert_takes_it(tmp_path):
    path = _kohya(None).write(tmp_path)
    words = ["convert", str(path), "--scale", "0.25", "-o", str(tmp_path / "out.safetensors")]
    done = CliRunner().invoke(app, words, prog_name="loraport")
    assert done.exit_code == 0, done.output
    for name, dense in makers.deltas(makers.factors()).items():
        found = _dense(open_adapter(tmp_path / "out.safetensors"))[name]
        torch.testing.assert_close(found, dense / 4, rtol=1e-5, atol=1e-6)


class TestConfiguration:
    @pytest.mark.parametrize(
        ("prefix", "patterns", "hit"),
        [
            ("base_model.model.", {"self_attn.q": 16}, True),
            ("base_model.model.", {"^self_attn.q": 16}, False),
            ("base_model.model.", {"^blocks.0.self_attn.q": 16}, True),
            ("base_model.model.diffusion_model.", {"diffusion_model.blocks.0.self_attn.q": 16}, True),
            ("base_model.model.diffusion_model.", {r"^diffusion_model\.blocks\.\d+\.self_attn\.q": 16}, True),
            ("base_model.model.diffusion_model.", {"^blocks.0.self_attn.q": 16}, False),
            ("diffusion_model.", {"^blocks.0.self_attn.q": 16}, True),
            ("diffusion_model.", {"^diffusion_model.blocks.0.self_attn.q": 16}, True),
        ],
    )
    def test_patterns_match_the_path_inside_the_model_that_peft_wrapped(self, prefix, patterns, hit, tmp_path, pico):
        tensors = spell(makers.factors(), prefix, same, *PEFT)
        file = LoraFile(tensors, {}, makers.peft_config(alpha_pattern=patterns))
        layers = open_adapter(file.write(tmp_path, "adapter_model.safetensors"), pico).layers
        assert layers[Q].scale == (4.0 if hit else 2.0)
        assert layers["blocks.1.ffn.2"].scale == 2.0

    def test_a_pattern_that_cannot_be_evaluated_is_refused_with_a_way_out(self, tmp_path, pico):
        config = makers.peft_config(alpha_pattern={"(?=blocks).*": 1})
        path = LoraFile(makers.universal(), {}, config).write(tmp_path)
        with pytest.raises(UnsupportedError, match="--scale"):
            open_adapter(path, pico)
        assert open_adapter(path, pico, scale=1.0).layers[Q].scale == 1.0

    def test_a_scale_from_beside_the_file_is_said(self, tmp_path, pico):
        path = LoraFile(makers.universal(), {}, {"peft_type": "LORA", "r": 4, "lora_alpha": 16}).write(tmp_path)
        (said,) = open_adapter(path, pico).warnings
        assert said.startswith("the scale 4 was taken from: adapter_config.json beside the file")
        assert "--scale 1" in said

    @pytest.mark.parametrize(
        ("more", "why"),
        [({"r": 16}, "it states rank 16, the factors have 4"), ({"target_modules": ["q_proj"]}, "modules like q_proj")],
    )
    def test_somebody_elses_configuration_in_the_folder_is_not_believed_and_that_is_said(
        self, more, why, tmp_path, pico
    ):
        file = LoraFile(makers.universal(), {}, makers.peft_config(**more))
        adapter = open_adapter(file.write(tmp_path), pico)
        assert {layer.scale for layer in adapter.layers.values()} == {1.0}
        assert any(why in text for text in adapter.warnings)
        # Beside the file that PEFT gives its name to, it is that file's own.
        own = file.write(tmp_path / "own", "adapter_model.safetensors")
        if "r" in more:
            with pytest.raises(MismatchError, match="--scale"):
                open_adapter(own, pico)
        else:
            assert {layer.scale for layer in open_adapter(own, pico).layers.values()} == {2.0}

    @pytest.mark.parametrize("targets", [["to_q", "ffn.net.2"], "all-linear", r".*\.(q|k)", ["self_attn.q"], [], None])
    def test_its_own_configuration_is_believed_under_any_naming(self, targets, tmp_path, pico):
        config = makers.peft_config(target_modules=targets)
        adapter = open_adapter(LoraFile(makers.universal(), {}, config).write(tmp_path), pico)
        assert {layer.scale for layer in adapter.layers.values()} == {2.0}

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ('{"r": 4, "lora_alpha": 1' + "0" * 400 + "}", FileError),
            ('{"r": 4, "lora_alpha": 1' + "0" * 5000 + "}", FileError),
            ('{"r": 0, "lora_alpha": 1}', FileError),
            ('{"r": NaN, "lora_alpha": 1}', FileError),
            ('{"r": 4, "lora_alpha": 1e999}', NumericalError),
            ('{"r": 4, "lora_alpha": NaN}', NumericalError),
            ('{"r": 4, "lora_alpha": 1e-40}', NumericalError),
            ('{"r": 4, "lora_alpha": 0}', NumericalError),
            ('{"r": 4, "lora_alpha": 8, "alpha_pattern": {"self_attn.q": 0}}', NumericalError),
        ],
    )
    def test_numbers_beyond_all_measure(self, text, error, tmp_path, pico):
        path = LoraFile(makers.universal(), {"lora_adapter_metadata": text}).write(tmp_path)
        with pytest.raises(error):
            open_adapter(path, pico)

    def test_an_alpha_is_no_truth_value(self, tmp_path, pico):
        tensors = makers.universal() | {f"diffusion_model.{Q}.alpha": torch.tensor(True)}
        with pytest.raises(FileError, match="--scale"):
            open_adapter(LoraFile(tensors).write(tmp_path), pico)


class TestStrength:
    def test_every_update_and_every_change_that_is_passed_on(self, tmp_path, pico):
        extra = {
            "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(24),
            "diffusion_model.blocks.0.norm3.diff": torch.ones(24),
            "diffusion_model.head.modulation.diff": torch.ones(1, 2, 24),
            "diffusion_model.head.head.diff": torch.ones(16, 24),
        }
        adapter = open_adapter(LoraFile(makers.universal() | extra).write(tmp_path), pico)
        halved = adapter.scaled(0.5)
        for name, dense in _dense(adapter).items():
            torch.testing.assert_close(_dense(halved)[name], dense / 2, rtol=1e-6, atol=1e-7)
        assert [item.load().unique().tolist() for item in halved.passthrough] == [[0.5]] * 3

    def test_a_text_encoder_is_scaled_in_one_factor_of_each_pair(self, tmp_path, pico):
        up, down = torch.arange(12.0).reshape(6, 2), torch.arange(10.0).reshape(2, 5)
        text = {
            "lora_te_layers_0_q.lora_up.weight": up,
            "lora_te_layers_0_q.lora_down.weight": down,
            "lora_te_layers_0_q.alpha": torch.tensor(1.0),
        }
        adapter = open_adapter(LoraFile(makers.universal() | text).write(tmp_path), pico).scaled(3.0)
        kept = {item.param: item.load() for item in adapter.passthrough}
        factors = kept["lora_te_layers_0_q.lora_up.weight"] @ kept["lora_te_layers_0_q.lora_down.weight"]
        torch.testing.assert_close(factors, 3 * up @ down)
        assert kept["lora_te_layers_0_q.alpha"] == 1.0

    def test_a_change_that_overflows_is_named(self, tmp_path, pico):
        extra = {"diffusion_model.blocks.0.norm3.diff": torch.full((24,), 60000.0, dtype=torch.float16)}
        adapter = open_adapter(LoraFile(makers.universal() | extra).write(tmp_path), pico).scaled(2.0)
        with pytest.raises(NumericalError, match=r"norm3\.diff no longer fits into F16"):
            adapter.passthrough[0].load()

    @pytest.mark.parametrize("strength", [0.0, -2.0, float("nan"), 1e-300, 1e38])
    def test_what_is_no_strength_is_refused(self, strength, tmp_path, pico):
        with pytest.raises(UsageError, match="strength"):
            open_adapter(LoraFile(makers.universal()).write(tmp_path), pico).scaled(strength)
