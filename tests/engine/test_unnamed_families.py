"""`--architecture any`: a family that nobody described, by the names and shapes that source, target and LoRA share."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import pico
from loraport.engine.options import RunOptions
from loraport.errors import LoraportError, MismatchError, UnmatchedKeysError, UsageError
from loraport.models.checkpoint import open_checkpoint

diffusers = pytest.importorskip("diffusers")
OPTIONS = RunOptions(cache="off", executor="serial", log="off")


def _lumina():
    """Lumina-Image 2.0, which is recognised and not supported."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.Lumina2Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
            num_attention_heads=3, num_kv_heads=1, multiple_of=16, ffn_dim_multiplier=None, axes_dim_rope=(4, 2, 2),
            axes_lens=(16, 16, 16), cap_feat_dim=20,
        )  # fmt: skip


def _write(folder, state, name):
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name)
    return folder / name


def _lora(layers, prefix="transformer.", flat=False, rank=2):
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, (m, n) in layers.items():
        stem = prefix + (name.replace(".", "_") if flat else name)
        down, up = (".lora_down.weight", ".lora_up.weight") if flat else (".lora_A.weight", ".lora_B.weight")
        found[stem + down] = torch.randn(rank, n, generator=generator) / n**0.5
        found[stem + up] = torch.randn(m, rank, generator=generator)
    return found


@pytest.fixture
def files(tmp_path):
    """A network, its source and target on disk, and its layers of attention and feed-forward by name."""
    model = _lumina()
    state = dict(model.state_dict())
    source = _write(tmp_path, state, "source.safetensors")
    prefixed = {f"model.diffusion_model.{key}": t for key, t in pico.distilled(state, 2).items()}
    target = _write(tmp_path, prefixed, "target.safetensors")
    layers = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("layers.") and (".attn." in name or "w1" in name)
    }
    return model, source, target, layers


def _transfer(lora, source, target, folder, **settings):
    settings = {"architecture": "any", "method": "casa", "rank": "full", "options": OPTIONS} | settings
    return loraport.transfer(lora, source=source, target=target, output=folder / "out.safetensors", **settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_comes_out_is_loaded_by_its_own_pipeline(files, tmp_path):
    pytest.importorskip("peft")
    model, source, target, layers = files
    lora = _lora(layers)
    report = _transfer(_write(tmp_path, lora, "lora.safetensors"), source, target, tmp_path, method="direct")
    assert report.summary.layers == len(layers) == 2 * 4
    assert any("by name and shape alone" in text for text in report.warnings)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    pipeline = diffusers.Lumina2Pipeline(
        transformer=model, scheduler=None, vae=None, text_encoder=None, tokenizer=None
    )  # fmt: skip
    pipeline.load_lora_weights(tmp_path / "out.safetensors")
    assert not [name for name, parameter in model.named_parameters() if parameter.is_meta]
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    changed = {key: t - before[key] for key, t in model.state_dict().items() if not torch.equal(t, before[key])}
    assert changed.keys() == {f"{name}.weight" for name in layers}
    for name in layers:
        delta = lora[f"transformer.{name}.lora_B.weight"] @ lora[f"transformer.{name}.lora_A.weight"]
        assert (changed[f"{name}.weight"] - delta).norm() <= 1e-4 * delta.norm(), name


@pytest.mark.parametrize(
    ("to", "stem"),
    [
        (None, "diffusion_model.layers.0.attn.to_q"),
        ("same-as-input", "diffusion_model.layers.0.attn.to_q"),
        ("diffusers", "transformer.layers.0.attn.to_q"),
        ("original", "layers.0.attn.to_q"),
    ],
)
def test_the_names_of_the_output_are_those_of_the_input_unless_stated(to, stem, files, tmp_path):
    _, source, target, layers = files
    path = _write(tmp_path, _lora(layers, "diffusion_model."), "lora.safetensors")
    _transfer(path, source, target, tmp_path, **({} if to is None else {"to": to}))
    assert f"{stem}.lora_A.weight" in load_file(tmp_path / "out.safetensors")


def test_a_method_that_reads_the_drift_gives_what_it_gives_a_known_family(tmp_path):
    """Wan by its names alone is Wan."""
    made = pico.write(tmp_path)
    found = {}
    for architecture in ("auto", "wan", "any"):
        _transfer(made.lora, made.source, made.target, tmp_path, architecture=architecture, options=OPTIONS)
        found[architecture] = load_file(tmp_path / "out.safetensors")
        (tmp_path / "out.safetensors").unlink()
    for other in ("wan", "any"):
        assert found[other].keys() == found["auto"].keys()
        assert all(torch.equal(found[other][key], tensor) for key, tensor in found["auto"].items())


def test_flattened_names_are_looked_up(files, tmp_path):
    _, source, target, layers = files
    lora = _lora(layers, "lora_unet_", flat=True)
    lora |= {key.replace(".lora_up.weight", ".alpha"): torch.tensor(1.0) for key in lora if ".lora_up." in key}
    report = _transfer(_write(tmp_path, lora, "lora.safetensors"), source, target, tmp_path)
    assert report.summary.layers == len(layers)
    assert load_file(tmp_path / "out.safetensors").keys() == lora.keys()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda key: key.replace("layers.0.attn.to_q", "layers.0.attn.q_proj"), UnmatchedKeysError, "q_proj"),
        (lambda key: key.replace("layers.0.attn.to_k", "layers.0.attn.swap").replace("layers.0.attn.to_out.0",
         "layers.0.attn.to_k").replace("layers.0.attn.swap", "layers.0.attn.to_out.0"), MismatchError, "8 x 24"),
    ],
)  # fmt: skip
def test_other_names_and_other_shapes_are_refused(change, error, said, files, tmp_path):
    _, source, target, layers = files
    lora = {change(key): tensor for key, tensor in _lora(layers).items()}
    with pytest.raises(error, match=said):
        _transfer(_write(tmp_path, lora, "lora.safetensors"), source, target, tmp_path)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_target_of_another_shape_or_without_the_layers_is_refused(files, tmp_path):
    _, source, _, layers = files
    lora = _write(tmp_path, _lora(layers), "lora.safetensors")
    state = load_file(source)
    other = _write(tmp_path, state | {"layers.1.attn.to_k.weight": torch.zeros(24, 24)}, "other.safetensors")
    with pytest.raises(LoraportError, match="8 x 24"):
        _transfer(lora, source, other, tmp_path)
    alien = _write(tmp_path, {f"body.{key}": tensor for key, tensor in state.items()}, "alien.safetensors")
    with pytest.raises(MismatchError, match="no layer of the same name"):
        _transfer(lora, source, alien, tmp_path)


