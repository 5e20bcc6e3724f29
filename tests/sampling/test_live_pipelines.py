"""`load_transferred_lora` on whole pipelines of diffusers: what they show afterwards is what `transfer` writes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import networks
from loraport.adapters.parse import open_adapter
from loraport.containers.tensors import read_tensor
from loraport.diffusers import load_transferred_lora
from loraport.errors import LoraportError, UsageError
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families
from loraport.sampling.in_memory import write_network

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
image_families = pytest.importorskip("image_families")
tinywan = pytest.importorskip("tinywan")
pytestmark = pytest.mark.filterwarnings("ignore")
OPTIONS = loraport.RunOptions(cache="off", log="off", executor="serial")
VIDEO = ("wan_vace", "ltx_video", "ltx2", "hunyuan_video", "cogvideox", "minimax_h3")
FAST = ("ltx_video",)
IMAGES = ("krea2", "qwen_image", "z_image", "flux2", "qwen_image_21")


@pytest.fixture(autouse=True)
def _own_rng():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _pipeline(name):
    if name in VIDEO:
        network = networks.build(name)
        return networks.pipeline(name, network)
    case = image_families.CASES[name]
    network = case.network()
    network.load_state_dict(image_families.random_state(network, 1))
    kind = getattr(diffusers, case.pipeline)
    return kind(**{**dict.fromkeys(kind._get_signature_keys(kind)[0]), "transformer": network})


def _files(pipe, folder, part="transformer"):
    """The source, of which the pipeline's transformer is moved away afterwards, and a LoRA for the source."""
    network = getattr(pipe, part)
    save_file({key: t.detach().clone() for key, t in network.state_dict().items()}, folder / f"{part}.safetensors")
    layers = open_checkpoint(folder / f"{part}.safetensors").architecture.layers
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator) * tensor.norm() / tensor.numel() ** 0.5)
    made = {}
    for layer, (m, n) in layers.items():
        made[f"transformer.{layer}.lora_A.weight"] = torch.randn(3, n, generator=generator) / n**0.5
        made[f"transformer.{layer}.lora_B.weight"] = torch.randn(m, 3, generator=generator)
    return folder / f"{part}.safetensors", made


def _weights(pipe, part="transformer"):
    return {key: tensor.detach().clone() for key, tensor in getattr(pipe, part).state_dict().items()}


def _written(path, model):
    """The update of a file by the names of diffusers."""
    checkpoint = open_checkpoint(model)
    found = {f"{name}.weight": layer.load().dense() for name, layer in open_adapter(path, checkpoint).layers.items()}
    return networks.respell(found, checkpoint.architecture.family, "diffusers")


def _compare(before, after, update):
    assert update
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        delta = update.get(key)
        if delta is None:
            assert torch.equal(after[key], tensor), key
        else:
            assert (after[key] - tensor - delta).norm() <= 1e-5 * delta.norm(), key


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in (*VIDEO, *IMAGES)],
)
def test_the_pipeline_shows_the_update_that_transfer_writes(name, tmp_path):
    pipe = _pipeline(name)
    source, made = _files(pipe, tmp_path)
    save_file(made, tmp_path / "style.v2.safetensors")
    before = _weights(pipe)
    save_file(before, tmp_path / "target.safetensors")
    loraport.transfer(
        tmp_path / "style.v2.safetensors", source=source, target=tmp_path / "target.safetensors", method="matched-gain",
        output=tmp_path / "out.safetensors", options=OPTIONS,
    )  # fmt: skip
    report = load_transferred_lora(
        pipe, tmp_path / "style.v2.safetensors", source=source, options=OPTIONS, settings={"method": "matched-gain"}
    )
    assert report.output is None
    assert "style_v2" in report.load[0]
    assert pipe.get_list_adapters() == {"transformer": ["style_v2"]}
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    _compare(before, _weights(pipe), _written(tmp_path / "out.safetensors", source))


def _wan(folder):
    """A pipeline with both experts, the folder of their source, and a file with LoRAs for both."""
    pipe = tinywan.pipeline(encoder=False)
    pipe.register_modules(transformer_2=tinywan.transformer(10))
    both = {}
    for part, number, size in (("transformer", 1, 0.5), ("transformer_2", 2, 0.2)):
        getattr(pipe, part).save_pretrained(folder / "source" / part)
        tinywan_lora = load_file(tinywan.lora(folder / "lora.safetensors", size=size))
        both |= {key.replace("diffusion_model.", f"transformer_{number}."): t for key, t in tinywan_lora.items()}
    pipe.transformer.load_state_dict(tinywan.transformer(0, drift=0.1).state_dict())
    pipe.transformer_2.load_state_dict(tinywan.transformer(10, drift=0.1).state_dict())
    save_file(both, folder / "both.safetensors")
    return pipe, folder / "source", folder / "both.safetensors"


