"""Writing: the keys of every profile, what each passes on, and files that are whole or not there."""

import pytest
import torch
from safetensors.torch import load_file

import makers
from loraport.adapters import render as render_room
from loraport.adapters.carried import check_passthrough
from loraport.adapters.convert import convert
from loraport.adapters.dialect import PROFILE_NAMES, Dialect, check_profile, profile_of
from loraport.adapters.header import build_metadata, read_json
from loraport.adapters.parse import open_adapter
from loraport.adapters.render import render_adapter, write_adapter
from loraport.core.lowrank import LowRank
from loraport.errors import FileError, NumericalError, UnsupportedError, UsageError
from loraport.threads import threads_of_torch
from makers import PEFT, LoraFile, flat, same, spell

EXTRA = {
    "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(24),
    "diffusion_model.blocks.0.norm3.diff": torch.ones(24),
    "diffusion_model.blocks.0.norm3.b_norm": torch.ones(24),
    "diffusion_model.blocks.0.self_attn.norm_k.w_norm": torch.ones(24),
    "diffusion_model.blocks.1.diff_m": torch.ones(1, 6, 24),
    "diffusion_model.head.modulation.diff": torch.ones(1, 2, 24),
}


def _layers(rank: int = 4) -> dict[str, LowRank]:
    return {name: LowRank(b, a) for name, (b, a) in makers.factors(rank=rank).items()}


def _carried(tmp_path, extra: dict):
    path = LoraFile(makers.universal() | extra).write(tmp_path)
    return open_adapter(path).passthrough


@pytest.mark.parametrize(
    ("profile", "keys"),
    [
        ("universal", ["diffusion_model.blocks.0.self_attn.o.lora_A.weight"]),
        ("diffusers", ["transformer.blocks.0.attn1.to_out.0.lora_B.weight"]),
        ("original", ["blocks.1.ffn.2.lora_A.weight"]),
        ("kohya", ["lora_unet_blocks_0_cross_attn_k.lora_down.weight", "lora_unet_blocks_0_cross_attn_k.alpha"]),
    ],
)
def test_the_keys_of_every_profile(profile, keys, pico):
    tensors = render_adapter(_layers(), (), profile, pico.architecture, dtype=torch.bfloat16)
    assert set(keys) <= set(tensors)
    assert len(tensors) == 20 * (3 if profile == "kohya" else 2)
    assert {t.dtype for key, t in tensors.items() if "lora" in key and "alpha" not in key} == {torch.bfloat16}
    if profile == "kohya":
        assert all(float(t) == 4.0 for key, t in tensors.items() if key.endswith(".alpha"))


@pytest.mark.parametrize(
    ("dialect", "keys"),
    [
        (Dialect("", "fastvideo", "peft", alpha="lora_alpha"), {".lora_A.weight", ".lora_alpha", ".lora_rank"}),
        (Dialect("pipe.dit.", "original", "peft-named", adapter="x"), {".lora_A.x.weight", ".lora_B.x.weight"}),
        (Dialect("transformer.", "diffusers", "peft", alpha="metadata"), {".lora_A.weight", ".lora_B.weight"}),
        (Dialect("lycoris_", "diffusers", "kohya", flat=True, alpha="alpha"), {".lora_down.weight", ".alpha"}),
    ],
)
def test_same_as_input(dialect, keys, pico):
    tensors = render_adapter(_layers(), (), "same-as-input", pico.architecture, dialect)
    for ending in keys:
        assert sum(key.endswith(ending) for key in tensors) == 20
    assert all(key.startswith(dialect.prefix) for key in tensors)


def test_unknown_profiles_and_a_missing_input(pico):
    for name in PROFILE_NAMES:
        check_profile(name)
    with pytest.raises(UsageError, match="universal, diffusers"):
        check_profile("comfy")
    with pytest.raises(UsageError):
        render_adapter(_layers(), (), "same-as-input", pico.architecture)


