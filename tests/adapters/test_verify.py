"""`verify_adapter`: faults are found; what is merely worth knowing is a note, above all in files of others."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import makers
import networks
from loraport.adapters.convert import convert
from loraport.adapters.header import CONTENT, build_metadata
from loraport.adapters.parse import open_adapter
from loraport.adapters.render import render_adapter, write_adapter
from loraport.adapters.verify import verify_adapter
from loraport.core.lowrank import LowRank
from loraport.errors import FileError, MismatchError, UnsupportedError, UsageError
from loraport.models.checkpoint import open_checkpoint
from makers import KOHYA, PEFT, LoraFile, flat, same, spell


def _layers() -> dict[str, LowRank]:
    return {name: LowRank(b, a) for name, (b, a) in makers.factors().items()}


def _metadata(layers: int = 20) -> dict[str, str]:
    return build_metadata(
        input_metadata={}, recipe={"method": "casa"}, inputs={}, method="casa", summary={"layers": layers}, rank=4,
        target_title="Wan",
    )  # fmt: skip


@pytest.fixture
def written(tmp_path, pico) -> Path:
    """A file with the header of a transfer."""
    path = tmp_path / "x.safetensors"
    write_adapter(path, render_adapter(_layers(), (), "universal", pico.architecture), _metadata())
    return path


def _outcomes(path: Path, outcome: bool | None, model=None, **options) -> set[str]:
    return {check.name for check in verify_adapter(path, model, **options) if check.passed is outcome}


class TestFaults:
    def test_a_file_as_written_passes(self, written, pico):
        checks = verify_adapter(written, pico)
        assert {check.name for check in checks if check.passed is not True} == {"not read by"}
        with safe_open(str(written), framework="pt") as file:
            assert CONTENT in file.metadata()

    def test_a_changed_number_is_found(self, written):
        data = bytearray(written.read_bytes())
        data[-1] ^= 1
        written.write_bytes(bytes(data))
        assert _outcomes(written, False) == {"content as written"}

    def test_a_missing_layer_another_rank_and_an_alpha_are_found(self, written):
        with safe_open(str(written), framework="pt") as file:
            metadata = file.metadata()
        tensors = {key: t for key, t in load_file(written).items() if "ffn.0" not in key}
        tensors["diffusion_model.blocks.0.ffn.2.lora_A.weight"] = torch.zeros(6, 48)
        tensors["diffusion_model.blocks.0.ffn.2.lora_B.weight"] = torch.zeros(24, 6)
        tensors["diffusion_model.blocks.0.ffn.2.alpha"] = torch.tensor(1.0)
        LoraFile(tensors, metadata).write(written.parent, written.name)
        assert _outcomes(written, False) == {
            "every layer is there",
            "rank as stated",
            "one rank in the whole file",
            "no scale beside the factors",
            "content as written",
        }

    def test_other_names_and_another_dtype_than_stated_are_found(self, tmp_path, pico):
        stated = build_metadata(
            input_metadata={}, recipe={"to": "kohya", "dtype": "float16"}, inputs={}, method="casa",
            summary={"layers": 20}, rank=4, target_title="Wan",
        )  # fmt: skip
        tensors = render_adapter(_layers(), (), "universal", pico.architecture)
        write_adapter(tmp_path / "x.safetensors", tensors, stated)
        assert _outcomes(tmp_path / "x.safetensors", False) == {"names as stated", "dtype as stated"}
        tensors = render_adapter(_layers(), (), "kohya", pico.architecture, dtype=torch.float16)
        write_adapter(tmp_path / "y.safetensors", tensors, stated)
        assert _outcomes(tmp_path / "y.safetensors", False) == set()
        convert(tmp_path / "y.safetensors", tmp_path / "z.safetensors")  # the transfer's recipe stays
        assert {"names as stated", "dtype as stated"} <= _outcomes(tmp_path / "z.safetensors", True)

    def test_nan_is_found(self, written):
        tensors = load_file(written)
        next(iter(tensors.values()))[0, 0] = float("nan")
        LoraFile(tensors).write(written.parent, written.name)
        assert _outcomes(written, False) == {"all numbers are finite"}

    def test_an_alpha_that_is_no_number_is_found(self, tmp_path):
        path = LoraFile(spell(makers.factors(), "lora_unet_", flat, *KOHYA, alpha=float("nan"))).write(tmp_path)
        assert _outcomes(path, False) == {"all numbers are finite"}

    def test_a_foreign_key_is_found(self, written):
        LoraFile(load_file(written) | {"x": torch.ones(1)}).write(written.parent, written.name)
        (check,) = verify_adapter(written)
        assert (check.name, check.passed) == ("every key is understood", False)
        assert "x (" in check.found
        assert "\n" not in check.found

    def test_another_model_is_found(self, written, tmp_path):
        save_file(makers.model(blocks=1), tmp_path / "half.safetensors")
        other = open_checkpoint(tmp_path / "half.safetensors")
        assert _outcomes(written, False, other) == {"fits the model"}
        assert all(".:" not in check.found for check in verify_adapter(written, other))

    def test_what_is_no_lora_is_said_as_everywhere(self, tmp_path, pico_path):
        (tmp_path / "model_index.json").touch()
        with pytest.raises(FileError, match="this folder is a model"):
            verify_adapter(tmp_path)
        with pytest.raises(FileError):
            verify_adapter(tmp_path / "x.safetensors")
        with pytest.raises(MismatchError, match="a checkpoint"):
            verify_adapter(pico_path)
        other = makers.universal() | {"diffusion_model.blocks.0.self_attn.q_loras.down.weight": torch.ones(4, 24)}
        with pytest.raises(UnsupportedError, match="Stand-In"):
            verify_adapter(LoraFile(other).write(tmp_path))


class TestNotes:
    def test_files_of_trainers_are_sound(self, tmp_path, pico):
        made = makers.factors()
        made["blocks.0.ffn.0"] = makers.factors(rank=6)["blocks.0.ffn.0"]
        path = LoraFile(spell(made, "lora_unet_", flat, *KOHYA, alpha=1.0)).write(tmp_path)
        checks = {check.name: check for check in verify_adapter(path, pico)}
        programs = {"refused by", "not read by"}
        assert {name for name, check in checks.items() if check.passed is None} - programs == {
            "header says how it was made",
            "one rank in the whole file",
            "no scale beside the factors",
        }
        assert not [check for check in checks.values() if check.passed is False]
        assert "4, 6" in checks["one rank in the whole file"].found
        assert "alpha tensor" in checks["no scale beside the factors"].found

    @pytest.mark.parametrize("to", ["universal", "kohya", "same-as-input"])
    def test_what_convert_leaves_as_it_was_is_no_fault(self, to, tmp_path):
        made = makers.factors()
        made["blocks.0.ffn.0"] = makers.factors(rank=6)["blocks.0.ffn.0"]
        path = LoraFile(spell(made, "lora_unet_", flat, *KOHYA, alpha=2.0)).write(tmp_path)
        convert(path, tmp_path / "out.safetensors", to=to)
        assert _outcomes(tmp_path / "out.safetensors", False) == set()
        assert "content as written" in _outcomes(tmp_path / "out.safetensors", True)

    def test_layers_that_were_added_for_their_bias_are_none_too_many(self, tmp_path, pico):
        bias = {"diffusion_model.text_embedding.2.diff_b": torch.ones(24)}
        source = LoraFile(makers.universal() | bias).write(tmp_path)
        tensors = render_adapter(_layers(), open_adapter(source).passthrough, "universal", pico.architecture)
        write_adapter(tmp_path / "out.safetensors", tensors, _metadata(layers=20))
        assert _outcomes(tmp_path / "out.safetensors", False) == set()
        write_adapter(tmp_path / "out.safetensors", tensors, _metadata() | {"loraport.summary": '{"layers": ["20"]}'})
        assert _outcomes(tmp_path / "out.safetensors", False) == {"every layer is there"}

    def test_layers_that_fill_a_fused_weight_are_none_too_many(self, tmp_path):
        names = [f"transformer_blocks.{block}.attn.to_{x}" for block in range(2) for x in "qv"]
        made = networks.factors("hunyuan_video", dict.fromkeys(names, (24, 24)))
        layers = {name: LowRank(b, a) for name, (b, a) in made.items()}
        architecture = networks.architecture("hunyuan_video", tmp_path)
        path = tmp_path / "out.safetensors"
        write_adapter(path, render_adapter(layers, (), "universal", architecture), _metadata(layers=4))
        assert _outcomes(path, False) == set()
        traces = LowRank(1e-9 * torch.ones(24, 1), torch.ones(1, 24))  # such as rounding leaves where nothing was
        layers |= {f"transformer_blocks.{block}.attn.to_k": traces for block in range(2)}
        write_adapter(path, render_adapter(layers, (), "universal", architecture), _metadata(layers=4))
        assert "every layer is there" in _outcomes(path, True)
        write_adapter(path, load_file(path), _metadata(layers=1))
        assert "every layer is there" in _outcomes(path, False)

    def test_whole_matrices_are_spelled_as_stated(self, tmp_path):
        path = LoraFile({"diffusion_model.blocks.0.ffn.0.diff": torch.ones(48, 24)}).write(tmp_path)
        convert(path, tmp_path / "out.safetensors", to="kohya")
        assert _outcomes(tmp_path / "out.safetensors", False) == set()

    def test_of_two_experts_one_must_be_named(self, tmp_path):
        both = [f"diffusion_model.transformer_{n}." for n in (1, 2)]
        path = LoraFile({k: t for p in both for k, t in spell(makers.factors(), p, same, *PEFT).items()}).write(
            tmp_path
        )
        with pytest.raises(UsageError, match="one for each expert"):
            verify_adapter(path)
        assert _outcomes(path, False, expert="low") == set()
