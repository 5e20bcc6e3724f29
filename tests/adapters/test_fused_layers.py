"""LoRAs on weights that hold several layers: taken apart by rows, joined again, and neither changes an update."""

import pytest
import torch
from safetensors.torch import load_file

from loraport.adapters.convert import convert
from loraport.adapters.parse import open_adapter
from loraport.errors import MismatchError
from makers import LoraFile

QKV = "double_blocks.0.img_attn"
NAMES = [f"{QKV}_{x}" for x in "qkv"]  # at the size of the model: at others these names may be those of other families


def _random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _fused(rank=4, **more):
    """A LoRA that was trained on the fused weight."""
    stem = f"diffusion_model.{QKV}.qkv"
    made = {f"{stem}.lora_B.weight": _random(6144, rank), f"{stem}.lora_A.weight": _random(rank, 2048, seed=1)}
    return made | {stem + suffix: tensor for suffix, tensor in more.items()}


def _dense(path):
    return {name: layer.load().dense().double() for name, layer in open_adapter(path).layers.items()}


def test_a_fused_lora_is_its_rows_with_one_a(tmp_path):
    made = _fused()
    lora = open_adapter(LoraFile(made).write(tmp_path))
    assert list(lora.layers) == NAMES
    assert lora.fused == set(NAMES)
    whole = (
        made[f"diffusion_model.{QKV}.qkv.lora_B.weight"] @ made[f"diffusion_model.{QKV}.qkv.lora_A.weight"]
    ).double()
    for place, layer in enumerate(lora.layers.values()):
        assert (layer.rank, layer.shape) == (4, (2048, 2048))
        torch.testing.assert_close(layer.load().dense().double(), whole[2048 * place : 2048 * place + 2048])
    assert {key for layer in lora.layers.values() for key in layer.keys} == set(made)


def test_a_weight_that_only_a_trainer_fuses_is_its_rows_too(tmp_path):
    """SimpleTuner's to_qkv of Krea 2, whose keys and values have fewer rows than its queries."""
    stem = "transformer.transformer_blocks.0.attn.to_"
    made = {f"{stem}qkv.lora_A.weight": _random(4, 24), f"{stem}qkv.lora_B.weight": _random(48, 4, seed=1)}
    made |= {f"{stem}out.0.lora_A.weight": _random(4, 24), f"{stem}out.0.lora_B.weight": _random(24, 4)}
    found = _dense(LoraFile(made).write(tmp_path))
    whole = (made[f"{stem}qkv.lora_B.weight"] @ made[f"{stem}qkv.lora_A.weight"]).double()
    for name, (start, end) in {"wq": (0, 24), "wk": (24, 36), "wv": (36, 48)}.items():
        torch.testing.assert_close(found[f"blocks.0.attn.{name}"], whole[start:end])


@pytest.mark.parametrize("to", ["universal", "same-as-input"])
def test_it_comes_back_bit_for_bit_and_at_its_own_rank(to, tmp_path):
    made = _fused()
    convert(LoraFile(made).write(tmp_path), tmp_path / "split.safetensors", to="diffusers")
    split = load_file(tmp_path / "split.safetensors")
    assert split.keys() == {
        f"transformer.transformer_blocks.0.attn.to_{x}.lora_{half}.weight" for x in "qkv" for half in "AB"
    }
    source = LoraFile(made).write(tmp_path) if to == "same-as-input" else tmp_path / "split.safetensors"
    convert(source, tmp_path / "again.safetensors", to=to)
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == made.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in made.items())


def test_a_split_lora_joins_with_a_block_for_each_layer_and_comes_back(tmp_path):
    made = {}
    for place, name in enumerate(NAMES):
        made |= {
            f"{name}.lora_B.weight": _random(2048, 4, seed=place),
            f"{name}.lora_A.weight": _random(4, 2048, seed=9 + place),
        }
    path = LoraFile(made).write(tmp_path)
    convert(path, tmp_path / "joined.safetensors", to="universal")
    joined = load_file(tmp_path / "joined.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in joined.items()} == {
        f"diffusion_model.{QKV}.qkv.lora_A.weight": (12, 2048),
        f"diffusion_model.{QKV}.qkv.lora_B.weight": (6144, 12),
    }
    up, down = (joined[f"diffusion_model.{QKV}.qkv.lora_{half}.weight"].double() for half in "BA")
    wanted = torch.cat([made[f"{n}.lora_B.weight"].double() @ made[f"{n}.lora_A.weight"].double() for n in NAMES])
    torch.testing.assert_close(up @ down, wanted, rtol=1e-12, atol=1e-12)
    convert(tmp_path / "joined.safetensors", tmp_path / "split.safetensors", to="original")
    split = load_file(tmp_path / "split.safetensors")
    assert all(torch.equal(split[key], tensor) for key, tensor in made.items())


def test_some_of_the_layers_only(tmp_path):
    made = {f"{NAMES[2]}.lora_B.weight": _random(2048, 4), f"{NAMES[2]}.lora_A.weight": _random(4, 2048, seed=1)}
    convert(LoraFile(made).write(tmp_path), tmp_path / "x.safetensors", to="universal")
    up = load_file(tmp_path / "x.safetensors")[f"diffusion_model.{QKV}.qkv.lora_B.weight"]
    assert up.shape == (6144, 4)
    assert not up[:4096].any()
    assert torch.equal(up[4096:], made[f"{NAMES[2]}.lora_B.weight"])