def test_unstated_the_file_is_refused_by_its_name_and_the_flag_is_named(files, tmp_path):
    _, source, target, layers = files
    with pytest.raises(MismatchError, match=r"Lumina-Image 2\.0") as caught:
        _transfer(_write(tmp_path, _lora(layers), "lora.safetensors"), source, target, tmp_path, architecture="auto")
    assert "--architecture any" in str(caught.value.fix)


def test_convert_and_verify_take_it_too(files, tmp_path):
    _, source, _, layers = files
    path = _write(tmp_path, _lora(layers), "lora.safetensors")
    with pytest.raises(UsageError, match="without a model"):
        loraport.convert(path, tmp_path / "x.safetensors", architecture="any")
    loraport.convert(path, tmp_path / "x.safetensors", to="kohya", model=source, architecture="any")
    loraport.convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", to="diffusers", model=source,
                     architecture="any")  # fmt: skip
    one, two = load_file(path), load_file(tmp_path / "y.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(two[key], tensor) for key, tensor in one.items())
    checks = loraport.verify(tmp_path / "y.safetensors", model=source, architecture="any").checks
    assert {check.name: check.passed for check in checks}["fits the model"] is True


def test_names_of_families_are_checked(files, tmp_path):
    _, source, target, layers = files
    lora = _write(tmp_path, _lora(layers), "lora.safetensors")
    with pytest.raises(UsageError, match="no architecture of that name"):
        _transfer(lora, source, target, tmp_path, architecture="lumina")
    with pytest.raises(MismatchError, match="this is not Wan"):
        _transfer(lora, source, target, tmp_path, architecture="wan")


def test_of_names_that_flatten_to_one_neither_is_taken(tmp_path):
    path = _write(tmp_path, {"a.b_c.weight": torch.ones(4, 4), "a_b.c.weight": torch.ones(4, 4)}, "x.safetensors")
    model = open_checkpoint(path, architecture="any")
    assert set(model.architecture.layers) == {"a.b_c", "a_b.c"}
    from loraport.models.keymap import keymap_of

    assert keymap_of(model.architecture.family).resolve("lora_unet_a_b_c") is None
