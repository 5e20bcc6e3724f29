"""Every kind that PEFT has too: what PEFT merges into the weights of a small model is what is read here."""

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import pico
from loraport.adapters import loading
from loraport.adapters.convert import convert
from loraport.adapters.loading.layers import stored_update
from loraport.adapters.parse import open_adapter
from loraport.adapters.verify import verify_adapter
from loraport.cli.main import app
from loraport.errors import UnsupportedError
from loraport.models.checkpoint import open_checkpoint

TARGETS = ["q", "k", "v", "o", "ffn.0", "ffn.2"]
CONFIGS = {
    "LoRA": lambda: peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS),
    "DoRA": lambda: peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, use_dora=True),
    "DoRA, rank-stabilised": lambda: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=TARGETS, use_dora=True, use_rslora=True
    ),
    "DoRA, with a convolution": lambda: peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=[*TARGETS, "patch_embedding"], use_dora=True
    ),
    "LoHa": lambda: peft.LoHaConfig(r=2, alpha=3, target_modules=TARGETS),
    "LoKr": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=TARGETS),
    "OFT, series": lambda: peft.OFTConfig(oft_block_size=4, target_modules=TARGETS, use_cayley_neumann=True),
    "OFT, long series": lambda: peft.OFTConfig(
        oft_block_size=4, target_modules=TARGETS, use_cayley_neumann=True, num_cayley_neumann_terms=7
    ),
    "OFT, inverse": lambda: peft.OFTConfig(oft_block_size=8, target_modules=TARGETS, use_cayley_neumann=False),
    "OFT, shared block": lambda: peft.OFTConfig(oft_block_size=8, target_modules=TARGETS, block_share=True),
    "OFT, bounded": lambda: peft.OFTConfig(oft_block_size=4, target_modules=TARGETS, coft=True, eps=0.05),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=TARGETS),
    "IA3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=["ffn.2"]),
    "VeRA": lambda: peft.VeraConfig(r=5, target_modules=TARGETS, save_projection=True),
}
ON_SOURCE = [name for name in CONFIGS if name.startswith(("DoRA", "OFT", "BOFT", "IA3"))]


class Net(nn.Module):
    """The linear layers of a pico Wan, under their names."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        for layer in pico.LAYERS:
            *path, last = layer.split(".")
            place: nn.Module = self
            for name in path:
                if name not in dict(place.named_children()):
                    place.add_module(name, nn.Module())
                place = place.get_submodule(name)
            weight = weights[f"{layer}.weight"]
            linear = nn.Linear(*reversed(weight.shape))
            linear.load_state_dict({"weight": weight, "bias": weights[f"{layer}.bias"]})
            place.add_module(last, linear)
        self.patch_embedding = nn.Conv3d(16, pico.WIDTH, (1, 2, 2), stride=(1, 2, 2))
        state = {name: weights[f"patch_embedding.{name}"] for name in ("weight", "bias")}
        self.patch_embedding.load_state_dict(state)


def _trained(case: str, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file that PEFT saved, and what it changes of every parameter."""
    weights = pico.weights(1)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(Net(weights), CONFIGS[case]())
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                spread = torch.randn(parameter.shape, generator=generator)
                unit = any(part in name for part in ("magnitude", "ia3_l", "boft_s"))
                with torch.no_grad():
                    parameter.copy_(parameter * (1 + 0.2 * spread) if unit else 0.3 * spread)
        model.save_pretrained(str(folder))
        merged = model.merge_and_unload().state_dict()
    return folder, {name: merged[name] - weights[name] for name in merged}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    files = pico.write(tmp_path_factory.mktemp("models"))
    found = {case: _trained(case, tmp_path_factory.mktemp("adapter")) for case in CONFIGS}
    return files, found


def _close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).norm() <= 1e-4 * wanted.norm() + 1e-6


@pytest.mark.parametrize("case", CONFIGS)
def test_the_update_is_what_peft_merges(case, made):
    files, found = made
    path, changes = found[case]
    adapter = open_adapter(path, open_checkpoint(files.source))
    assert adapter.layers.keys() == pico.LAYERS.keys()
    for name, layer in adapter.layers.items():
        wanted = changes[f"{name}.weight"]
        assert wanted.norm() > 1e-3
        loaded = layer.load()
        assert loaded.rank == layer.rank
        _close(loaded.dense(), wanted)
        stored = stored_update(layer)
        _close(layer.scale * (stored if isinstance(stored, torch.Tensor) else stored[0] @ stored[1]), wanted)
    halved = adapter.scaled(0.5).layers["blocks.1.ffn.2"]
    _close(halved.load().dense(), changes["blocks.1.ffn.2.weight"] / 2)
    others = {item.param: item.load() for item in adapter.passthrough}
    assert ("patch_embedding.weight" in others) == ("convolution" in case)
    for name, change in changes.items():
        if name.removesuffix(".weight") not in adapter.layers and change.any():
            _close(others.pop(name), change)
    assert not others


@pytest.mark.parametrize("case", CONFIGS)
def test_a_file_is_verified_as_one_for_the_model_that_is_named(case, made):
    files, found = made
    checks = {check.name: check for check in verify_adapter(found[case][0], open_checkpoint(files.source))}
    assert [check for check in checks.values() if check.passed is False] == []
    assert checks["fits the model"].passed