def test_both_experts_of_wan_get_theirs(tmp_path):
    pipe, source, lora = _wan(tmp_path)
    for part in ("transformer", "transformer_2"):
        getattr(pipe, part).save_pretrained(tmp_path / "target" / part)
    recipe = loraport.Recipe(lora=lora, source=source, target=tmp_path / "target")
    loraport.transfer_experts(recipe, output=tmp_path / "out.safetensors", options=OPTIONS)
    before = {part: _weights(pipe, part) for part in ("transformer", "transformer_2")}
    report = load_transferred_lora(
        pipe, lora, source=source, adapter_name="look", output=tmp_path / "kept.safetensors", options=OPTIONS
    )
    assert list(report.reports) == ["high", "low"]
    assert pipe.get_list_adapters() == {"transformer": ["look"], "transformer_2": ["look"]}
    pipe.set_adapters("look", 0.5)
    pipe.set_adapters("look", 1.0)
    pipe.fuse_lora(components=list(before))
    pipe.unload_lora_weights()
    for expert, part in (("high", "transformer"), ("low", "transformer_2")):
        update = _written(tmp_path / f"out_{expert}_noise.safetensors", source / part)
        _compare(before[part], _weights(pipe, part), update)
        kept = load_file(tmp_path / f"kept_{expert}_noise.safetensors")
        again = load_file(report.reports[expert].output)
        assert all(torch.equal(kept[key], tensor) for key, tensor in again.items())


def _one_expert(folder):
    pipe, source, _ = _wan(folder)
    return pipe, source, folder / "lora.safetensors"


@pytest.mark.slow
def test_one_expert_alone(tmp_path):
    pipe, source, lora = _one_expert(tmp_path)
    high = _weights(pipe)
    load_transferred_lora(pipe, lora, source=source, expert="low", options=OPTIONS)
    assert pipe.get_list_adapters() == {"transformer_2": ["lora"]}
    assert all(torch.equal(tensor, high[key]) for key, tensor in _weights(pipe).items())


def _with_one(folder):
    """A pipeline with one transformer, its source and a LoRA."""
    pipe = tinywan.pipeline(encoder=False)
    pipe.transformer.save_pretrained(folder / "source")
    pipe.transformer.load_state_dict(tinywan.transformer(0, drift=0.1).state_dict())
    return pipe, folder / "source", tinywan.lora(folder / "style.safetensors")


def _distillation(folder):
    return tinywan.lora(folder / "fast.safetensors", size=0.1)


def _effect(pipe, layer="blocks.0.attn1.to_q", name="style"):
    return pipe.transformer.get_submodule(layer).get_delta_weight(name).float()


def _reference(pipe, source, lora, folder, state=None):
    """What `transfer` makes of the weights as they are given."""
    save_file(_weights(pipe) if state is None else state, folder / "goal.safetensors")
    loraport.transfer(
        lora, source=source, target=folder / "goal.safetensors", output=folder / "out.safetensors", options=OPTIONS
    )
    return _written(folder / "out.safetensors", source)["blocks.0.attn1.to_q.weight"]


def test_adapters_that_are_active_count_as_a_part_of_the_target_and_stay_active(tmp_path):
    pipe, source, lora = _with_one(tmp_path)
    pipe.load_lora_weights(str(_distillation(tmp_path)), adapter_name="fast")
    pipe.load_lora_weights(str(lora), adapter_name="asleep")
    pipe.set_adapters("fast", 0.7)
    other = tinywan.pipeline(encoder=False)
    other.transformer.load_state_dict(tinywan.transformer(0, drift=0.1).state_dict())
    other.load_lora_weights(str(_distillation(tmp_path)))
    other.fuse_lora(lora_scale=0.7)
    other.unload_lora_weights()
    wanted = _reference(other, source, lora, tmp_path)
    strength = pipe.transformer.blocks[0].attn1.to_q.scaling["fast"]
    load_transferred_lora(pipe, lora, source=source, options=OPTIONS)
    assert pipe.get_active_adapters() == ["fast", "style"]
    assert pipe.transformer.blocks[0].attn1.to_q.scaling["fast"] == strength
    assert (_effect(pipe) - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.slow
def test_hotswap_replaces_an_adapter_that_then_is_no_part_of_the_target(tmp_path):
    pipe, source, lora = _with_one(tmp_path)
    wanted = _reference(pipe, source, lora, tmp_path)
    with pytest.raises(UsageError, match="no adapter of this name"):
        load_transferred_lora(pipe, lora, source=source, hotswap=True, options=OPTIONS)
    other = tinywan.lora(tmp_path / "other.safetensors", size=2.0)
    load_transferred_lora(pipe, other, source=source, adapter_name="style", options=OPTIONS)
    assert (_effect(pipe) - wanted).norm() > 0.1 * wanted.norm()
    load_transferred_lora(pipe, lora, source=source, hotswap=True, options=OPTIONS)
    assert (_effect(pipe) - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_pipeline_offloaded_in_groups_is_read_and_stays_so(tmp_path):
    pipe, source, lora = _with_one(tmp_path)
    wanted = _reference(pipe, source, lora, tmp_path)
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(cpu, cpu, num_blocks_per_group=1)
    load_transferred_lora(pipe, lora, source=source, options=OPTIONS)
    assert (_effect(pipe) - wanted).norm() <= 1e-5 * wanted.norm()
    assert pipe.transformer.blocks[0]._diffusers_hook.hooks


def test_weights_that_accelerate_brings_on_demand_are_read(tmp_path):
    """As `enable_sequential_cpu_offload` has them, which itself wants a GPU."""
    from accelerate import cpu_offload

    network = tinywan.transformer()
    wanted = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}
    cpu_offload(network, torch.device("cpu"))
    assert network.blocks[0].attn1.to_q.weight.is_meta
    write_network(network, tmp_path / "out")
    found = {key: read_tensor(ref) for key, ref in open_checkpoint(tmp_path / "out").tensors.items()}
    found = networks.respell(found, families()["wan"], "diffusers")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in found.items())
    assert network.blocks[0].attn1.to_q.weight.is_meta


