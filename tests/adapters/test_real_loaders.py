"""Files written here, read by diffusers and PEFT themselves; and files written by them, read here."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import hunyuan
import loraport
import makers
import networks
from loraport.adapters.convert import convert
from loraport.adapters.parse import open_adapter
from loraport.adapters.render import render_adapter, write_adapter
from loraport.adapters.verify import verify_adapter
from loraport.core.lowrank import LowRank
from loraport.errors import MismatchError, UnsupportedError
from loraport.models.architecture import detect
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families
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
    return diffusers.WanTransformer3DModel(**networks.WAN, **extra)


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
    pipeline = diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=model)
    return networks.fused(pipeline, model, path, caplog)


def _compare(changes: dict, wanted: dict[str, torch.Tensor]) -> None:
    assert changes.keys() == {f"{diffusers_name(name)}.weight" for name in wanted}
    for name, delta in wanted.items():
        found = changes[f"{diffusers_name(name)}.weight"].double()
        assert (found - delta).norm() <= 1e-4 * delta.norm(), name


@pytest.mark.parametrize(
    ("profile", "more"),
    # diffusers reads kohya files of the blocks only
    [(profile, more) for profile in ("universal", "diffusers") for more in ("", "outside", "image")] + [("kohya", "")],
)
def test_what_is_written_loads_and_adds_exactly_the_update(profile, more, tmp_path, caplog):
    made = makers.factors(outside=more == "outside", image=more == "image")
    model = _model(image=more == "image")
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
    convert(LoraFile(tensors).write(tmp_path), tmp_path / "x.safetensors", to=profile)
    changes = _fused(tmp_path / "x.safetensors", _model(), caplog)
    torch.testing.assert_close(changes.pop("blocks.0.attn1.to_q.bias"), torch.full((24,), 0.5))
    torch.testing.assert_close(changes.pop("blocks.1.ffn.net.0.proj.bias"), torch.full((48,), 0.25))
    _compare(changes, makers.deltas(made))


def _loaded(path, **options):
    """A model with the file loaded and not fused, as people use it."""
    model = _model(**options)
    pipeline = diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=model)
    pipeline.load_lora_weights(path)
    assert not [name for name, parameter in model.named_parameters() if parameter.is_meta]
    return pipeline


V = "diffusion_model."
ATTENTION = {key: t for key, t in makers.universal().items() if "attn" in key}
ALONE = {
    # A size that the LoRA tells: by the bias itself, or by other layers.
    "the head": (makers.universal() | {f"{V}head.head.diff_b": torch.full((16,), 0.5)}, "proj_out.bias"),
    "attention only": (
        ATTENTION | {f"{V}blocks.0.ffn.0.diff_b": torch.full((48,), 0.5)}, "blocks.0.ffn.net.0.proj.bias",
    ),
    "two of the feed-forward": (
        ATTENTION | {f"{V}blocks.0.ffn.2.diff_b": torch.full((24,), 0.5), f"{V}blocks.1.ffn.0.diff_b": torch.zeros(48)},
        "blocks.0.ffn.net.2.bias",
    ),
}  # fmt: skip


class TestBiasesThatStandAlone:
    """diffusers leaves parameters without memory, or fails, where a bias has no factors; so none is written so."""

    @pytest.mark.parametrize("to", ["universal", "diffusers"])
    @pytest.mark.parametrize("case", ALONE)
    def test_they_get_factors_of_zeros_of_the_size_of_the_layer(self, case, to, tmp_path, caplog):
        tensors, name = ALONE[case]
        convert(LoraFile(tensors).write(tmp_path), tmp_path / "x.safetensors", to=to)
        assert not [c for c in verify_adapter(tmp_path / "x.safetensors", load=True) if c.passed is False]
        changes = _fused(tmp_path / "x.safetensors", _model(), caplog)
        torch.testing.assert_close(changes[name], torch.full_like(changes[name], 0.5))
        assert name.replace("bias", "weight") not in changes

    @pytest.mark.parametrize("to", ["universal", "diffusers"])
    @pytest.mark.parametrize("name", ["time_embedding.0", "text_embedding.0"])
    def test_of_unknown_size_they_are_refused_with_ways_out_that_work(self, name, to, tmp_path, caplog):
        tensors = makers.universal() | {f"{V}{name}.diff_b": torch.full((24,), 0.5)}
        path, out = LoraFile(tensors).write(tmp_path), tmp_path / "x.safetensors"
        with pytest.raises(UnsupportedError, match="no factors") as caught:
            convert(path, out, to=to)
        assert not out.exists()
        drop = str(caught.value.fix).rpartition("--drop ")[2]
        convert(path, out, to=to, drop=drop)
        assert len(_fused(out, _model(), caplog)) == 20
        save_file(_model().state_dict(), tmp_path / "model.safetensors")
        convert(path, out, to=to, model=tmp_path / "model.safetensors", overwrite=True)
        changes = _fused(out, _model(), caplog)
        torch.testing.assert_close(changes[f"{diffusers_name(name)}.bias"], torch.full((24,), 0.5))

    def test_a_model_of_a_known_size_needs_no_other(self, tmp_path):
        factors = {f"{V}blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 5120),
                   f"{V}blocks.0.self_attn.q.lora_B.weight": torch.ones(5120, 2)}  # fmt: skip
        path = LoraFile(factors | {f"{V}time_embedding.0.diff_b": torch.ones(5120)}).write(tmp_path)
        convert(path, tmp_path / "x.safetensors")
        assert open_adapter(tmp_path / "x.safetensors").layers["time_embedding.0"].shape == (5120, 256)

    def test_a_bias_of_another_size_is_refused(self, tmp_path):
        path = LoraFile(ATTENTION | {f"{V}time_embedding.2.diff_b": torch.ones(25)}).write(tmp_path)
        with pytest.raises(MismatchError, match="does not fit the layer"):
            convert(path, tmp_path / "x.safetensors")

    @pytest.mark.parametrize("extra", ["time_embedding.0", "head.head", "blocks.0.self_attn.q"])
    def test_same_as_input_is_not_called_sound(self, extra, tmp_path):
        rows = makers.layers(outside=True)[extra][0]
        path = LoraFile(makers.universal() | {f"{V}{extra}.diff_b": torch.ones(rows)}).write(tmp_path)
        done = convert(path, tmp_path / "x.safetensors", to="same-as-input")
        assert "diffusers does not load the file, because of biases" in "".join(done.warnings)
        resized = loraport.resize(path, tmp_path / "resized.safetensors", rank=2).output
        for file in (path, done.output, resized):  # worth knowing, but nobody promised diffusers anything
            found = {check.name: check.passed for check in verify_adapter(file, load=True)}
            assert found["biases as diffusers needs them"] is None
            assert False not in found.values()
        with pytest.raises((KeyError, AssertionError)):  # and that is so
            _loaded(done.output)


class TestAsPeopleUseThem:
    """Several adapters, hotswap, and what diffusers saves of a file that was written here."""

    def _write(self, folder, name="x", seed=0, rank=4, **options):
        made = makers.factors(seed=seed, rank=rank)
        layers = {layer: LowRank(b, a) for layer, (b, a) in made.items()}
        tensors = render_adapter(layers, (), options.get("to", "universal"), _architecture(_model()))
        write_adapter(folder / f"{name}.safetensors", tensors, {"format": "pt"})
        return folder / f"{name}.safetensors", makers.deltas(made)

    def _change(self, pipeline) -> dict[str, torch.Tensor]:
        before = _model_state(pipeline.transformer)
        pipeline.fuse_lora(adapter_names=pipeline.get_active_adapters())
        after = _model_state(pipeline.transformer)
        return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}

    def test_two_adapters_add_up(self, tmp_path):
        first, a = self._write(tmp_path, "a", seed=1)
        second, b = self._write(tmp_path, "b", seed=2, rank=6, to="kohya")
        pipeline = _loaded(first)
        pipeline.load_lora_weights(second, adapter_name="second")
        pipeline.set_adapters(["default_0", "second"], [0.8, 1.0])
        _compare(self._change(pipeline), {name: 0.8 * a[name] + b[name] for name in a})

    @pytest.mark.parametrize("to", ["universal", "diffusers", "kohya"])
    def test_hotswap(self, to, tmp_path):
        first, _ = self._write(tmp_path, "a", seed=1)
        second, wanted = self._write(tmp_path, "b", seed=2, rank=6, to=to)
        pipeline = diffusers.WanPipeline(
            tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=_model()
        )  # fmt: skip
        pipeline.transformer.enable_lora_hotswap(target_rank=8)
        pipeline.load_lora_weights(first, adapter_name="one")
        pipeline.load_lora_weights(second, adapter_name="one", hotswap=True)
        _compare(self._change(pipeline), wanted)

    def test_what_diffusers_saves_of_it_is_the_same_lora(self, tmp_path):
        path, wanted = self._write(tmp_path)
        _loaded(path).transformer.save_lora_adapter(tmp_path / "saved", adapter_name="default_0")
        adapter = open_adapter(tmp_path / "saved", _architecture(_model()))
        assert adapter.layers.keys() == wanted.keys()
        for name, layer in adapter.layers.items():
            torch.testing.assert_close(layer.load().dense().double(), wanted[name], rtol=1e-4, atol=1e-5)
        assert not [check for check in verify_adapter(tmp_path / "saved") if check.passed is False]


def _model_state(model) -> dict[str, torch.Tensor]:
    """Weights under the names they have without adapters."""
    state = model.state_dict()
    return {name.replace(".base_layer", ""): t.clone() for name, t in state.items() if "lora_" not in name}


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
    convert(path, tmp_path / "x.safetensors")
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
    convert(tmp_path, tmp_path / "same.safetensors", to="same-as-input")
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
        convert(path, tmp_path / "x.safetensors", to=profile)
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
        convert(LoraFile(tensors).write(tmp_path), tmp_path / "x.safetensors")
        assert self._last(tmp_path / "x.safetensors").passed is None


def _hunyuan():
    return diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=hunyuan.CHANNELS, out_channels=hunyuan.OUTPUT, num_attention_heads=2, attention_head_dim=12,
        num_layers=2, num_refiner_layers=2, mlp_ratio=2.0, text_embed_dim=hunyuan.TEXT, text_embed_2_dim=16,
        image_embed_dim=hunyuan.IMAGE, rope_axes_dim=(4, 4, 4), use_meanflow=True,
    )  # fmt: skip


def test_hunyuan_video_15_as_diffusers_builds_it_is_known_in_full(tmp_path):
    save_file(_hunyuan().state_dict(), tmp_path / "x.safetensors")
    model = open_checkpoint(tmp_path / "x.safetensors")
    assert (model.architecture.family.name, model.naming) == ("hunyuan_video_15", "diffusers")
    assert (model.unknown, model.missing, model.notes) == ((), (), ())


@pytest.mark.parametrize("spelling", ["original", "comfyui"])
def test_hunyuan_video_15_loads_into_the_network(spelling, tmp_path, caplog):
    """diffusers has no LoRA loader for its pipeline, so the network's own is the one to satisfy."""
    sizes = ("byt5_in", "time_in", "txt_in.t_embedder")  # where the network has sizes of its own
    made = {name: pair for name, pair in hunyuan.factors().items() if not name.startswith(sizes)}
    tensors = {}
    for name, (b, a) in made.items():
        stem = name if spelling == "original" else "diffusion_model." + hunyuan.comfyui_name(name)
        if spelling == "comfyui" and name.endswith(("attn_q", "attn_k", "attn_v")):
            stem = "diffusion_model." + hunyuan.comfyui_name(name[:-1] + "qkv")
            rows = torch.zeros(72, 4)
            start = 24 * "qkv".index(name[-1])
            rows[start : start + 24] = b
            tensors[f"{stem}.lora_B.weight"] = torch.cat([tensors.get(f"{stem}.lora_B.weight", rows[:, :0]), rows], 1)
            tensors[f"{stem}.lora_A.weight"] = torch.cat([tensors.get(f"{stem}.lora_A.weight", a[:0]), a])
            continue
        tensors |= {f"{stem}.lora_B.weight": b, f"{stem}.lora_A.weight": a}
    convert(LoraFile(tensors).write(tmp_path), tmp_path / "x.safetensors", to="diffusers")
    written = load_file(tmp_path / "x.safetensors")
    assert {len(tensor) for key, tensor in written.items() if key.endswith(".lora_A.weight")} == {4}
    network = _hunyuan()
    changes = networks.fused(network, network, tmp_path / "x.safetensors", caplog)
    wanted = hunyuan.in_diffusers({name: b.double() @ a.double() for name, (b, a) in made.items()})
    assert changes.keys() == {f"{name}.weight" for name in wanted}
    for name, delta in wanted.items():
        assert (changes[f"{name}.weight"].double() - delta).norm() <= 1e-4 * delta.norm(), name
    checks = {check.name: check for check in verify_adapter(tmp_path / "x.safetensors", load=True)}
    assert checks["diffusers loads it"].passed is True
    assert "load_lora_adapter" in checks["diffusers loads it"].found