def _run(*words: object) -> str:
    done = CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(word) for word in words], prog_name="loraport")
    assert done.exit_code == 0, done.output
    return done.stdout


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in ("OFT, inverse", "BOFT", "IA3", "VeRA")]


@pytest.mark.parametrize("case", ["DoRA", *SLOW])
def test_inspect_transfer_and_verify(case, made, tmp_path):
    files, found = made
    path, changes = found[case]
    facts = json.loads(_run("inspect", path, "--json"))
    assert facts["layers"] == 20
    assert facts["refused"] == ""
    _run("verify", path, "--no-load", "--model", files.source)
    models = ["--source", files.source, "--target", files.target, "--cache", "off"]
    direct, cut, default = (tmp_path / f"{name}.safetensors" for name in ("direct", "cut", "casa"))
    _run("transfer", path, *models, "--method", "direct", "--rank", "full", "-o", direct)
    for name, layer in open_adapter(direct, open_checkpoint(files.target)).layers.items():
        _close(layer.load().dense(), changes[f"{name}.weight"])
    report = json.loads(_run("transfer", path, *models, "--method", "direct", "--rank", "4", "-o", cut, "--json"))
    for layer in report["layers"]:
        wanted = changes[f"{layer['name']}.weight"].double()
        squares = torch.linalg.svdvals(wanted) ** 2
        assert layer["energy_kept"] == pytest.approx(float(squares[:4].sum() / squares.sum()), abs=1e-4)
    assert len(json.loads(_run("transfer", path, *models, "-o", default, "--json"))["layers"]) == 20


@pytest.mark.parametrize("case", ON_SOURCE)
def test_convert_needs_the_model_and_says_so(case, made, tmp_path):
    files, found = made
    path, changes = found[case]
    with pytest.raises(UnsupportedError, match="--model") as caught:
        convert(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    convert(path, tmp_path / "out.safetensors", model=files.source)
    layer = open_adapter(tmp_path / "out.safetensors").layers["blocks.0.ffn.0"]
    _close(layer.load().dense(), changes["blocks.0.ffn.0.weight"])
    if case == "DoRA":  # the other way out that is named
        assert "--target SOURCE --method direct" in caught.value.message
        models = ["--source", files.source, "--target", files.source, "--method", "direct", "--cache", "off"]
        _run("transfer", path, *models, "--rank", "full", "-o", tmp_path / "same.safetensors")
        layer = open_adapter(tmp_path / "same.safetensors").layers["blocks.0.ffn.0"]
        _close(layer.load().dense(), changes["blocks.0.ffn.0.weight"])


def test_oft_without_its_configuration_is_refused(made, tmp_path):
    files, found = made
    path = tmp_path / "alone.safetensors"
    path.write_bytes((found["OFT, series"][0] / "adapter_model.safetensors").read_bytes())
    adapter = open_adapter(path, open_checkpoint(files.source))
    with pytest.raises(UnsupportedError, match=r"adapter_config\.json"):
        adapter.layers["blocks.0.ffn.0"].load()


def test_vera_without_its_matrices_is_refused(tmp_path):
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.VeraConfig(r=5, target_modules=TARGETS, save_projection=False)
        peft.get_peft_model(Net(pico.weights(1)), config).save_pretrained(str(tmp_path))
    with pytest.raises(UnsupportedError, match="VeRA without its two random matrices"):
        open_adapter(tmp_path)


def test_dora_without_its_magnitudes_is_refused(made, tmp_path):
    _, found = made
    (tmp_path / "adapter_config.json").write_text((found["DoRA"][0] / "adapter_config.json").read_text())
    (tmp_path / "adapter_model.safetensors").write_bytes((found["LoRA"][0] / "adapter_model.safetensors").read_bytes())
    with pytest.raises(UnsupportedError, match="no magnitudes"):
        open_adapter(tmp_path)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_the_butterfly_of_boft(stages, tmp_path):
    """Only on a GPU does PEFT make more than one stage; its own pieces, put together here, are the other route."""
    from peft.tuners.boft.layer import BOFTLayer
    from safetensors.torch import save_file

    from loraport.adapters.kinds import KINDS
    from loraport.adapters.kinds.base import OnSource
    from loraport.containers.tensors import open_tensors

    generator = torch.Generator().manual_seed(0)
    block, count, rows = 4, 8, 6
    size = block * count
    turns = 0.3 * torch.randn(stages, count, block, block, generator=generator)
    weight, scales = torch.randn(rows, size, generator=generator), torch.rand(rows, 1, generator=generator)
    whole = torch.eye(size)
    tool = BOFTLayer.__new__(BOFTLayer)
    for stage in range(stages):
        order = tool.block_butterfly_perm(size, count // 2**stage, block // 2, stages - 1)
        swap = tool.perm2mat(order)
        whole = swap @ torch.block_diag(*tool.cayley_batch(turns[stage])) @ swap.T @ whole
    save_file({"boft_R": turns, "boft_s": scales}, tmp_path / "x.safetensors")
    refs = open_tensors(tmp_path / "x.safetensors").groups[()]
    kind = KINDS["oft"]
    assert isinstance(kind, OnSource)
    _close(loading.change(kind, refs, weight, {}).dense(), (whole @ weight.T).T * scales - weight)
