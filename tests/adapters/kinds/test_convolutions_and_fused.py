"""Weights that are no plain matrix of one layer: convolutions, and several layers in one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import hunyuan
from adapter_parts import WEIGHTS, Parts, cayley, close, gaussian, tucker, write_lycoris
from loraport.adapters.convert import convert
from loraport.adapters.parse import open_adapter
from loraport.errors import MismatchError
from loraport.models.checkpoint import open_checkpoint


class TestConvolutions:
    """The update of a patch embedding is passed on as a change of its whole weight, whatever the kind."""

    NAME, KERNEL = "patch_embedding", (1, 2, 2)

    def _change(self, parts: Parts, source, tmp_path: Path) -> Tensor:
        adapter = open_adapter(write_lycoris({self.NAME: parts}, tmp_path / "x.safetensors"), source)
        assert adapter.layers == {}
        (item,) = adapter.passthrough
        assert (item.param, item.kind) == ("patch_embedding.weight", "diff")
        assert set(item.keys) == {f"lycoris_patch_embedding.{name}" for name in parts}
        if {"lora_mid.weight", "hada_t1", "lokr_t2"} & parts.keys():  # the parts say what shape the kernel has
            (bare,) = open_adapter(adapter.path).passthrough
            close(bare.load(), item.load())
        convert(adapter.path, tmp_path / "out.safetensors", model=source.path, overwrite=True)
        (again,) = open_adapter(tmp_path / "out.safetensors", source).passthrough
        close(again.load(), item.load())
        return item.load()

    def _core(self, up: int, down: int, seed: int) -> Tensor:
        return gaussian(up, down, *self.KERNEL, seed=seed)

    def test_locon_with_a_core(self, source, tmp_path):
        up, down, mid = gaussian(32, 4, 1, 1, 1, seed=1), gaussian(3, 16, 1, 1, 1, seed=2), self._core(4, 3, 3)
        parts = {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": mid, "alpha": torch.tensor(1.5)}
        wanted = 0.5 * tucker(up.reshape(32, 4).T, down.reshape(3, 16), mid)
        close(self._change(parts, source, tmp_path), wanted)

    def test_loha_with_cores(self, source, tmp_path):
        parts = {"alpha": torch.tensor(3.0)}
        halves = []
        for n in (1, 2):
            a, b, core = gaussian(n, 32, seed=n), gaussian(n + 1, 16, seed=n + 5), self._core(n, n + 1, n + 9)
            parts |= {f"hada_w{n}_a": a, f"hada_w{n}_b": b, f"hada_t{n}": core}
            halves.append(tucker(a, b, core))
        close(self._change(parts, source, tmp_path), 1.5 * halves[0] * halves[1])

    @pytest.mark.parametrize("form", ["core", "whole", "factors"])
    def test_lokr(self, form, source, tmp_path):
        w1 = gaussian(4, 4, seed=1)
        if form == "core":
            a, b, core = gaussian(3, 8, seed=2), gaussian(2, 4, seed=3), self._core(3, 2, 4)
            own = {"lokr_w2_a": a, "lokr_w2_b": b, "lokr_t2": core}
            w2 = tucker(a, b, core)
        elif form == "whole":
            w2 = gaussian(8, 4, *self.KERNEL, seed=2)
            own = {"lokr_w2": w2}
        else:
            own = {"lokr_w2_a": gaussian(8, 2, seed=2), "lokr_w2_b": gaussian(2, 4 * 4, seed=3)}
            w2 = (own["lokr_w2_a"] @ own["lokr_w2_b"]).reshape(8, 4, *self.KERNEL)
        wanted = torch.cat([torch.cat([w1[i, j] * w2 for j in range(4)], dim=1) for i in range(4)])
        alpha = {} if form == "whole" else {"alpha": torch.tensor(1.0)}
        close(self._change({"lokr_w1": w1, **own, **alpha}, source, tmp_path), wanted * (0.5 if alpha else 1.0))

    @pytest.mark.parametrize("axis", ["rows", "inputs"])
    def test_dora(self, axis, source, tmp_path):
        weight = WEIGHTS["patch_embedding.weight"]
        up, down = gaussian(32, 3, 1, 1, 1, seed=1), gaussian(3, 16, *self.KERNEL, seed=2)
        changed = weight + torch.einsum("mr,rnabc->mnabc", up.reshape(32, 3), down)
        shape, others = ((32, 1, 1, 1, 1), (1, 2, 3, 4)) if axis == "rows" else ((1, 16, 1, 1, 1), (0, 2, 3, 4))
        size = 1 + gaussian(*shape, seed=3, size=0.2)
        parts = {"lora_up.weight": up, "lora_down.weight": down, "dora_scale": size}
        wanted = size * changed / changed.square().sum(dim=others, keepdim=True).sqrt() - weight
        close(self._change(parts, source, tmp_path), wanted)

    @pytest.mark.parametrize("on_input", [0, 1])
    def test_ia3_of_lycoris(self, on_input, source, tmp_path):
        weight, of = WEIGHTS["patch_embedding.weight"], "io"[1 - on_input]
        added = gaussian(weight.shape[on_input], seed=1, size=0.2)
        parts = {"weight": added.reshape(1, -1, 1, 1, 1), "on_input": torch.tensor(on_input)}
        close(self._change(parts, source, tmp_path), torch.einsum(f"oi...,{of}->oi...", weight, added))
        short = {"weight": added[:-1].reshape(1, -1, 1, 1, 1), "on_input": torch.tensor(on_input)}
        with pytest.raises(MismatchError, match=r"one entry for each|do not fit|sizes contradict"):
            self._change(short, source, tmp_path)

    def test_oft_and_glora(self, source, tmp_path):
        weight = WEIGHTS["patch_embedding.weight"]
        blocks = gaussian(8, 4, 4, seed=1, size=0.3)
        turns = cayley(blocks, 0.0).float()
        wanted = torch.einsum("knm,kn...->km...", turns, weight.reshape(8, 4, *weight.shape[1:])).reshape(weight.shape)
        close(self._change({"oft_blocks": blocks}, source, tmp_path), wanted - weight)
        a1, a2 = gaussian(16, 2, seed=1), gaussian(2, 16, seed=2)
        b1, b2 = gaussian(32, 2, seed=3), gaussian(2, 16, *self.KERNEL, seed=4)
        wanted = torch.einsum("mi...,ij->mj...", weight, a1 @ a2) + torch.einsum("mr,r...->m...", b1, b2)
        parts = {"a1.weight": a1[..., None, None, None], "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}
        close(self._change(parts, source, tmp_path), wanted)


FUSED = "txt_in.individual_token_refiner.blocks.0.self_attn_qkv"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("hunyuan") / "model.safetensors"
    weights = hunyuan.model(3)
    save_file(weights, path)
    return open_checkpoint(path), weights[f"{FUSED}.weight"]


class TestSeveralLayersInOneWeight:
    """Parts on a fused weight of HunyuanVideo-1.5, whose rows are query, key and value of a refiner's block."""

    def _check(self, parts: Parts, wanted: Tensor, model, tmp_path: Path) -> list:
        name = f"diffusion_model.{FUSED}"
        save_file({f"{name}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "x.safetensors")
        layers = list(open_adapter(tmp_path / "x.safetensors", model).layers.values())
        assert len(layers) == 3
        for own, layer in zip(wanted.split(hunyuan.WIDTH), layers, strict=True):
            loaded = layer.load()
            assert loaded.rank == layer.rank
            close(loaded.dense(), own)
        return layers

    @pytest.mark.parametrize("flat", [False, True])
    @pytest.mark.parametrize(
        ("axis", "part"), [("rows", "dora_scale"), ("inputs", "dora_scale"), ("rows", "lora_magnitude_vector")]
    )
    def test_dora(self, axis, part, flat, model, tmp_path):
        checkpoint, weight = model
        up, down = gaussian(72, 3, seed=1), gaussian(3, 24, seed=2)
        dim, shape = (1, (72, 1)) if axis == "rows" else (0, (1, 24))
        size = 1 + gaussian(*shape, seed=3, size=0.2)
        changed = weight + up @ down
        parts = {"lora_B.weight": up, "lora_A.weight": down, part: size.reshape(-1) if flat else size}
        wanted = size * changed / changed.norm(dim=dim, keepdim=True) - weight
        layers = self._check(parts, wanted, checkpoint, tmp_path)
        # norms of rows are each layer's own; those of inputs need all three weights
        assert [len(layer.weight) for layer in layers] == ([1] * 3 if axis == "rows" else [3] * 3)

    def test_oft_whose_blocks_lie_across_layers(self, model, tmp_path):
        checkpoint, weight = model
        blocks = gaussian(2, 36, 36, seed=1, size=0.1)
        turns = cayley(blocks, 0.0).float()
        wanted = torch.cat([turn.T @ own for turn, own in zip(turns, weight.split(36), strict=True)]) - weight
        self._check({"oft_blocks": blocks}, wanted, checkpoint, tmp_path)

    def test_ia3_and_glora(self, model, tmp_path):
        checkpoint, weight = model
        factor = 1 + gaussian(72, 1, seed=1, size=0.2)
        self._check({"ia3_l": factor}, weight * (factor - 1), checkpoint, tmp_path)
        self._check({"ia3_l": factor[:24].T}, weight * (factor[:24, 0] - 1), checkpoint, tmp_path)
        a1, a2, b1, b2 = (
            gaussian(24, 2, seed=1),
            gaussian(2, 24, seed=2),
            gaussian(72, 2, seed=3),
            gaussian(2, 24, seed=4),
        )
        parts = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}
        self._check(parts, weight @ a1 @ a2 + b1 @ b2, checkpoint, tmp_path)

    @pytest.mark.parametrize("shape", [(-1,), (1, -1)])
    @pytest.mark.parametrize("on_input", [0, 1])
    def test_ia3_of_lycoris(self, on_input, shape, model, tmp_path):
        """A vector lies the same way for rows and inputs; only the rows' is shared out among the layers."""
        checkpoint, weight = model
        added = gaussian(weight.shape[on_input], seed=1, size=0.2)
        parts = {"weight": added.reshape(shape), "on_input": torch.tensor(on_input)}
        self._check(parts, weight * (added if on_input else added[:, None]), checkpoint, tmp_path)

    def test_split_factors(self, model, tmp_path):
        """A pair for each layer, as kohya and musubi-tuner split them: each layer keeps the rank of one pair."""
        checkpoint, _ = model
        ups, downs = [gaussian(24, 2, seed=n) for n in range(3)], [gaussian(2, 24, seed=n + 5) for n in range(3)]
        parts = {"alpha": torch.tensor(1.0)}
        for n in range(3):
            parts |= {f"lora_up.{n}.weight": ups[n], f"lora_down.{n}.weight": downs[n]}
        wanted = torch.cat([0.5 * up @ down for up, down in zip(ups, downs, strict=True)])
        layers = self._check(parts, wanted, checkpoint, tmp_path)
        assert [layer.rank for layer in layers] == [2, 2, 2]
        # two pairs for three layers: the one in the middle needs both
        parts = {f"lora_up.{n}.weight": gaussian(36, 2, seed=n) for n in range(2)}
        parts |= {f"lora_down.{n}.weight": downs[n] for n in range(2)}
        wanted = torch.cat([parts[f"lora_up.{n}.weight"] @ downs[n] for n in range(2)])
        layers = self._check(parts, wanted, checkpoint, tmp_path)
        assert [layer.rank for layer in layers] == [2, 4, 2]
