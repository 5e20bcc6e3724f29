"""Fused and split layers: one model in four namings is one model, and what is split joins again."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import hunyuan
from loraport.containers.tensors import read_tensor
from loraport.errors import MismatchError
from loraport.models.architecture import require_same_size
from loraport.models.checkpoint import open_checkpoint
from loraport.models.joining import join, join_factors
from loraport.models.placement import Part, lay_out, split

STATE = hunyuan.model(3)
SPELLINGS = {
    "original": STATE,
    "diffusers": hunyuan.diffusers_state(STATE),
    "repackaged": hunyuan.repackaged_state(STATE),
    "comfyui": {hunyuan.comfyui_name(key): tensor for key, tensor in hunyuan.repackaged_state(STATE).items()},
}


def take(tensor, rows):
    return torch.cat([tensor[start:end] for start, end in rows])


class TestCheckpoints:
    @pytest.mark.parametrize("naming", SPELLINGS)
    @pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "model.model."])
    def test_every_naming_opens_to_the_same_layers(self, naming, prefix, tmp_path):
        save_file({prefix + key: tensor for key, tensor in SPELLINGS[naming].items()}, tmp_path / "x.safetensors")
        save_file(STATE, tmp_path / "own.safetensors")
        found, own = open_checkpoint(tmp_path / "x.safetensors"), open_checkpoint(tmp_path / "own.safetensors")
        assert found.architecture.title == "HunyuanVideo-1.5 (2 blocks, width 24)"
        assert (found.naming, found.prefix) == (naming, prefix)
        assert (found.unknown, found.missing, found.notes) == ((), (), ())
        assert found.architecture.dimensions["refiner_blocks"] == 2
        assert found.tensors.keys() == own.tensors.keys()
        assert found.architecture.layers == own.architecture.layers
        require_same_size(found.architecture, own.architecture)
        for name, ref in found.tensors.items():
            assert torch.equal(read_tensor(ref), read_tensor(own.tensors[name])), name

    def test_the_layers_are_those_of_the_split_naming(self, tmp_path):
        save_file(SPELLINGS["repackaged"], tmp_path / "x.safetensors")
        found = open_checkpoint(tmp_path / "x.safetensors")
        key = "double_blocks.1.img_attn_v"
        assert torch.equal(read_tensor(found.tensors[f"{key}.weight"]), STATE[f"{key}.weight"])
        assert torch.equal(read_tensor(found.tensors[f"{key}.bias"]), STATE[f"{key}.bias"])
        assert len(found.architecture.layers) == 2 * 14 + 2 * 7 + 14

    def test_a_missing_fused_weight_is_three_missing_layers(self, tmp_path):
        state = dict(SPELLINGS["repackaged"])
        del state["double_blocks.0.txt_attn_qkv.weight"], state["double_blocks.0.txt_attn_qkv.bias"]
        save_file(state, tmp_path / "x.safetensors")
        assert open_checkpoint(tmp_path / "x.safetensors").missing == tuple(
            f"double_blocks.0.txt_attn_{x}" for x in "qkv"
        )

    def test_rows_that_cannot_be_shared_out_are_a_finding(self, tmp_path):
        state = SPELLINGS["repackaged"] | {"double_blocks.0.txt_attn_qkv.weight": torch.zeros(73, 24)}
        save_file(state, tmp_path / "x.safetensors")
        found = open_checkpoint(tmp_path / "x.safetensors")
        assert "double_blocks.0.txt_attn_qkv.weight (shape [73, 24]" in found.notes[0]
        assert "double_blocks.0.txt_attn_qkv.weight" in found.unknown

    def test_a_weight_both_fused_and_split(self, tmp_path):
        state = STATE | {"double_blocks.0.img_attn_qkv.weight": torch.zeros(72, 24)}
        save_file(state, tmp_path / "x.safetensors")
        with pytest.raises(MismatchError, match="twice"):
            open_checkpoint(tmp_path / "x.safetensors")

    @pytest.mark.parametrize(
        ("extra", "title"),
        [
            ({"single_blocks.0.linear1.weight": (168, 24)}, "FLUX or HunyuanVideo"),
            ({"single_transformer_blocks.0.attn.to_q.weight": (24, 24)}, "FLUX or HunyuanVideo"),
            ({"transformer_blocks.0.img_mlp.net.0.proj.weight": (48, 24)}, "Qwen-Image"),
        ],
    )
    def test_families_with_the_same_names(self, extra, title, tmp_path):
        state = SPELLINGS["diffusers"] | {key: torch.zeros(shape) for key, shape in extra.items()}
        save_file(state, tmp_path / "x.safetensors")
        with pytest.raises(MismatchError, match=f"this is {title}"):
            open_checkpoint(tmp_path / "x.safetensors")

    def test_a_family_that_is_read_is_not_called_unsupported(self, tmp_path):
        save_file({"transformer_blocks.0.img_mod.1.bias": torch.zeros(24)}, tmp_path / "x.safetensors")
        with pytest.raises(MismatchError, match="this is Qwen-Image") as caught:
            open_checkpoint(tmp_path / "x.safetensors")
        assert "not supported" not in str(caught.value)


class TestRows:
    def test_parts_of_one_size(self):
        parts = [Part(name, "width") for name in "qkv"]
        assert split(parts, 72, {}) == {"q": ((0, 24),), "k": ((24, 48),), "v": ((48, 72),)}
        assert split(parts, 73, {}) is None

    def test_parts_of_different_sizes(self):
        """As FLUX fuses its projections with the first layer of the feed-forward."""
        parts = [*(Part(name, "width") for name in "qkv"), Part("mlp", "ffn")]
        assert split(parts, 168, {"width": 24}) == {
            "q": ((0, 24),), "k": ((24, 48),), "v": ((48, 72),), "mlp": ((72, 168),),
        }  # fmt: skip
        assert split(parts, 168, {}) is None
        assert split(parts, 72, {"width": 24}) is None
        assert split(parts, 168, {"width": 24, "ffn": 90}) is None

    def test_rows_in_another_order(self):
        assert split([Part("m", "2*width", (1, 0))], 48, {}) == {"m": ((24, 48), (0, 24))}
        assert split([Part("m", "2*width", (1, 2, 0))], 6, {}) == {"m": ((4, 6), (0, 2), (2, 4))}
        assert split([Part("m", "width", (1, 0))], 7, {}) is None

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a machine may be busy
    @given(
        sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
        order=st.permutations(range(3)),
        given_ones=st.data(),
    )
    def test_what_is_split_joins_again(self, sizes, order, given_ones):
        parts = [Part(f"m{i}", f"{3 * size}", tuple(order) if i else ()) for i, size in enumerate(sizes)]
        total, places = lay_out(parts, {}, {})
        assert places == split(parts, total, {})
        whole = torch.arange(2.0 * total).reshape(total, 2) + 1
        taken = {name: take(whole, rows) for name, rows in places.items()}
        assert torch.equal(join([(places[name], part) for name, part in taken.items()], total), whole)
        left = given_ones.draw(st.sets(st.sampled_from(sorted(taken)), min_size=1))
        partly = join([(places[name], taken[name]) for name in left], total)
        for name, rows in places.items():
            assert torch.equal(take(partly, rows), taken[name] if name in left else torch.zeros_like(taken[name]))

    def test_factors_join_exactly(self):
        generator = torch.Generator().manual_seed(0)
        rows = {"q": ((0, 4),), "k": ((8, 10), (6, 8)), "v": ((10, 14),)}
        pairs = {
            name: tuple(torch.randn(shape, generator=generator).double() for shape in ((4, 2), (2, 5))) for name in rows
        }
        up, down = join_factors([(rows[name], *pair) for name, pair in pairs.items()], 14)
        assert up.shape == (14, 6)
        for name, (b, a) in pairs.items():
            torch.testing.assert_close(take(up @ down, rows[name]), b @ a)
        assert not (up @ down)[4:6].any()

    def test_factors_that_share_their_a_keep_their_rank(self):
        generator = torch.Generator().manual_seed(0)
        shared = torch.randn(2, 5, generator=generator)
        ups = [torch.randn(4, 2, generator=generator) for _ in range(3)]
        up, down = join_factors([(((4 * i, 4 * i + 4),), b, shared.clone()) for i, b in enumerate(ups)], 12)
        assert torch.equal(down, shared)
        assert torch.equal(up, torch.cat(ups))
