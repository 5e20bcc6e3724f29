"""What PEFT trains besides factors and saves whole: biases, and the modules of `modules_to_save`.

The other route is what PEFT merges into the network of diffusers: every parameter's change, to 1e-5.
"""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import hunyuan
import makers
import networks
from loraport.adapters.convert import convert
from loraport.adapters.describe import describe
from loraport.adapters.parse import open_adapter
from loraport.cli.main import app
from loraport.errors import LoraportError, MismatchError, UnmatchedKeysError, UnsupportedError
from loraport.models.checkpoint import open_checkpoint
from makers import LoraFile

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

SOME = ["attn1.to_q", "ffn.net.0.proj"]
MODULES = ["proj_out", "norm2", "patch_embedding", "time_embedder"]
CASES = {
    "lora_only": {"bias": "lora_only", "target_modules": SOME},
    "all": {"bias": "all", "target_modules": SOME},
    "modules": {"modules_to_save": MODULES, "target_modules": SOME},
    "modules and all biases": {"modules_to_save": ["proj_out"], "bias": "all", "target_modules": SOME},
    "a block": {"modules_to_save": ["blocks.1"], "target_modules": r"blocks\.0\.attn1\.to_[qk]"},
    "DoRA": {"bias": "lora_only", "target_modules": SOME, "use_dora": True},
}


def _network():
    return diffusers.WanTransformer3DModel(**networks.WAN)


def _trained(case: str, folder, state):
    """A folder that PEFT saved, and what it changes of every parameter."""
    network = _network()
    network.load_state_dict(state)
    model = peft.get_peft_model(network, peft.LoraConfig(r=3, lora_alpha=6, **CASES[case]))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter * (1 + 0.1 * noise) if "magnitude" in name else parameter + 0.1 * noise)
    model.save_pretrained(str(folder))
    raw = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = model.merge_and_unload().state_dict()
    changes = {name: merged[name] - state[name] for name in state if not torch.equal(merged[name], state[name])}
    return folder, changes, raw


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The network's checkpoint, and every case that PEFT saved."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {name: tensor.clone() for name, tensor in _network().state_dict().items()}
        for name in state:  # norms start as ones, some biases as zeros
            state[name] += 0.1 * torch.randn(state[name].shape)
        path = tmp_path_factory.mktemp("model") / "source.safetensors"
        save_file(state, path)
        return path, {case: _trained(case, tmp_path_factory.mktemp("adapter"), state) for case in CASES}, state


@pytest.fixture(autouse=True)
def _own_rng():
    with torch.random.fork_rng():
        yield


def _run(*words: object, code: int = 0) -> str:
    done = CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(word) for word in words], prog_name="loraport")
    assert done.exit_code == code, done.output
    return done.output


def _changes(adapter) -> dict[str, torch.Tensor]:
    """What an adapter changes, by the parameter's name in diffusers; what it leaves as it is, is left out."""
    family = adapter.architecture.family
    found = {}
    for name, layer in adapter.layers.items():
        found[f"{family.spell(name, 'diffusers')}.weight"] = layer.load().dense()
    for item in adapter.passthrough:
        last = item.param.removeprefix(item.module)
        assert item.load().dtype == torch.float32
        found[family.spell(item.module, "diffusers") + last] = item.load()
    return {name: change for name, change in found.items() if change.any()}


