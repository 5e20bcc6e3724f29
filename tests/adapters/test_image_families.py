"""Image families: checkpoints in every naming, LoRAs in the loaders of diffusers, fused and split layers alike."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraport
import networks
from loraport.adapters.arrival import Arrival, rows_of
from loraport.adapters.convert import convert
from loraport.adapters.parse import open_adapter
from loraport.adapters.verify import verify_adapter
from loraport.containers.tensors import read_tensor
from loraport.engine.options import RunOptions
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families
from makers import LoraFile

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
image_families = pytest.importorskip("image_families")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
CASES = image_families.CASES
ATTENTION = r"attn\.to_|attention\.to_|attn\.add_"


@pytest.fixture(autouse=True)
def _own_rng():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _save(state, path):
    save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path)
    return path


def _lora(made, prefix="transformer."):
    return {f"{prefix}{name}.lora_{half}.weight": tensor.clone()
            for name, (b, a) in made.items() for half, tensor in (("B", b), ("A", a))}  # fmt: skip


def _updates(path, model=None):
    return {name: layer.load().dense().double() for name, layer in open_adapter(path, model).layers.items()}


def _fused(case, path, caplog, *, warns=False):
    network = case.network()
    return networks.fused(_pipeline(case, network), network, path, caplog, warns=warns)


def _pipeline(case, network):
    kind = getattr(diffusers, case.pipeline)
    parts = dict.fromkeys(kind._get_signature_keys(kind)[0])
    return kind(**{**parts, "transformer": network})


def _compare(changes, made, swapped=()):
    assert changes.keys() == {f"{name}.weight" for name in made}
    for name, (b, a) in made.items():
        wanted = b.double() @ a.double()
        wanted = torch.cat(wanted.chunk(2)[::-1]) if name in swapped else wanted
        assert (changes[f"{name}.weight"].double() - wanted).norm() <= 1e-4 * wanted.norm(), name


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_is_known_in_full_in_every_naming(name, tmp_path):
    case = CASES[name]
    state = image_families.random_state(case.network(), 1)
    original = case.original_state(state)
    split = open_checkpoint(_save(state, tmp_path / "diffusers.safetensors"))
    whole = open_checkpoint(
        _save({f"model.diffusion_model.{k}": t for k, t in original.items()}, tmp_path / "x.safetensors")
    )
    for model in (split, whole):
        assert (model.architecture.family.name, model.unknown, model.missing, model.notes) == (name, (), (), ())
    assert (split.naming, whole.naming) == ("diffusers" if case.rules else "original", case.naming)
    assert split.tensors.keys() == whole.tensors.keys()
    for key, ref in split.tensors.items():
        assert torch.equal(read_tensor(ref).flatten(), read_tensor(whole.tensors[key]).flatten()), key
    # The names written out in the helper are those that diffusers itself converts from.
    again = case.to_diffusers({key: tensor.clone() for key, tensor in original.items()})
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("to", ["universal", "diffusers"])
@pytest.mark.parametrize("name", CASES)
def test_a_lora_loads_and_adds_exactly_the_update(name, to, tmp_path, caplog):
    case = CASES[name]
    made = image_families.factors(image_families.linear(case.network()))
    path = LoraFile(_lora(made)).write(tmp_path)
    assert open_adapter(path).architecture.family.name == name
    convert(path, tmp_path / "x.safetensors", to=to)
    if to == "universal" and not case.universal:
        said = "\n".join(convert(path, tmp_path / "y.safetensors", to=to).warnings)
        assert "not read by diffusers (--to diffusers is read)" in said
        return
    # In LoRAs of original names diffusers 0.42.1 leaves the halves as they are that it swaps in checkpoints.
    swapped = case.halves if to == "universal" else ()
    _compare(_fused(case, tmp_path / "x.safetensors", caplog), made, swapped)
    checks = {check.name: check for check in verify_adapter(tmp_path / "x.safetensors", load=True)}
    loads = checks["diffusers loads it"]
    assert (loads.passed, "wrongly" in loads.found) == ((None, True) if swapped else (True, False)), loads


def test_a_layer_that_diffusers_applies_wrongly_is_named_as_such(tmp_path):
    made = image_families.factors(image_families.linear(image_families.FLUX2.network()))
    last = {"norm_out.linear": made["norm_out.linear"]}
    path = LoraFile(_lora(made)).write(tmp_path)
    done = convert(path, tmp_path / "x.safetensors", to="universal")
    assert done.warnings == (
        "diffusers applies layers with rows in another order wrongly (the halves of final_layer.adaLN_modulation "
        "change places); with --to diffusers it does not",
        "layers outside the blocks are left out by mflux",
    )
    assert [way.partition(":")[0] for way in done.load] == ["ComfyUI", "mflux"]
    checks = {check.name: check.found for check in verify_adapter(done.output)}
    assert checks["taken wrongly by"] == "diffusers (in layers with rows in another order)"
    rest = {name: pair for name, pair in made.items() if name not in last}
    path = LoraFile(_lora(rest)).write(tmp_path / "rest")
    done = convert(path, tmp_path / "y.safetensors", to="universal")  # the other layers outside arrive
    assert done.warnings == ("layers outside the blocks are left out by mflux",)
    assert {check.name: check.found for check in verify_adapter(done.output)}["taken in full by"].startswith(
        "diffusers"
    )


@pytest.mark.parametrize(("name", "to"), [("flux2", "kohya"), ("qwen_image_21", "universal")])
def test_of_a_profile_that_diffusers_reads_in_part_exactly_what_is_foretold_changes(name, to, tmp_path, caplog):
    case = CASES[name]
    made = image_families.factors(image_families.linear(case.network()))
    path = convert(LoraFile(_lora(made)).write(tmp_path), tmp_path / "x.safetensors", to=to).output
    arrival = Arrival(open_adapter(path, architecture=name), rows_of("diffusers")[0])
    family = families()[name]
    foretold = {
        family.spell(layer, "diffusers")
        for layer, update in arrival.lora.layers.items()
        if set(update.keys) <= set(arrival.matched)
    }
    assert 0 < len(foretold) < len(made)
    _compare(_fused(case, path, caplog, warns=True), {layer: made[layer] for layer in foretold})


@pytest.mark.parametrize("to", ["universal", "diffusers", "kohya", "original", "same-as-input"])
@pytest.mark.parametrize("name", CASES)
def test_read_write_read_gives_the_same(name, to, tmp_path):
    case = CASES[name]
    made = image_families.factors(image_families.linear(case.network()))
    path = LoraFile(_lora(made)).write(tmp_path)
    model = open_checkpoint(_save(case.network().state_dict(), tmp_path / "model.safetensors"))
    convert(path, tmp_path / "a.safetensors", to=to)
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="diffusers")
    first, second = _updates(path, model), _updates(tmp_path / "a.safetensors", model)
    assert first.keys() == second.keys()
    for layer, update in first.items():
        torch.testing.assert_close(second[layer], update, rtol=1e-5, atol=1e-6)
    back, start = load_file(tmp_path / "b.safetensors"), load_file(path)
    assert back.keys() == start.keys()
    for key, (b, a) in made.items():
        stem = f"transformer.{key}"
        found = back[f"{stem}.lora_B.weight"].double() @ back[f"{stem}.lora_A.weight"].double()
        torch.testing.assert_close(found, b.double() @ a.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["direct", "casa"])
@pytest.mark.parametrize("name", CASES)
def test_one_transfer_whatever_the_naming(name, method, tmp_path):
    case = CASES[name]
    source = image_families.random_state(case.network(), 1)
    noise = image_families.random_state(case.network(), 2)
    target = {key: tensor + 0.02 * noise[key] for key, tensor in source.items()}
    for role, state in (("source", source), ("target", target)):
        _save(state, tmp_path / f"{role}-diffusers.safetensors")
        _save(case.original_state(state), tmp_path / f"{role}-original.safetensors")
    made = image_families.factors(image_families.linear(case.network(), r"(?<!text_fusion\.projector)$"))
    path = LoraFile(_lora(made)).write(tmp_path)
    found = []
    for one, other in (("diffusers", "diffusers"), ("original", "original"), ("original", "diffusers")):
        loraport.transfer(
            path,
            source=tmp_path / f"source-{one}.safetensors",
            target=tmp_path / f"target-{other}.safetensors",
            output=tmp_path / f"{one}-{other}.safetensors",
            method=method,
            options=RunOptions(cache="off", executor="serial", log="off"),
        )
        found.append(_updates(tmp_path / f"{one}-{other}.safetensors"))
    assert len(found[0]) >= len(made)  # more where diffusers keeps one layer of what others split
    for others in found[1:]:
        assert others.keys() == found[0].keys()
        for layer, update in found[0].items():
            assert (others[layer] - update).norm() <= 1e-6 * update.norm(), layer


@pytest.mark.parametrize("name", CASES)
def test_an_extraction_that_diffusers_is_known_to_refuse_is_sound(name, tmp_path):
    state = image_families.random_state(CASES[name].network(), 1)
    noise = image_families.random_state(CASES[name].network(), 2)
    source = _save(state, tmp_path / "source.safetensors")
    target = _save({key: tensor + 0.02 * noise[key] for key, tensor in state.items()}, tmp_path / "target.safetensors")
    done = loraport.extract(source, target, tmp_path / "x.safetensors", rank=4, options=RunOptions(cache="off"))
    assert any("diffusers" in text for text in done.warnings)
    assert loraport.verify(done.output, model=target, load=True).ok
