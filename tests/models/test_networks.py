"""Every family against diffusers: its network is known in full in every naming, and its converters agree with us."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import networks
from loraport.containers.tensors import read_tensor
from loraport.models.architecture import require_same_size
from loraport.models.checkpoint import open_checkpoint
from loraport.models.families import families
from loraport.models.keymap import keymap_of
from loraport.models.placement import is_whole, size_of, split
from networks import NETWORKS

pytest.importorskip("diffusers")
NAMINGS = [(name, naming) for name, net in NETWORKS.items() for naming in families()[net.family].namings]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_diffusers_is_known_in_full(name, tmp_path):
    save_file(networks.state(name), tmp_path / "x.safetensors")
    model = open_checkpoint(tmp_path / "x.safetensors")
    assert (model.architecture.family.name, model.naming) == (NETWORKS[name].family, "diffusers")
    assert model.architecture.title == NETWORKS[name].title
    assert (model.unknown, model.missing, model.notes) == ((), (), ())
    linear = [key for key, module in networks.build(name).named_modules() if isinstance(module, torch.nn.Linear)]
    family = model.architecture.family
    found = {family.spell(layer, "diffusers") for layer in model.architecture.layers}
    # A patch embedding may be linear in one version and a convolution in another; we call it a convolution then.
    either = {family.spell(name, "diffusers") for name, template in family.templates.items() if not template.shape}
    assert found == set(linear) - either


@pytest.mark.parametrize("prefix", ["", pytest.param("model.diffusion_model.", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "naming"), NAMINGS)
def test_every_naming_opens_to_the_same_layers(name, naming, prefix, tmp_path):
    own = networks.canonical(name)
    found = open_checkpoint(networks.write(name, naming, tmp_path, prefix=prefix))
    assert (found.architecture.family.name, found.prefix) == (NETWORKS[name].family, prefix)
    assert found.architecture.title == NETWORKS[name].title
    taken = any("were assumed to be stored" in note for note in found.notes)
    assert taken == (bool(found.architecture.family.alike) and naming != "diffusers")
    assert (found.unknown, found.missing, len(found.notes)) == ((), (), taken)
    require_same_size(found.architecture, networks.architecture(name, tmp_path / "own"))
    assert found.tensors.keys() == own.keys()
    for key, ref in found.tensors.items():
        assert torch.equal(read_tensor(ref), own[key]), key


# diffusers' own function for single files of a family -> sizes that it takes for granted.
CONVERTERS = {
    "ltx2.0": ("convert_ltx2_transformer_to_diffusers", {}),
    "ltx_video": ("convert_ltx_transformer_checkpoint_to_diffusers", {}),
    "hunyuan_video": ("convert_hunyuan_video_transformer_to_diffusers", {"width": 3072, "mlp": 12288}),
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_names_and_rows_are_those_of_diffusers_own_converter(name):
    """Weights whose entries are their row numbers go through its converter, and must come out where ours are."""
    from diffusers.loaders import single_file_utils

    function, sizes = CONVERTERS[name]
    family = families()[NETWORKS[name].family]
    keymap = keymap_of(family)
    own = networks.state(name)
    counts = dict.fromkeys(family.counters.values(), 2)
    there = {key.removesuffix(".weight") for key in own}
    modules = [module for module in family.modules(counts) if family.spell(module, "diffusers") in there]
    state, wanted = {}, {}
    for module in modules:
        bare = family.template_of(module).role == "param"
        spelled = family.spell(module, "original")
        held = keymap.held(spelled)
        rows = sum(size_of(part.rows, sizes) for part in held) if len(held) > 1 else 48
        kind = "" if bare else ".weight"
        state[spelled + kind] = torch.arange(rows, dtype=torch.float64).reshape(-1, 1)
        numbers = ((0, rows),) if is_whole(held) else split(held, rows, sizes)[module]
        values = torch.cat([torch.arange(*each, dtype=torch.float64) for each in numbers])
        order = family.place(module, "diffusers").order
        if order:
            parts = values.chunk(len(order))
            values = torch.cat([parts[i] for i in order])
        wanted[family.spell(module, "diffusers") + kind] = values
    found = getattr(single_file_utils, function)(state)
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        assert torch.equal(found[key].flatten(), values), key


def test_the_modulations_of_cogvideox_are_shared_out_as_its_conversion_does(tmp_path):
    """SAT has twelve parts: of the first norm 0 to 2 and 6 to 8, of the second 3 to 5 and 9 to 11."""
    own = networks.state("cogvideox")
    chunks = {i: own[f"transformer_blocks.1.norm{i}.linear.weight"].chunk(6) for i in (1, 2)}
    path = networks.write("cogvideox", "original", tmp_path)
    with safe_open(path, "pt") as file:
        found = file.get_tensor("mixins.adaln_layer.adaLN_modulations.1.1.weight").chunk(12)
        fused = file.get_tensor("transformer.layers.0.attention.query_key_value.weight")
    order = [chunks[1][0:3], chunks[2][0:3], chunks[1][3:6], chunks[2][3:6]]
    assert all(torch.equal(a, b) for a, b in zip(found, [part for three in order for part in three], strict=True))
    assert torch.equal(fused, torch.cat([own[f"transformer_blocks.0.attn1.to_{x}.weight"] for x in "qkv"]))