def _same(found, wanted, tolerance=1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        difference = (found[name].reshape(change.shape) - change).norm()
        assert difference <= tolerance * change.norm() + 1e-6, name


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_changes_as_peft_merges_it(case, made):
    model, cases, _ = made
    folder, changes, _ = cases[case]
    adapter = open_adapter(folder, open_checkpoint(model))
    _same(_changes(adapter), changes)
    assert any("saved whole by PEFT" in text for text in adapter.warnings)
    held = {key for layer in adapter.layers.values() for key in layer.keys}
    held |= {key for item in adapter.passthrough for key in item.keys} | set(adapter.dropped)
    assert held == set(adapter.keys)
    _same(_changes(adapter.scaled(0.5)), {name: change / 2 for name, change in changes.items()})


@pytest.mark.parametrize("case", CASES)
def test_transfer_and_what_diffusers_makes_of_it(case, made, tmp_path):
    model, cases, state = made
    folder, changes, _ = cases[case]
    out = tmp_path / "out.safetensors"
    words = ["--source", model, "--target", model, "--method", "direct", "--rank", "full", "--cache", "off"]
    _run("transfer", folder, *words, "-o", out)
    _same(_changes(open_adapter(out, open_checkpoint(model))), changes)
    network = _network()
    network.load_state_dict(state)
    pipeline = diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=network)
    pipeline.load_lora_weights(out)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    after = network.state_dict()
    linear = {name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    found = {name: after[name] - state[name] for name in state if not torch.equal(after[name], state[name])}
    # Left out there, as the table says: norms, convolutions, bare parameters.
    _same(found, {name: change for name, change in changes.items() if name.rpartition(".")[0] in linear}, 1e-4)


def test_to_another_model_the_biases_go_as_they_are(made, tmp_path):
    """A bias is passed on: its change is the source's, whatever the target's bias is."""
    model, cases, state = made
    folder, changes, _ = cases["all"]
    generator = torch.Generator().manual_seed(1)
    target = {name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    save_file(target, tmp_path / "target.safetensors")
    out = tmp_path / "out.safetensors"
    _run("transfer", folder, "-s", model, "-t", tmp_path / "target.safetensors", "--cache", "off", "-o", out)
    found = _changes(open_adapter(out))
    biases = {name: change for name, change in changes.items() if name.endswith(".bias")}
    assert len(biases) > len(SOME) * 2
    _same({name: found[name] for name in biases}, biases)


@pytest.mark.parametrize("case", ["lora_only", "all", "modules"])
def test_convert_needs_the_model_and_says_so(case, made, tmp_path):
    model, cases, _ = made
    folder, changes, _ = cases[case]
    out = tmp_path / "out.safetensors"
    assert any("--model" in text for text in describe(folder).findings)
    with pytest.raises(UnsupportedError, match="--model SOURCE"):
        convert(folder, out)
    assert not out.exists()
    for to in ("universal", "original", "same-as-input"):
        convert(folder, out, to=to, model=model, overwrite=True)
        _same(_changes(open_adapter(out, open_checkpoint(model))), changes)


@pytest.mark.parametrize("case", ["modules", "a block"])
def test_a_state_dictionary_that_was_not_filtered(case, made, tmp_path):
    """Names of adapters inside, and what the modules were before beside them; no weight of a wrapped layer."""
    model, cases, _ = made
    _, changes, raw = cases[case]
    kept = {
        name: tensor for name, tensor in raw.items() if ".lora_" in name or "_to_save." in name or "original" in name
    }
    assert any(".modules_to_save.default." in name for name in kept)
    path = LoraFile(kept, {}, makers.peft_config(r=3, lora_alpha=6)).write(tmp_path)
    adapter = open_adapter(path, open_checkpoint(model))
    _same(_changes(adapter), changes)
    assert adapter.dropped
    assert all(".original_module." in key for key in adapter.dropped)


@pytest.mark.parametrize(
    ("config", "carried"),
    [
        ({"bias": "all"}, {"blocks.0.norm2.bias", "blocks.0.attn1.to_q.bias"}),
        ({"modules_to_save": ["proj_out", "blocks.0.norm2"]}, {"proj_out.weight", "blocks.0.norm2.bias"}),
        ({"bias": "none"}, set()),
        (None, set()),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_without_pefts_prefix_its_configuration_says_it(config, carried, inside, made, tmp_path):
    """As diffusers saves a LoRA: `transformer.`, the configuration in the header."""
    model, _, state = made
    names = ("proj_out.weight", "blocks.0.norm2.bias", "blocks.0.attn1.to_q.bias")
    tensors = {
        "transformer.blocks.1.attn1.to_q.lora_A.weight": torch.ones(2, 24),
        "transformer.blocks.1.attn1.to_q.lora_B.weight": torch.ones(24, 2),
    } | {f"transformer.{name}": 2 * state[name] for name in names}
    fields = None if config is None else {"r": 2, "lora_alpha": 2} | config
    header = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in (fields or {}).items()})}
    path = LoraFile(tensors, header if inside and fields else {}, None if inside else fields).write(tmp_path)
    opened = open_checkpoint(model)
    if carried != set(names):
        with pytest.raises(UnmatchedKeysError):
            open_adapter(path, opened)
    adapter = open_adapter(path, opened, allow_partial=True)
    found = _changes(adapter)
    assert found.pop("blocks.1.attn1.to_q.weight").any()
    _same(found, {name: state[name] for name in carried})
    assert set(adapter.dropped) == {f"transformer.{name}" for name in names if name not in carried}


def test_a_checkpoint_is_never_taken_for_a_lora(made, tmp_path):
    """Neither with PEFT's prefix nor beside a configuration; and of a whole PEFT model only what was trained counts."""
    model, cases, state = made
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 6, "bias": "all"}))
    for prefix in ("", "base_model.model."):
        save_file({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "x.safetensors")
        with pytest.raises(MismatchError, match="checkpoint"):
            open_adapter(tmp_path / "x.safetensors")
    raw = cases["modules"][2]
    save_file(raw, tmp_path / "x.safetensors")
    with pytest.raises(UnmatchedKeysError, match="without the model's own weights"):
        open_adapter(tmp_path / "x.safetensors", open_checkpoint(model))
    adapter = open_adapter(tmp_path / "x.safetensors", open_checkpoint(model), allow_partial=True)
    _same(_changes(adapter), cases["modules"][1])


WRONG = {
    "another size": ({"blocks.0.norm2.bias": torch.ones(25)}, r"\[25\]"),
    "no such parameter": ({"blocks.0.attn1.norm_q.bias": torch.ones(24)}, "no blocks.0.self_attn.norm_q.bias"),
    "no module": ({"blocks.0.strange.weight": torch.ones(24)}, "whole parameter"),
    "integers": ({"blocks.0.norm2.bias": torch.ones(24, dtype=torch.int64)}, "whole parameter"),
    "not finite": ({"blocks.0.norm2.bias": torch.full((24,), torch.nan)}, "NaN"),
    "twice": (
        {"blocks.0.attn1.to_q.base_layer.bias": torch.ones(24), "blocks.0.attn1.to_q.lora_B.bias": torch.ones(24)},
        "twice",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case, made, tmp_path):
    model, _, _ = made
    extra, words = WRONG[case]
    tensors = {
        "base_model.model.blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 24),
        "base_model.model.blocks.0.attn1.to_q.lora_B.weight": torch.ones(24, 2),
    } | {f"base_model.model.{key}": tensor for key, tensor in extra.items()}
    path = LoraFile(tensors).write(tmp_path)
    with pytest.raises(LoraportError, match=words):
        convert(path, tmp_path / "out.safetensors", model=model)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_parameter_of_the_source_that_another_lora_changed(made, tmp_path):
    model, cases, _ = made
    layer = "transformer.blocks.0.attn1.to_q"
    adds = {f"{layer}.lora_A.weight": torch.ones(2, 24), f"{layer}.lora_B.weight": torch.ones(24, 2)}
    training = LoraFile(adds | {f"{layer}.lora_B.bias": torch.ones(24)}).write(tmp_path, "training.safetensors")
    words = ["transfer", cases["lora_only"][0], "-s", model, "-t", model, "--source-lora", training]
    said = _run(*words, "--cache", "off", "-o", tmp_path / "out.safetensors", code=3)
    assert "self_attn.q.bias" in said
    assert "merge the LoRA into the source" in said


SPELLED = {"fused": hunyuan.repackaged_state, "diffusers": hunyuan.diffusers_state}


@pytest.mark.parametrize("source", SPELLED)
@pytest.mark.parametrize("file", SPELLED)
def test_fused_weights_and_turned_rows(file, source, tmp_path):
    """Every parameter of HunyuanVideo-1.5 but one, whole, for a source in the same or the other layout."""
    before, after = hunyuan.model(0), hunyuan.model(1)
    save_file(SPELLED[source](before), tmp_path / "source.safetensors")
    given = {f"base_model.model.{key}": tensor for key, tensor in SPELLED[file](after).items()}
    linear = "final_layer.linear" if file == "fused" else "proj_out"
    del given[f"base_model.model.{linear}.weight"]
    factors = {".lora_A.weight": torch.ones(2, hunyuan.WIDTH), ".lora_B.weight": torch.ones(hunyuan.OUTPUT, 2)}
    given |= {f"base_model.model.{linear}{ending}": tensor for ending, tensor in factors.items()}
    save_file(given, tmp_path / "lora.safetensors")
    found = _changes(open_adapter(tmp_path / "lora.safetensors", open_checkpoint(tmp_path / "source.safetensors")))
    wanted = hunyuan.diffusers_state({key: after[key] - before[key] for key in before})
    for kind in ("weight", "bias"):  # updates have their rows in Tencent's order
        wanted[f"norm_out.linear.{kind}"] = hunyuan.swapped(wanted[f"norm_out.linear.{kind}"])
    wanted["proj_out.weight"] = torch.full((hunyuan.OUTPUT, hunyuan.WIDTH), 2.0)
    _same(found, wanted)