def test_what_is_offloaded_to_the_disk_is_refused(tmp_path):
    pipe, source, lora = _with_one(tmp_path)
    pipe.transformer.enable_group_offload(
        torch.device("cpu"), torch.device("cpu"), num_blocks_per_group=1, offload_to_disk_path=str(tmp_path / "disk")
    )
    with pytest.raises(UsageError, match="offloaded to the disk"):
        load_transferred_lora(pipe, lora, source=source, options=OPTIONS)


def _torchao(network):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(network, quantization.Int8WeightOnlyConfig())


def _quanto(network):
    quanto = pytest.importorskip("optimum.quanto")
    quanto.quantize(network, weights=quanto.qint8)
    quanto.freeze(network)


def _gguf(network):
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Linear) and child.in_features % 32 == 0:
                made = GGUFLinear(child.in_features, child.out_features, child.bias is not None, torch.float32)
                data = torch.from_numpy(gguf.quants.quantize(child.weight.detach().numpy(), kind))
                made.weight, made.bias = GGUFParameter(data, quant_type=kind), child.bias
                setattr(module, name, made)


@pytest.mark.slow
@pytest.mark.parametrize("quantise", [_torchao, _quanto, _gguf])
def test_a_quantised_pipeline_is_the_target_as_it_computes(quantise, tmp_path, monkeypatch):
    monkeypatch.setattr(tinywan, "WIDTH", 32)  # GGUF has blocks of 32
    monkeypatch.setattr(tinywan, "FFN", 64)
    pipe, source, lora = _with_one(tmp_path)
    state = _weights(pipe)
    quantise(pipe.transformer)
    linear = pipe.transformer.blocks[0].attn1.to_q
    computed = (linear(torch.eye(32)) - linear.bias).T.detach().contiguous()
    assert not torch.equal(computed, state["blocks.0.attn1.to_q.weight"])
    wanted = _reference(pipe, source, lora, tmp_path, state | {"blocks.0.attn1.to_q.weight": computed})
    report = load_transferred_lora(pipe, lora, source=source, options=OPTIONS)
    assert any("quantised in memory" in text for text in report.warnings)
    assert (_effect(pipe) - wanted).norm() <= 1e-3 * wanted.norm()
    assert (pipe.transformer.blocks[0].attn1.to_q(torch.eye(32)) - linear(torch.eye(32))).T.sub(wanted).norm() < 1e-2


@pytest.mark.slow
def test_the_files_of_the_target_may_be_named(tmp_path):
    pipe, source, lora = _with_one(tmp_path)
    wanted = _reference(pipe, source, lora, tmp_path)
    goal = tmp_path / "goal.safetensors"
    report = load_transferred_lora(pipe, lora, source=source, target=goal, options=OPTIONS)
    assert report.summary.target == str(goal)
    assert (_effect(pipe) - wanted).norm() <= 1e-5 * wanted.norm()
    with pytest.raises(UsageError, match="active adapters"):
        load_transferred_lora(pipe, lora, source=source, target=goal, adapter_name="more", options=OPTIONS)


def test_what_cannot_be_is_said_before_anything_is_done(tmp_path):
    pipe, source, lora = _with_one(tmp_path)
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    for given, said in (
        ({"adapter_name": "a.b"}, "no adapter can have this name"),
        ({"output": tmp_path / "there.safetensors"}, "exists"),
        ({"settings": {"methd": "direct"}}, "methd"),
    ):
        with pytest.raises(LoraportError, match=said):
            load_transferred_lora(pipe, lora, source=source, options=OPTIONS, **given)
    with pytest.raises(UsageError, match="not a pipeline with a transformer"):
        load_transferred_lora(torch.nn.Linear(2, 2), lora, source=source, options=OPTIONS)
    assert pipe.get_list_adapters() == {}
    load_transferred_lora(pipe, lora, source=source, options=OPTIONS)
    with pytest.raises(UsageError, match="an adapter of this name"):
        load_transferred_lora(pipe, lora, source=source, options=OPTIONS)
    pipe.fuse_lora()
    with pytest.raises(UsageError, match="fused but still loaded"):
        load_transferred_lora(pipe, lora, source=source, adapter_name="more", options=OPTIONS)
