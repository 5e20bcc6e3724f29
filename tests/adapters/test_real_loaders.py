"""Files written here, read by diffusers and PEFT themselves; and files written by them, read here."""

import logging

import pytest
import torch

import makers
from loraport.adapters.convert import convert_adapter
from loraport.adapters.parse import open_adapter
from loraport.adapters.render import render_adapter, write_adapter
from loraport.adapters.verify import verify_adapter
from loraport.core.lowrank import LowRank
from loraport.models.architecture import detect
from loraport.models.family import families
from makers import PEFT, LoraFile, diffusers_name, same, spell

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _own_rng():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _model(*, image: bool = False):
    extra = {"image_dim": 20, "added_kv_proj_dim": 24} if image else {}
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=8, ffn_dim=48, num_layers=2, rope_max_seq_len=32, cross_attn_norm=True, **extra,
    )  # fmt: skip


def _architecture(model):
    wan = families()["wan"]
    state = model.state_dict()
    shapes = {}
    for module in wan.modules({"blocks": 2}):
        spelled = wan.spell(module, "diffusers")
        weight = state.get(f"{spelled}.weight", state.get(spelled))
        if weight is not None:
            shapes[module] = tuple(weight.shape)
    return detect(shapes, wan)


def _fused(path, model, caplog) -> dict[str, torch.Tensor]:
    """What loading and fusing the file changes in the model; no key may be missing or unexpected."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pipeline = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=model
    )  # fmt: skip
    loggers = [logging.getLogger(name) for name in ("diffusers", "peft")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        pipeline.load_lora_weights(path)
    for logger in loggers:
        logger.removeHandler(caplog.handler)
    complaints = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert not complaints
    assert not [name for name, parameter in model.named_parameters() if parameter.is_meta]
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    after = model.state_dict()
    return {name: after[name] - tensor for name, tensor in before.items() if not torch.equal(after[name], tensor)}


def _compare(changes: dict, wanted: dict[str, torch.Tensor]) -> None:
    assert changes.keys() == {f"{diffusers_name(name)}.weight" for name in wanted}
    for name, delta in wanted.items():
        found = changes[f"{diffusers_name(name)}.weight"].double()
        assert (found - delta).norm() <= 1e-4 * delta.norm(), name


@pytest.mark.parametrize(
    ("profile", "outside"),
    # diffusers reads kohya files of the blocks only
    [("universal", False), ("universal", True), ("diffusers", False), ("diffusers", True), ("kohya", False)],
)
def test_what_is_written_loads_and_adds_exactly_the_update(profile, outside, tmp_path, caplog):
    made = makers.factors(outside=outside)
    model = _model()
    layers = {name: LowRank(b, a) for name, (b, a) in made.items()}
    tensors = render_adapter(layers, (), profile, _architecture(model))
    write_adapter(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    _compare(_fused(tmp_path / "x.safetensors", model, caplog), makers.deltas(made))


@pytest.mark.parametrize("profile", ["universal", "diffusers"])
def test_the_image_model(profile, tmp_path, caplog):
    made = makers.factors(image=True)
    model = _model(image=True)
    layers = {name: LowRank(b, a) for name, (b, a) in made.items()}
    tensors = render_adapter(layers, (), profile, _architecture(model))
    write_adapter(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    _compare(_fused(tmp_path / "x.safetensors", model, caplog), makers.deltas(made))


@pytest.mark.parametrize("profile", ["universal", "diffusers"])
def test_biases_load_too(profile, tmp_path, caplog):
    made = makers.factors()
    del made["blocks.1.ffn.0"]
    tensors = spell(made, "lora_unet_", makers.flat, ".lora_down.weight", ".lora_up.weight", alpha=8.0, scale=2.0)
    tensors["lora_unet_blocks_0_self_attn_q.diff_b"] = torch.full((24,), 0.5)
    tensors["lora_unet_blocks_1_ffn_0.diff_b"] = torch.full((48,), 0.25)  # a bias alone
    convert_adapter(LoraFile(tensors).write(tmp_path), tmp_path / "x.safetensors", to=profile)
    changes = _fused(tmp_path / "x.safetensors", _model(), caplog)
    torch.testing.assert_close(changes.pop("blocks.0.attn1.to_q.bias"), torch.full((24,), 0.5))
    torch.testing.assert_close(changes.pop("blocks.1.ffn.net.0.proj.bias"), torch.full((48,), 0.25))
    _compare(changes, makers.deltas(made))


def test_norms_modulation_and_whole_matrices_do_not_stop_the_universal_file(tmp_path, caplog):
    made = makers.factors()
    head = torch.randn(16, 24)
    first = torch.randn(24, 8)
    extra = {
        "diffusion_model.head.head.diff": head,
        "diffusion_model.time_embedding.0.diff": first,
        "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.ones(24),
        "diffusion_model.blocks.0.diff_m": torch.ones(1, 6, 24),
        "diffusion_model.head.diff_m": torch.ones(1, 2, 24),
        "diffusion_model.patch_embedding.diff": torch.ones(24, 4, 1, 2, 2),
    }
    path = LoraFile(spell(made, "diffusion_model.", same, *PEFT) | extra).write(tmp_path)
    convert_adapter(path, tmp_path / "x.safetensors")
    wanted = makers.deltas(made) | {"head.head": head.double(), "time_embedding.0": first.double()}
    _compare(_fused(tmp_path / "x.safetensors", _model(), caplog), wanted)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_saves_is_read_with_its_scale(rslora, tmp_path):
    model = _model()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        init_lora_weights=False,
        target_modules=["to_q", "to_out.0", "net.2"],
        rank_pattern={r"blocks\.0\.attn1\.to_q": 2, "attn2.to_out.0": 3},
        alpha_pattern={"^blocks.1.ffn.net.2": 12, r".*attn2\.to_q": 5},
    )
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path)
    before = {name: tensor.clone() for name, tensor in _base(wrapped).items()}
    wrapped.merge_adapter()
    adapter = open_adapter(tmp_path, _architecture(_model()))
    assert len(adapter.layers) == 10
    assert len({layer.rank for layer in adapter.layers.values()}) == 3
    for name, layer in adapter.layers.items():
        spelled = f"{diffusers_name(name)}.weight"
        change = _base(wrapped)[spelled] - before[spelled]
        torch.testing.assert_close(layer.load().dense(), change, rtol=1e-4, atol=1e-5)


def _base(wrapped) -> dict[str, torch.Tensor]:
    state = wrapped.base_model.model.state_dict()
    return {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if "lora_" not in name}


def test_what_diffusers_saves_is_read_with_the_alpha_of_its_header(tmp_path):
    model = _model()
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=["to_q", "to_k"]))
    model.save_lora_adapter(tmp_path)
    state = peft.get_peft_model_state_dict(model)
    adapter = open_adapter(tmp_path, _architecture(_model()))
    layer = adapter.layers["blocks.1.cross_attn.k"]
    assert (layer.scale, adapter.dialect.alpha) == (2.0, "metadata")
    wanted = 2 * state["blocks.1.attn2.to_k.lora_B.weight"] @ state["blocks.1.attn2.to_k.lora_A.weight"]
    torch.testing.assert_close(layer.load().dense(), wanted, rtol=1e-4, atol=1e-6)
    # Converted to itself it keeps factors and header; diffusers then scales it as before.
    convert_adapter(tmp_path, tmp_path / "same.safetensors", to="same-as-input")
    again = _model()
    again.load_lora_adapter(tmp_path / "same.safetensors", prefix=None, use_safetensors=True)
    assert again.peft_config["default_0"].lora_alpha == 8


def test_the_model_level_loader_takes_the_diffusers_profile(tmp_path):
    made = makers.factors(outside=True)
    model = _model()
    tensors = render_adapter(
        {name: LowRank(b, a) for name, (b, a) in made.items()}, (), "diffusers", _architecture(model)
    )  # fmt: skip
    write_adapter(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    model.load_lora_adapter(tmp_path / "x.safetensors", prefix="transformer")
    loaded = peft.get_peft_model_state_dict(model, adapter_name="default_0")
    assert {f"transformer.{key}" for key in loaded} == set(tensors)


class TestVerifyWithTheRealLoader:
    """The last check of `verify_adapter`: a promise in our own files, a remark in those of others."""

    def _last(self, path):
        check = verify_adapter(path, load=True)[-1]
        assert check.name == "diffusers loads it"
        return check

    @pytest.mark.parametrize(
        ("profile", "passed"),
        [("universal", True), ("diffusers", True), ("kohya", True), ("original", None), ("same-as-input", None)],
    )
    def test_our_own_files(self, profile, passed, tmp_path):
        path = LoraFile(spell(makers.factors(), "pipe.dit.", same, *PEFT)).write(tmp_path)
        convert_adapter(path, tmp_path / "x.safetensors", to=profile)
        check = self._last(tmp_path / "x.safetensors")
        assert check.passed is passed
        assert check.found == ("20 of 20 layers" if passed else "0 of 20 layers")

    def test_our_own_file_that_it_refuses(self, tmp_path):
        tensors = makers.universal()
        tensors["diffusion_model.time_embedding.0.diff"] = torch.ones(24, 8)
        for metadata, passed in (({"loraport.version": "0"}, False), ({}, None)):
            check = self._last(LoraFile(tensors, metadata).write(tmp_path))
            assert check.passed is passed
            assert "refused" in check.found

    def test_files_of_others(self, tmp_path):
        kohya = LoraFile(spell(makers.factors(), "lora_unet_", makers.flat, ".lora_down.weight", ".lora_up.weight"))
        assert self._last(kohya.write(tmp_path)).passed is None
        named = spell(makers.factors(), "transformer.", diffusers_name, *PEFT, alpha=4.0)
        check = self._last(LoraFile(named).write(tmp_path))
        assert (check.passed, "alpha" in check.found) == (None, True)

    def test_a_text_encoder_was_warned_of(self, tmp_path):
        tensors = spell(makers.factors(), "", same, *PEFT) | {"lora_te_x.lora_up.weight": torch.ones(2, 2)}
        convert_adapter(LoraFile(tensors).write(tmp_path), tmp_path / "x.safetensors")
        assert self._last(tmp_path / "x.safetensors").passed is None