def test_what_is_carried_in_every_profile(tmp_path, pico):
    passthrough = _carried(tmp_path, EXTRA)
    universal = render_adapter(_layers(), passthrough, "universal", pico.architecture)
    assert {key for key in universal if "lora" not in key and not key.endswith(".diff_b")} == {
        "diffusion_model.blocks.0.norm3.diff",
        "diffusion_model.blocks.0.self_attn.norm_k.diff",
        "diffusion_model.blocks.1.modulation.diff",
        "diffusion_model.head.modulation.diff",
    }
    original = render_adapter(_layers(), passthrough, "original", pico.architecture)
    assert {"blocks.1.diff_m", "head.diff_m", "blocks.0.norm3.diff_b"} <= set(original)
    assert not [key for key in original if key.endswith("blocks.1.ffn.0.diff_b")]
    with pytest.raises(UnsupportedError, match="universal takes it"):
        render_adapter(_layers(), passthrough, "kohya", pico.architecture)
    with pytest.raises(UnsupportedError):
        render_adapter(_layers(), passthrough, "diffusers", pico.architecture)
    for name in ("kohya", "diffusers"):
        with pytest.raises(UnsupportedError, match="do not take a change of"):
            check_passthrough(passthrough, profile_of(name), pico.architecture.family)
    check_passthrough(passthrough, profile_of("universal"), pico.architecture.family)
    same_again = render_adapter(
        _layers(), passthrough, "same-as-input", pico.architecture, Dialect("", "original", "peft")
    )
    assert set(EXTRA) <= set(same_again)