def test_different_scales_go_into_the_factors(tmp_path):
    made = {}
    for place, name in enumerate(NAMES):
        stem = "lora_unet_" + name.replace(".", "_")
        made |= {
            f"{stem}.lora_up.weight": _random(2048, 4, seed=place),
            f"{stem}.lora_down.weight": _random(4, 2048, seed=9),
        }
        made[f"{stem}.alpha"] = torch.tensor(2.0**place)
    path = LoraFile(made).write(tmp_path)
    convert(path, tmp_path / "x.safetensors", to="universal")
    before, after = _dense(path), _dense(tmp_path / "x.safetensors")
    assert before.keys() == after.keys() == set(NAMES)
    for name in NAMES:
        torch.testing.assert_close(after[name], before[name], rtol=1e-6, atol=1e-6)


def test_layers_of_several_scales_and_whole_matrices_in_one_weight(tmp_path):
    stem, made = "lora_unet_context_embedder_token_refiner_refiner_blocks_{}_attn_to_{}", {}
    for place, x in enumerate("qkv"):
        factors, matrix = stem.format(0, x), stem.format(1, x)
        made |= {f"{factors}.lora_up.weight": _random(24, 4, seed=place), f"{factors}.alpha": torch.tensor(2.0**place),
                 f"{factors}.lora_down.weight": _random(4, 24, seed=place + 3),
                 f"{matrix}.diff": _random(24, 24, seed=place + 6)}  # fmt: skip
    path, out = LoraFile(made).write(tmp_path), tmp_path / "x.safetensors"
    convert(path, out, to="kohya", architecture="hunyuan_video_15")
    assert sorted(key.partition("self_attn_qkv.")[2] for key in load_file(out)) == [
        "alpha", "diff", "lora_down.weight", "lora_up.weight",
    ]  # fmt: skip
    before, after = (open_adapter(each, architecture="hunyuan_video_15").layers for each in (path, out))
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name].load().dense(), before[name].load().dense())


def test_alpha_and_bias_of_a_fused_weight(tmp_path):
    bias = torch.arange(6144.0)
    path = LoraFile(_fused(**{".alpha": torch.tensor(2.0), ".diff_b": bias})).write(tmp_path)
    lora = open_adapter(path)
    assert {layer.scale for layer in lora.layers.values()} == {0.5}
    assert {item.param: item.load().tolist() for item in lora.passthrough} == {
        f"{name}.bias": bias[2048 * place : 2048 * place + 2048].tolist() for place, name in enumerate(NAMES)
    }
    for to in ("universal", "same-as-input"):
        convert(path, tmp_path / f"{to}.safetensors", to=to)
        assert torch.equal(load_file(tmp_path / f"{to}.safetensors")[f"diffusion_model.{QKV}.qkv.diff_b"], bias)
        again = _dense(tmp_path / f"{to}.safetensors")
        for name, update in _dense(path).items():
            torch.testing.assert_close(again[name], update, rtol=1e-6, atol=1e-6)


def test_rows_in_another_order(tmp_path):
    """diffusers has the halves of the last modulation the other way round; A has no rows to turn."""
    name = "final_layer.adaLN_modulation.1"
    b, a, bias = _random(4096, 4), _random(4, 2048, seed=1), torch.arange(4096.0)
    path = LoraFile({f"{name}.lora_B.weight": b, f"{name}.lora_A.weight": a, f"{name}.diff_b": bias}).write(tmp_path)
    convert(path, tmp_path / "x.safetensors", to="diffusers")
    found = load_file(tmp_path / "x.safetensors")
    stem = "transformer.norm_out.linear.lora_"
    assert torch.equal(found[f"{stem}B.weight"], torch.cat(b.chunk(2)[::-1]))
    assert torch.equal(found[f"{stem}A.weight"], a)
    assert torch.equal(found[f"{stem}B.bias"], torch.cat(bias.chunk(2)[::-1]))
    convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", to="original")
    again = load_file(tmp_path / "y.safetensors")
    assert torch.equal(again[f"{name}.lora_B.weight"], b)
    assert torch.equal(again[f"{name}.diff_b"], bias)


def test_a_layer_of_a_fused_weight_can_be_left_out(tmp_path):
    path = LoraFile(_fused()).write(tmp_path)
    assert list(open_adapter(path, drop="img_attn_k").layers) == [NAMES[0], NAMES[2]]
    convert(path, tmp_path / "x.safetensors", to="universal", drop="img_attn_k")
    up = load_file(tmp_path / "x.safetensors")[f"diffusion_model.{QKV}.qkv.lora_B.weight"]
    assert not up[2048:4096].any()
    assert up[:2048].any()


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (
            _fused() | {f"{NAMES[1]}.lora_B.weight": _random(2048, 4), f"{NAMES[1]}.lora_A.weight": _random(4, 2048)},
            "twice",
        ),
        (
            {f"{QKV}.qkv.lora_B.weight": _random(6145, 4), f"{QKV}.qkv.lora_A.weight": _random(4, 2048)},
            "split among the layers",
        ),
    ],
)
def test_what_is_no_lora_of_these_layers(made, word, tmp_path):
    with pytest.raises(MismatchError, match=word):
        open_adapter(LoraFile(made).write(tmp_path))