def test_one_bias_brings_biases_for_all_and_factors_for_itself(tmp_path, pico):
    layers = _layers()
    del layers["blocks.0.self_attn.q"]
    passthrough = _carried(tmp_path, {"diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(24)})
    tensors = render_adapter(layers, passthrough, "diffusers", pico.architecture)
    biases = {key: t for key, t in tensors.items() if key.endswith(".lora_B.bias")}
    assert len(biases) == 20
    assert {key for key, t in biases.items() if t.any()} == {"transformer.blocks.0.attn1.to_q.lora_B.bias"}
    assert not tensors["transformer.blocks.0.attn1.to_q.lora_B.weight"].any()
    assert tensors["transformer.blocks.0.attn1.to_q.lora_A.weight"].shape == (4, 24)


def test_text_encoders_pass_in_every_profile(tmp_path, pico):
    key = "lora_te_text_model_encoder_layers_0.lora_down.weight"
    passthrough = _carried(tmp_path, {key: torch.ones(2, 3)})
    for profile in ("universal", "diffusers", "kohya", "original"):
        assert key in render_adapter(_layers(), passthrough, profile, pico.architecture)


def test_numbers_that_do_not_fit_the_dtype(pico):
    layers = {"blocks.0.ffn.0": LowRank(torch.full((48, 2), 1e6), torch.ones(2, 24))}
    with pytest.raises(NumericalError, match=r"blocks\.0\.ffn\.0"):
        render_adapter(layers, (), "universal", pico.architecture, dtype=torch.float16)


def test_a_bias_that_its_scale_takes_beyond_its_dtype(tmp_path, pico):
    tensors = spell(makers.factors(), "transformer.", makers.diffusers_name, *PEFT, alpha=16.0)
    tensors["transformer.blocks.0.attn1.to_q.lora_B.bias"] = torch.full((24,), 3e4, dtype=torch.float16)
    path = LoraFile(tensors).write(tmp_path)
    with pytest.raises(NumericalError, match=r"attn1\.to_q\.lora_B\.bias"):
        render_adapter(_layers(), open_adapter(path).passthrough, "diffusers", pico.architecture, dtype=torch.float16)
    with pytest.raises(NumericalError, match=r"attn1\.to_q\.lora_B\.bias"):
        convert(path, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


class TestWriting:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_nothing_but_numbers_is_written(self, value, dtype, tmp_path):
        tensors = {"a": torch.ones(3), "b": torch.tensor([1.0, value]).to(dtype)}
        with pytest.raises(NumericalError, match="b would hold NaN or infinity"):
            write_adapter(tmp_path / "x.safetensors", tensors, {})
        assert list(tmp_path.iterdir()) == []

    def test_every_number_of_its_dtype_may_be_written(self, tmp_path):
        tensors = {
            "a": torch.tensor([1e300], dtype=torch.float64),
            "b": torch.tensor([65504.0], dtype=torch.float16),
            "c": torch.tensor([448.0]).to(torch.float8_e4m3fn),
            "d": torch.tensor([2**31 - 1], dtype=torch.int32),
        }
        write_adapter(tmp_path / "x.safetensors", tensors, {})
        assert load_file(tmp_path / "x.safetensors")["a"] == 1e300

    def test_what_was_written_is_looked_at(self, tmp_path, monkeypatch):
        path = tmp_path / "x.safetensors"
        write_adapter(path, {"a": torch.ones(2)}, {"format": "pt"})
        before = path.read_bytes()
        real = render_room.write_safetensors
        monkeypatch.setattr(
            render_room, "write_safetensors", lambda p, t, m, hashes: real(p, {k: v + 1 for k, v in t.items()}, m)
        )
        with pytest.raises(FileError, match="not what was intended"):
            write_adapter(path, {"a": torch.ones(2)}, {"format": "pt"})
        assert path.read_bytes() == before
        assert [item.name for item in tmp_path.iterdir()] == ["x.safetensors"]

    def test_the_same_content_gives_the_same_bytes(self, tmp_path, pico):
        for name in "ab":
            tensors = render_adapter(_layers(), (), "universal", pico.architecture)
            write_adapter(tmp_path / name, tensors, {"loraport.version": "1", "z": "1", "a": "2"})
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(FileError):
            write_adapter(tmp_path / "file" / "x.safetensors", {"a": torch.ones(2)}, {})


def _metadata(**changes) -> dict[str, str]:
    settings = {
        "input_metadata": {},
        "recipe": {"method": "casa", "rank": 32},
        "inputs": {"lora": "ab"},
        "method": "casa 1",
        "summary": {"layers": 20},
        "rank": 4,
        "target_title": "Wan2.1 T2V 1.3B (30 blocks, width 1536)",
    }
    return build_metadata(**settings | changes)


class TestHeader:
    def test_training_facts_stay_and_stale_ones_go(self):
        given = {
            "ss_tag_frequency": '{"a": 1}',
            "modelspec.trigger_phrase": "noir",
            "modelspec.title": "Noir",
            "modelspec.date": "2025",
            "modelspec.hash_sha256": "0x1",
            "sshs_model_hash": "1",
            "sshs_legacy_hash": "2",
            "lora_adapter_metadata": "{}",
            "ss_network_alpha": "1.0",
            "ss_network_dim": "32",
            "loraport.recipe": "old",
        }
        made = _metadata(input_metadata=given)
        assert made["ss_tag_frequency"] == '{"a": 1}'
        assert made["modelspec.trigger_phrase"] == "noir"
        assert made["modelspec.title"] == "Noir for Wan2.1 T2V 1.3B (30 blocks, width 1536)"
        assert (made["ss_network_dim"], made["ss_network_alpha"]) == ("4", "4")
        stale = {"modelspec.date", "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"}
        assert not stale & made.keys()
        assert "lora_adapter_metadata" not in made
        assert read_json(made, "loraport.recipe") == {"method": "casa", "rank": 32}
        assert all(isinstance(value, str) for value in made.values())
        assert _metadata(input_metadata=given) == made

    @pytest.mark.parametrize("text", ["{", "[" * 99_999, "NaN" * 9, "x" * 5_000_000])
    def test_fields_of_strangers_are_read_with_care(self, text):
        assert read_json({"loraport.recipe": text}, "loraport.recipe") is None
        assert read_json({}, "loraport.recipe") is None


class TestConversion:
    def test_powers_of_two_fold_without_a_loss(self, tmp_path):
        made = makers.factors()
        half = {name: (b.half(), a.half()) for name, (b, a) in made.items()}
        path = LoraFile(spell(half, "lora_unet_", flat, ".lora_down.weight", ".lora_up.weight", alpha=1.0)).write(
            tmp_path
        )
        done = convert(path, tmp_path / "x.safetensors")
        assert len(done.folded) == 20
        found = load_file(tmp_path / "x.safetensors")["diffusion_model.blocks.0.ffn.0.lora_B.weight"]
        assert found.dtype == torch.float16
        assert torch.equal(found.float(), half["blocks.0.ffn.0"][0].float() / 4)

    def test_a_scale_that_would_underflow(self, tmp_path):
        half = {name: (b.half() * 1e-3, a.half()) for name, (b, a) in makers.factors().items()}
        tensors = spell(half, "lora_unet_", flat, ".lora_down.weight", ".lora_up.weight", alpha=1e-4)
        path = LoraFile(tensors).write(tmp_path)
        with pytest.raises(NumericalError, match="convert to kohya"):
            convert(path, tmp_path / "x.safetensors")
        assert not (tmp_path / "x.safetensors").exists()
        convert(path, tmp_path / "x.safetensors", to="kohya")

    @pytest.mark.parametrize("to", ["kohya", "universal", "same-as-input"])
    def test_the_names_are_said_as_they_are(self, tmp_path, to):
        """Of whole matrices, of factors beside them, and of changes of norms alone."""
        matrix = {"diffusion_model.blocks.0.ffn.0.diff": torch.ones(48, 24)}
        both = matrix | {key: tensor for key, tensor in makers.universal().items() if "blocks.0.ffn.0" not in key}
        for tensors in (matrix, both, {"diffusion_model.blocks.0.norm3.diff": torch.ones(24)}):
            path = LoraFile(tensors).write(tmp_path)
            done = convert(path, tmp_path / "out.safetensors", to=to, overwrite=True)
            assert done.after == open_adapter(done.output).dialect.title
            assert ("alpha tensors" in done.after) == (to == "kohya" and len(tensors) > 1)

    def test_convolution_shapes_stay_only_where_the_dialect_stays(self, tmp_path):
        made = {name: (b[:, :, None, None], a[:, :, None, None]) for name, (b, a) in makers.factors().items()}
        tensors = spell(made, "lora_unet_", flat, ".lora_down.weight", ".lora_up.weight", alpha=4.0)
        path = LoraFile(tensors).write(tmp_path)
        convert(path, tmp_path / "same.safetensors", to="same-as-input")
        convert(path, tmp_path / "universal.safetensors")
        assert load_file(tmp_path / "same.safetensors").keys() == tensors.keys()
        shapes = {tuple(t.shape) for t in load_file(tmp_path / "same.safetensors").values()}
        assert (4, 24, 1, 1) in shapes
        assert all(t.ndim == 2 for t in load_file(tmp_path / "universal.safetensors").values())

    def test_an_existing_file_is_kept(self, tmp_path):
        path = LoraFile(spell(makers.factors(), "", same, *PEFT)).write(tmp_path)
        (tmp_path / "kept.safetensors").write_bytes(b"precious")
        with pytest.raises(FileError, match="already exists"):
            convert(path, tmp_path / "kept.safetensors")
        convert(path, tmp_path / "kept.safetensors", overwrite=True)
        assert open_adapter(tmp_path / "kept.safetensors").dialect.prefix == "diffusion_model."

    def test_the_input_is_kept_even_so(self, tmp_path):
        path = LoraFile(spell(makers.factors(), "", same, *PEFT)).write(tmp_path)
        before = path.read_bytes()
        with pytest.raises(FileError, match="replace the input LoRA"):
            convert(path, path, overwrite=True)
        assert path.read_bytes() == before

    def test_nan_is_refused(self, tmp_path):
        tensors = spell(makers.factors(), "", same, *PEFT)
        tensors["blocks.0.ffn.0.lora_A.weight"][0, 0] = float("nan")
        with pytest.raises(NumericalError, match=r"blocks\.0\.ffn\.0"):
            convert(LoraFile(tensors).write(tmp_path), tmp_path / "x.safetensors")

    def test_facts_about_alpha_follow(self, tmp_path):
        tensors = spell(makers.factors(), "lora_unet_", flat, ".lora_down.weight", ".lora_up.weight", alpha=1.0)
        metadata = {"ss_network_alpha": "1.0", "ss_network_dim": "4", "ss_tag_frequency": "{}", "sshs_model_hash": "1"}
        path = LoraFile(tensors, metadata).write(tmp_path)
        convert(path, tmp_path / "x.safetensors")
        found = open_adapter(tmp_path / "x.safetensors").metadata
        assert found["ss_network_alpha"] == "4"
        assert found["ss_tag_frequency"] == "{}"
        assert len(found["sshs_model_hash"]) == 64  # of this file

    def test_an_fp8_file_goes_round(self, tmp_path):
        tiny = {
            name: (b.to(torch.float8_e4m3fn), a.to(torch.float8_e4m3fn)) for name, (b, a) in makers.factors().items()
        }
        path = LoraFile(
            {f"diffusion_model.{n}{end}": t for n, (b, a) in tiny.items() for end, t in zip(PEFT, (a, b), strict=True)}
        ).write(tmp_path)
        assert open_adapter(path).layers["blocks.0.ffn.0"].load().dense().isfinite().all()
        convert(path, tmp_path / "x.safetensors", to="kohya")
        found = load_file(tmp_path / "x.safetensors")["lora_unet_blocks_0_ffn_0.lora_up.weight"]
        assert torch.equal(found.float(), tiny["blocks.0.ffn.0"][0].float())


def test_the_tensors_of_a_file_are_looked_at_in_one_thread(tmp_path, monkeypatch):
    """Two threads wait for each other at each of thousands of small operations: minutes on a busy machine."""
    seen, is_finite = [], torch.isfinite

    def looked_at(tensor):
        seen.append(torch.get_num_threads())
        return is_finite(tensor)

    monkeypatch.setattr(torch, "isfinite", looked_at)
    with threads_of_torch(2):
        write_adapter(tmp_path / "a.safetensors", {"x": torch.ones(3)}, {})
        assert torch.get_num_threads() == 2
    assert seen == [1]
