"""Kinds that are functions of the source's weight, in the spellings of LyCORIS, kohya, ai-toolkit and ComfyUI, against
formulas written out here; and what becomes of weights that hold several layers, of convolutions and of bad numbers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hunyuan
import loraport
import pico
from loraport.adapters.convert import convert_adapter
from loraport.adapters.describe import describe
from loraport.adapters.parse import open_adapter
from loraport.adapters.verify import verify_adapter
from loraport.errors import LoraportError, MismatchError, NumericalError, UnmatchedKeysError, UnsupportedError
from loraport.models.checkpoint import open_checkpoint

Parts = dict[str, Tensor]
WEIGHTS = pico.weights(1)
LAYERS = ["blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.ffn.2"]


def _random(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _inner(kind: str, m: int, n: int) -> tuple[Parts, Tensor]:
    """Parts of an additive kind with an alpha, and their update by the definition."""
    if kind == "lora":
        up, down = _random(m, 3, seed=1), _random(3, n, seed=2, size=0.2)
        return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.5)}, 0.5 * up @ down
    if kind == "loha":
        a, b, c, d = _random(m, 2, seed=1), _random(2, n, seed=2), _random(m, 2, seed=3), _random(2, n, seed=4)
        parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(1.0)}
        return parts, 0.5 * (a @ b) * (c @ d)
    w1, up, down = _random(4, 4, seed=1), _random(m // 4, 2, seed=2), _random(2, n // 4, seed=3)
    parts = {"lokr_w1": w1, "lokr_w2_a": up, "lokr_w2_b": down, "alpha": torch.tensor(0.5)}
    return parts, 0.25 * torch.kron(w1, up @ down)


def _write(made: dict[str, Parts], path: Path) -> Path:
    stems = {f"lycoris_{layer.replace('.', '_')}": parts for layer, parts in made.items()}
    save_file({f"{stem}.{name}": t.clone() for stem, parts in stems.items() for name, t in parts.items()}, path)
    return path


def _tucker(a: Tensor, b: Tensor, core: Tensor) -> Tensor:
    """The sum over i and j of a[i] (rows) times b[j] (inputs) times core[i, j] (kernel)."""
    found = torch.zeros(a.shape[1], b.shape[1], *core.shape[2:])
    for i in range(len(a)):
        for j in range(len(b)):
            found += a[i].reshape(-1, 1, 1, 1, 1) * b[j].reshape(1, -1, 1, 1, 1) * core[i, j]
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "source.safetensors"
    save_file(WEIGHTS, path)
    return open_checkpoint(path)


def _close(found: Tensor, wanted: Tensor, share: float = 1e-5) -> None:
    assert (found.double() - wanted.double()).norm() <= share * wanted.double().norm() + 1e-7


def _updates(made: dict[str, Parts], source, tmp_path: Path) -> dict[str, Tensor]:
    adapter = open_adapter(_write(made, tmp_path / "x.safetensors"), source)
    assert adapter.layers.keys() == made.keys()
    return {name: layer.load().dense() for name, layer in adapter.layers.items()}


@pytest.mark.parametrize("axis", ["rows", "inputs", "one dimension"])
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_dora(kind, axis, source, tmp_path):
    """m (W + D) / ||W + D||, entry by entry."""
    made, wanted = {}, {}
    for layer in LAYERS:
        weight = WEIGHTS[f"{layer}.weight"]
        parts, update = _inner(kind, *weight.shape)
        changed = (weight + update).double()
        if axis == "inputs":
            scale = 1 + _random(1, weight.shape[1], seed=7, size=0.3)
            columns = [scale[0, j] * changed[:, j] / changed[:, j].square().sum().sqrt() for j in range(len(scale[0]))]
            new = torch.stack(columns, dim=1)
        else:
            scale = 1 + _random(weight.shape[0], 1, seed=7, size=0.3)
            new = torch.stack([scale[i, 0] * changed[i] / changed[i].square().sum().sqrt() for i in range(len(scale))])
        made[layer] = parts | {"dora_scale": scale.reshape(-1) if axis == "one dimension" else scale}
        wanted[layer] = new - weight
    for layer, update in _updates(made, source, tmp_path).items():
        _close(update, wanted[layer])


def test_dora_of_ai_toolkit(source, tmp_path):
    weight = WEIGHTS["blocks.0.ffn.0.weight"]
    up, down, size = _random(64, 3, seed=1), _random(3, 32, seed=2), 1 + _random(64, seed=3, size=0.2)
    stem = "diffusion_model.blocks.0.ffn.0"
    save_file(
        {f"{stem}.lora_B.weight": up, f"{stem}.lora_A.weight": down, f"{stem}.magnitude": size},
        tmp_path / "x.safetensors",
    )
    layer = open_adapter(tmp_path / "x.safetensors", source).layers["blocks.0.ffn.0"]
    changed = weight + up @ down
    _close(layer.load().dense(), size[:, None] * changed / changed.norm(dim=1, keepdim=True) - weight)
    assert "counts inside" in layer.scale_source


def test_what_is_zero_has_no_direction_and_stays_zero(source, tmp_path):
    """A row that the LoRA takes away whole; PEFT would divide zero by zero there."""
    weight = WEIGHTS["blocks.0.self_attn.q.weight"]
    up = torch.zeros(32, 1)
    up[3] = -1
    parts = {"lora_up.weight": up, "lora_down.weight": weight[3:4].clone()}
    norm = weight.norm(dim=1, keepdim=True)
    norm[3] = 2.0
    found = _updates({"blocks.0.self_attn.q": parts | {"dora_scale": norm}}, source, tmp_path)["blocks.0.self_attn.q"]
    _close(found[3], -weight[3])
    assert found[:3].norm() < 1e-5


def _turns(blocks: Tensor, bound: float) -> Tensor:
    """(1 + Q) (1 - Q)^-1 of every block, in float64."""
    skew = (blocks - blocks.mT).double()
    if 0 < bound < skew.norm():
        skew = skew * bound / skew.norm()
    eye = torch.eye(blocks.shape[-1], dtype=torch.float64)
    return (eye + skew) @ torch.linalg.inv(eye - skew)


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.01, 10.0])
def test_oft(alpha, rescaled, source, tmp_path):
    made, wanted = {}, {}
    for layer in LAYERS:
        weight = WEIGHTS[f"{layer}.weight"]
        rows = len(weight)
        blocks = _random(rows // 4, 4, 4, seed=3, size=0.3)
        made[layer] = {"oft_blocks": blocks}
        turns = _turns(blocks, (alpha or 0.0) * rows)
        new = torch.cat([turns[i].T @ weight[4 * i : 4 * i + 4].double() for i in range(rows // 4)])
        if alpha is not None:
            made[layer]["alpha"] = torch.tensor(alpha)
        if rescaled:
            made[layer]["rescale"] = 1 + _random(rows, 1, seed=4, size=0.2)
            new = new * made[layer]["rescale"]
        wanted[layer] = new - weight
    for layer, update in _updates(made, source, tmp_path).items():
        _close(update, wanted[layer])


@pytest.mark.parametrize("scaled", [False, True])
def test_oft_of_onetrainer(scaled, source, tmp_path):
    """Inputs turned block by block, by 1 + 2 Q + 2 Q^2 + 2 Q^3 + Q^4, whatever lies beside the file."""
    weight = WEIGHTS["blocks.0.ffn.0.weight"]
    vectors = _random(8, 6, seed=3, size=0.3)
    stem = "transformer.blocks.0.ffn.net.0.proj.oft_R"
    made = {f"{stem}.weight": vectors} | ({f"{stem}.scaled_oft": torch.tensor(1)} if scaled else {})
    save_file(made, tmp_path / "x.safetensors")
    columns = []
    for block in range(8):
        skew = torch.zeros(4, 4, dtype=torch.float64)
        entries = iter(vectors[block].double() / (6**0.5 if scaled else 1))
        for i in range(4):
            for j in range(i + 1, 4):
                skew[i, j] = next(entries)
                skew[j, i] = -skew[i, j]
        turn = torch.eye(4).double() + 2 * skew + 2 * skew @ skew + 2 * skew @ skew @ skew + skew @ skew @ skew @ skew
        columns.append(weight[:, 4 * block : 4 * block + 4].double() @ turn.T)
    layer = open_adapter(tmp_path / "x.safetensors", source).layers["blocks.0.ffn.0"]
    _close(layer.load().dense(), torch.cat(columns, dim=1) - weight)
    assert set(layer.keys) == set(made)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 100.0])
def test_oft_of_comfyuis_trainer(alpha, source, tmp_path):
    """Dotted names: alpha itself is the bound, where kohya and LyCORIS mean alpha times the rows."""
    weight = WEIGHTS["blocks.0.ffn.0.weight"]
    blocks = _random(16, 4, 4, seed=3, size=0.3)
    stem = "diffusion_model.blocks.0.ffn.0"
    save_file({f"{stem}.oft_blocks": blocks, f"{stem}.alpha": torch.tensor(alpha)}, tmp_path / "x.safetensors")
    turns = _turns(blocks, alpha)
    wanted = torch.cat([turns[i].T @ weight[4 * i : 4 * i + 4].double() for i in range(16)]) - weight
    _close(open_adapter(tmp_path / "x.safetensors", source).layers["blocks.0.ffn.0"].load().dense(), wanted)


@pytest.mark.parametrize("alpha", [0.0, 0.01])
@pytest.mark.parametrize("stages", [1, 3])
def test_boft(stages, alpha, source, tmp_path):
    """Stage i turns pairs of half blocks that lie 2^i half blocks apart; the order is written out row by row."""
    made, wanted = {}, {}
    for layer in LAYERS:
        weight = WEIGHTS[f"{layer}.weight"].double()
        rows, half = len(weight), 2
        blocks = _random(stages, rows // 4, 4, 4, seed=3, size=0.3)
        turns = _turns(blocks, alpha * rows)
        new = weight
        for stage in range(stages):
            step = half * 2**stage
            order = [start + j + far for start in range(0, rows, 2 * step) for j in range(step) for far in (0, step)]
            turned = torch.empty_like(new)
            for block, own in enumerate(torch.tensor(order).split(4)):
                turned[own] = turns[stage, block] @ new[own]
            new = turned
        made[layer] = {"oft_blocks": blocks, "alpha": torch.tensor(alpha), "rescale": torch.full((rows, 1), 1.25)}
        wanted[layer] = 1.25 * new - weight
    for layer, update in _updates(made, source, tmp_path).items():
        _close(update, wanted[layer])


@pytest.mark.parametrize("rank", [3, 20])
@pytest.mark.parametrize("early", [False, True])
def test_glora(early, rank, source, tmp_path):
    made, wanted = {}, {}
    for layer in LAYERS:
        weight = WEIGHTS[f"{layer}.weight"]
        m, n = weight.shape
        first, second = _random(n, rank, seed=1), _random(rank, n, seed=2, size=0.1)
        up, down = _random(m, rank, seed=3), _random(rank, n, seed=4, size=0.1)
        names = ("a2", "a1", "b2", "b1") if early else ("a1", "a2", "b1", "b2")
        made[layer] = {f"{name}.weight": t for name, t in zip(names, (first, second, up, down), strict=True)}
        made[layer]["alpha"] = torch.tensor(2.0)
        wanted[layer] = 2.0 / rank * (weight @ first @ second + up @ down)
    for layer, update in _updates(made, source, tmp_path).items():
        _close(update, wanted[layer])
    layer = open_adapter(tmp_path / "x.safetensors", source).layers[LAYERS[0]]
    assert layer.factored
    assert layer.load().rank == layer.rank == min(2 * rank, 32)


@pytest.mark.parametrize("on_input", [0, 1])
def test_ia3_of_lycoris(on_input, source, tmp_path):
    """What is added to 1; the bias stays, as in LyCORIS."""
    made, wanted = {}, {}
    for layer in LAYERS:
        weight = WEIGHTS[f"{layer}.weight"]
        added = _random(weight.shape[on_input], seed=1, size=0.2)
        made[layer] = {"weight": added, "on_input": torch.tensor(on_input)}
        wanted[layer] = weight * added if on_input else weight * added[:, None]
    for layer, update in _updates(made, source, tmp_path).items():
        _close(update, wanted[layer])
    assert open_adapter(tmp_path / "x.safetensors", source).passthrough == ()
    assert describe(tmp_path / "x.safetensors").refused == ""


def test_replaced_weights(source, tmp_path):
    """Of a layer, of a norm, of a bare parameter."""
    stem, params = "diffusion_model.", ["blocks.0.self_attn.q.weight", "blocks.0.norm3.weight", "blocks.0.modulation"]
    given = {param: _random(*WEIGHTS[param].shape, seed=1) for param in params}
    keys = {f"{stem}{param.removesuffix('.weight')}.set_weight": tensor for param, tensor in given.items()}
    save_file(keys, tmp_path / "x.safetensors")
    adapter = open_adapter(tmp_path / "x.safetensors", source)
    found = {f"{name}.weight": layer.load().dense() for name, layer in adapter.layers.items()}
    found |= {item.param: item.load() for item in adapter.passthrough}
    assert found.keys() == given.keys()
    for param, tensor in given.items():
        _close(found[param], tensor - WEIGHTS[param])
    convert_adapter(tmp_path / "x.safetensors", tmp_path / "out.safetensors", model=source)
    again = open_adapter(tmp_path / "out.safetensors", source)
    _close(again.layers["blocks.0.self_attn.q"].load().dense(), found[params[0]])
    _close({item.param: item.load() for item in again.passthrough}[params[1]], found[params[1]])


class TestConvolutions:
    """The update of a patch embedding is passed on as a change of its whole weight, whatever the kind."""

    NAME, KERNEL = "patch_embedding", (1, 2, 2)

    def _change(self, parts: Parts, source, tmp_path: Path) -> Tensor:
        adapter = open_adapter(_write({self.NAME: parts}, tmp_path / "x.safetensors"), source)
        assert adapter.layers == {}
        (item,) = adapter.passthrough
        assert (item.param, item.kind) == ("patch_embedding.weight", "diff")
        assert set(item.keys) == {f"lycoris_patch_embedding.{name}" for name in parts}
        convert_adapter(adapter.path, tmp_path / "out.safetensors", model=source, overwrite=True)
        (again,) = open_adapter(tmp_path / "out.safetensors", source).passthrough
        _close(again.load(), item.load())
        return item.load()

    def _core(self, rank: int, seed: int) -> Tensor:
        return _random(rank, rank, *self.KERNEL, seed=seed)

    def test_locon_with_a_core(self, source, tmp_path):
        up, down, mid = _random(32, 3, 1, 1, 1, seed=1), _random(3, 16, 1, 1, 1, seed=2), self._core(3, 3)
        parts = {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": mid, "alpha": torch.tensor(1.5)}
        wanted = 0.5 * _tucker(up.reshape(32, 3).T, down.reshape(3, 16), mid)
        _close(self._change(parts, source, tmp_path), wanted)

    def test_loha_with_cores(self, source, tmp_path):
        parts = {"alpha": torch.tensor(3.0)}
        halves = []
        for n in (1, 2):
            a, b, core = _random(2, 32, seed=n), _random(2, 16, seed=n + 5), self._core(2, n + 9)
            parts |= {f"hada_w{n}_a": a, f"hada_w{n}_b": b, f"hada_t{n}": core}
            halves.append(_tucker(a, b, core))
        _close(self._change(parts, source, tmp_path), 1.5 * halves[0] * halves[1])

    @pytest.mark.parametrize("form", ["core", "whole", "factors"])
    def test_lokr(self, form, source, tmp_path):
        w1 = _random(4, 4, seed=1)
        if form == "core":
            a, b, core = _random(2, 8, seed=2), _random(2, 4, seed=3), self._core(2, 4)
            own = {"lokr_w2_a": a, "lokr_w2_b": b, "lokr_t2": core}
            w2 = _tucker(a, b, core)
        elif form == "whole":
            w2 = _random(8, 4, *self.KERNEL, seed=2)
            own = {"lokr_w2": w2}
        else:
            own = {"lokr_w2_a": _random(8, 2, seed=2), "lokr_w2_b": _random(2, 4 * 4, seed=3)}
            w2 = (own["lokr_w2_a"] @ own["lokr_w2_b"]).reshape(8, 4, *self.KERNEL)
        wanted = torch.cat([torch.cat([w1[i, j] * w2 for j in range(4)], dim=1) for i in range(4)])
        alpha = {} if form == "whole" else {"alpha": torch.tensor(1.0)}
        _close(self._change({"lokr_w1": w1, **own, **alpha}, source, tmp_path), wanted * (0.5 if alpha else 1.0))

    @pytest.mark.parametrize("axis", ["rows", "inputs"])
    def test_dora(self, axis, source, tmp_path):
        weight = WEIGHTS["patch_embedding.weight"]
        up, down = _random(32, 3, 1, 1, 1, seed=1), _random(3, 16, *self.KERNEL, seed=2)
        changed = weight + torch.einsum("mr,rnabc->mnabc", up.reshape(32, 3), down)
        shape, others = ((32, 1, 1, 1, 1), (1, 2, 3, 4)) if axis == "rows" else ((1, 16, 1, 1, 1), (0, 2, 3, 4))
        size = 1 + _random(*shape, seed=3, size=0.2)
        parts = {"lora_up.weight": up, "lora_down.weight": down, "dora_scale": size}
        wanted = size * changed / changed.square().sum(dim=others, keepdim=True).sqrt() - weight
        _close(self._change(parts, source, tmp_path), wanted)

    @pytest.mark.parametrize("on_input", [0, 1])
    def test_ia3_of_lycoris(self, on_input, source, tmp_path):
        weight, of = WEIGHTS["patch_embedding.weight"], "io"[1 - on_input]
        added = _random(weight.shape[on_input], seed=1, size=0.2)
        parts = {"weight": added.reshape(1, -1, 1, 1, 1), "on_input": torch.tensor(on_input)}
        _close(self._change(parts, source, tmp_path), torch.einsum(f"oi...,{of}->oi...", weight, added))
        short = {"weight": added[:-1].reshape(1, -1, 1, 1, 1), "on_input": torch.tensor(on_input)}
        with pytest.raises(MismatchError, match=r"one entry for each|do not fit|sizes contradict"):
            self._change(short, source, tmp_path)

    def test_oft_and_glora(self, source, tmp_path):
        weight = WEIGHTS["patch_embedding.weight"]
        blocks = _random(8, 4, 4, seed=1, size=0.3)
        turns = _turns(blocks, 0.0).float()
        wanted = torch.einsum("knm,kn...->km...", turns, weight.reshape(8, 4, *weight.shape[1:])).reshape(weight.shape)
        _close(self._change({"oft_blocks": blocks}, source, tmp_path), wanted - weight)
        a1, a2 = _random(16, 2, seed=1), _random(2, 16, seed=2)
        b1, b2 = _random(32, 2, seed=3), _random(2, 16, *self.KERNEL, seed=4)
        wanted = torch.einsum("mi...,ij->mj...", weight, a1 @ a2) + torch.einsum("mr,r...->m...", b1, b2)
        parts = {"a1.weight": a1[..., None, None, None], "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}
        _close(self._change(parts, source, tmp_path), wanted)


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
            _close(loaded.dense(), own)
        return layers

    @pytest.mark.parametrize("flat", [False, True])
    @pytest.mark.parametrize("axis", ["rows", "inputs"])
    def test_dora(self, axis, flat, model, tmp_path):
        checkpoint, weight = model
        up, down = _random(72, 3, seed=1), _random(3, 24, seed=2)
        dim, shape = (1, (72, 1)) if axis == "rows" else (0, (1, 24))
        size = 1 + _random(*shape, seed=3, size=0.2)
        changed = weight + up @ down
        parts = {"lora_B.weight": up, "lora_A.weight": down, "dora_scale": size.reshape(-1) if flat else size}
        wanted = size * changed / changed.norm(dim=dim, keepdim=True) - weight
        layers = self._check(parts, wanted, checkpoint, tmp_path)
        # norms of rows are each layer's own; those of inputs need all three weights
        assert [len(layer.weight) for layer in layers] == ([1] * 3 if axis == "rows" else [3] * 3)

    def test_oft_whose_blocks_lie_across_layers(self, model, tmp_path):
        checkpoint, weight = model
        blocks = _random(2, 36, 36, seed=1, size=0.1)
        turns = _turns(blocks, 0.0).float()
        wanted = torch.cat([turn.T @ own for turn, own in zip(turns, weight.split(36), strict=True)]) - weight
        self._check({"oft_blocks": blocks}, wanted, checkpoint, tmp_path)

    def test_ia3_and_glora(self, model, tmp_path):
        checkpoint, weight = model
        factor = 1 + _random(72, 1, seed=1, size=0.2)
        self._check({"ia3_l": factor}, weight * (factor - 1), checkpoint, tmp_path)
        self._check({"ia3_l": factor[:24].T}, weight * (factor[:24, 0] - 1), checkpoint, tmp_path)
        a1, a2, b1, b2 = _random(24, 2, seed=1), _random(2, 24, seed=2), _random(72, 2, seed=3), _random(2, 24, seed=4)
        parts = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}
        self._check(parts, weight @ a1 @ a2 + b1 @ b2, checkpoint, tmp_path)

    @pytest.mark.parametrize("shape", [(-1,), (1, -1)])
    @pytest.mark.parametrize("on_input", [0, 1])
    def test_ia3_of_lycoris(self, on_input, shape, model, tmp_path):
        """A vector lies the same way for rows and inputs; only the rows' is shared out among the layers."""
        checkpoint, weight = model
        added = _random(weight.shape[on_input], seed=1, size=0.2)
        parts = {"weight": added.reshape(shape), "on_input": torch.tensor(on_input)}
        self._check(parts, weight * (added if on_input else added[:, None]), checkpoint, tmp_path)

    def test_split_factors(self, model, tmp_path):
        """A pair for each layer, as kohya and musubi-tuner split them: each layer keeps the rank of one pair."""
        checkpoint, _ = model
        ups, downs = [_random(24, 2, seed=n) for n in range(3)], [_random(2, 24, seed=n + 5) for n in range(3)]
        parts = {"alpha": torch.tensor(1.0)}
        for n in range(3):
            parts |= {f"lora_up.{n}.weight": ups[n], f"lora_down.{n}.weight": downs[n]}
        wanted = torch.cat([0.5 * up @ down for up, down in zip(ups, downs, strict=True)])
        layers = self._check(parts, wanted, checkpoint, tmp_path)
        assert [layer.rank for layer in layers] == [2, 2, 2]
        # two pairs for three layers: the one in the middle needs both
        parts = {f"lora_up.{n}.weight": _random(36, 2, seed=n) for n in range(2)}
        parts |= {f"lora_down.{n}.weight": downs[n] for n in range(2)}
        wanted = torch.cat([parts[f"lora_up.{n}.weight"] @ downs[n] for n in range(2)])
        layers = self._check(parts, wanted, checkpoint, tmp_path)
        assert [layer.rank for layer in layers] == [2, 4, 2]


@pytest.mark.parametrize("zero", [{"up.0"}, {"down.1"}, {"up.0", "down.1"}])
def test_split_factors_are_zero_where_every_pair_is(zero, tmp_path):
    parts = {}
    for n in range(2):
        pair = {f"up.{n}": _random(16, 2, seed=n), f"down.{n}": _random(2, 32, seed=n)}
        parts |= {f"lora_{name}.weight": tensor * (name not in zero) for name, tensor in pair.items()}
    layer = open_adapter(_write({LAYERS[0]: parts}, tmp_path / "x.safetensors")).layers[LAYERS[0]]
    assert layer.is_zero() == (not layer.load().dense().any()) == (len(zero) == 2)


@pytest.mark.parametrize("scalar", [0.25, -2.0, 0.0])
def test_a_scalar_of_old_lycoris_counts(scalar, tmp_path):
    parts, update = _inner("loha", 32, 32)
    path = _write({LAYERS[0]: parts | {"scalar": torch.tensor(scalar)}}, tmp_path / "x.safetensors")
    _close(open_adapter(path).layers[LAYERS[0]].load().dense(), scalar * update)
    for to in ("universal", "kohya"):
        convert_adapter(path, tmp_path / "out.safetensors", to=to, overwrite=True)
        _close(open_adapter(tmp_path / "out.safetensors").layers[LAYERS[0]].load().dense(), scalar * update)


def test_sat_needs_its_scale(tmp_path):
    from corpus import CORPUS, write

    path = write("cogvideox-sat", tmp_path)
    with pytest.raises(UnsupportedError, match=r"--scale 0\.25") as caught:
        open_adapter(path)
    assert "does not say how strong" in caught.value.message
    adapter = open_adapter(path, scale=0.25)
    keys = CORPUS["cogvideox-sat"]["keys"]
    assert {key for layer in adapter.layers.values() for key in layer.keys} == set(keys)
    assert {(layer.rank, layer.shape) for layer in adapter.layers.values()} == {(4, (24, 24))}
    convert_adapter(path, tmp_path / "out.safetensors", to="diffusers", scale=0.25)
    again = open_adapter(tmp_path / "out.safetensors").layers
    for name, layer in adapter.layers.items():
        _close(again[name].load().dense(), layer.load().dense())


class TestRefused:
    Q = LAYERS[0]

    @pytest.mark.parametrize(
        ("parts", "error", "words"),
        [
            ({"dora_scale": _random(32, 1)}, UnmatchedKeysError, "lora_A.weight is missing"),
            ({"dora_scale": _random(32, 1), "oft_R.weight": _random(8, 6)}, UnsupportedError, "a magnitude on OFT"),
            (
                {"dora_scale": _random(31, 1), "lora_up.weight": _random(32, 2), "lora_down.weight": _random(2, 32)},
                MismatchError,
                "does not fit its factors",
            ),
            ({"oft_blocks": _random(8, 4, 3)}, MismatchError, "not blocks"),
            ({"oft_blocks": _random(3, 5, 4, 4)}, MismatchError, "not blocks"),
            ({"oft_blocks": _random(8, 4, 4), "rescale": _random(31, 1)}, MismatchError, "not blocks"),
            ({"rescale": _random(32, 1)}, UnmatchedKeysError, "factors it belongs to are missing"),
            ({"oft_R.weight": _random(4, 7)}, MismatchError, "not blocks"),
            ({"boft_s": _random(32, 1)}, UnmatchedKeysError, "boft_R is missing"),
            (
                {"a1.weight": _random(32, 2), "a2.weight": _random(2, 32), "b1.weight": _random(32, 2)},
                UnmatchedKeysError,
                "b2.weight is missing",
            ),
            (
                {
                    "a1.weight": _random(32, 2),
                    "a2.weight": _random(3, 32),
                    "b1.weight": _random(32, 2),
                    "b2.weight": _random(2, 32),
                },
                MismatchError,
                "do not fit each other",
            ),
            ({"on_input": torch.tensor(1)}, UnmatchedKeysError, r"self_attn_q\.weight is missing"),
            ({"ia3_l": _random(32, 2)}, MismatchError, "one entry for each"),
            ({"set_weight": torch.zeros(0, 3)}, MismatchError, "is no weight"),
            ({"set_weight": _random(16, 32)}, MismatchError, "sizes contradict"),
            ({"lora_up.0.weight": _random(32, 2)}, UnmatchedKeysError, r"lora_down\.0\.weight is missing"),
            ({"vera_lambda_b": _random(32)}, UnmatchedKeysError, "vera_lambda_d is missing"),
            ({"hada_t1": _random(2, 2, 2, 2)}, UnmatchedKeysError, "missing"),
        ],
    )
    def test_parts_that_are_not_whole(self, parts, error, words, source, tmp_path):
        path = _write({self.Q: parts}, tmp_path / "x.safetensors")
        with pytest.raises(error, match=words):
            open_adapter(path, source)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize(
        "parts",
        [
            {"dora_scale": _random(32, 1), "lora_up.weight": _random(32, 2), "lora_down.weight": _random(2, 32)},
            {"oft_blocks": _random(8, 4, 4)},
            {"oft_blocks": _random(2, 8, 4, 4)},
            {
                "a1.weight": _random(32, 2),
                "a2.weight": _random(2, 32),
                "b1.weight": _random(32, 2),
                "b2.weight": _random(2, 32),
            },
            {"ia3_l": _random(32, 1)},
            {"set_weight": _random(32, 32)},
        ],
    )
    def test_numbers_that_are_not_finite(self, parts, value, source, tmp_path):
        for name in parts:
            spoilt = {n: t.clone() for n, t in parts.items()}
            spoilt[name].reshape(-1)[0] = value
            layer = open_adapter(_write({self.Q: spoilt}, tmp_path / "x.safetensors"), source).layers[self.Q]
            with pytest.raises(NumericalError, match=r"NaN or infinity|not finite"):
                layer.load()

    @pytest.mark.parametrize("part", ["dora_scale", "oft_blocks", "ia3_l", "set_weight"])
    def test_integers(self, part, source, tmp_path):
        parts, _ = _inner("lora", 32, 32)
        shape = {"oft_blocks": (8, 4, 4), "set_weight": (32, 32)}.get(part, (32, 1))
        whole = {part: torch.ones(shape, dtype=torch.int32)} | (parts if part == "dora_scale" else {})
        with pytest.raises(UnsupportedError, match="integers"):
            open_adapter(_write({self.Q: whole}, tmp_path / "x.safetensors"), source)

    def test_sizes_beyond_all_measure_are_refused_before_they_are_read(self, tmp_path):
        """A few bytes in a torch file can claim a matrix of terabytes."""
        huge = 10**6
        cases = [
            {"lokr_w1": (huge, huge), "lokr_w2": (4, 4)},
            {"a1.weight": (32, huge), "a2.weight": (huge, 32), "b1.weight": (32, huge), "b2.weight": (huge, 32)},
            {"lora_up.weight": (32, 4), "lora_down.weight": (4, huge), "lora_mid.weight": (4, 4, huge)},
            {"lora_up.0.weight": (huge, 4), "lora_down.0.weight": (4, huge)},
            {"lora_up.weight": (huge, 2), "lora_down.weight": (2, huge), "dora_scale": (huge, 1)},
            {"set_weight": (huge, huge)},
        ]
        for parts in cases:
            tensors = {f"lycoris_blocks_0_self_attn_q.{name}": torch.zeros(1).expand(s) for name, s in parts.items()}
            torch.save(tensors, tmp_path / "x.pt")
            with pytest.raises(MismatchError, match=r"far larger than any layer|rank far beyond"):
                open_adapter(tmp_path / "x.pt")

    def test_factors_and_a_function_on_one_layer(self, source, tmp_path):
        parts, _ = _inner("lora", 32, 32)
        path = _write({self.Q: parts | {"ia3_l": _random(32, 1)}}, tmp_path / "x.safetensors")
        with pytest.raises(UnsupportedError, match="several kinds: ia3 and lora"):
            open_adapter(path, source)


def test_verify_and_drop(source, tmp_path):
    parts, _ = _inner("lora", 32, 32)
    made = {name: parts | {"dora_scale": _random(32, 1)} for name in ("blocks.0.self_attn.q", "blocks.0.self_attn.k")}
    path = _write(made, tmp_path / "x.safetensors")
    assert all(check.passed is not False for check in verify_adapter(path, source))
    assert list(open_adapter(path, source, drop=r"self_attn\.k").layers) == ["blocks.0.self_attn.q"]
    found = describe(path)
    assert found.layers == 2
    assert any("DoRA changes the weights by a function of what they were" in text for text in found.findings)
    assert isinstance(open_adapter(path).layers["blocks.0.self_attn.q"].source_missing(), LoraportError)


def _parts(case: str, m: int, n: int) -> Parts:
    if case.startswith("DoRA"):
        parts, _ = _inner("lora", m, n)
        return parts | {"dora_scale": 1 + _random(*((m, 1) if case == "DoRA of rows" else (1, n)), seed=5, size=0.2)}
    if case == "GLoRA":
        up, down = _random(m, 2, seed=3, size=0.1), _random(2, n, seed=4)
        first, second = _random(n, 2, seed=1, size=0.1), _random(2, n, seed=2, size=0.1)
        return {"a1.weight": first, "a2.weight": second, "b1.weight": up, "b2.weight": down}
    if case == "split":
        halves = {f"lora_up.{i}.weight": _random(m // 2, 2, seed=i) for i in range(2)}
        return halves | {f"lora_down.{i}.weight": _random(2, n, seed=i + 3) for i in range(2)}
    return {
        "OFT": {"oft_blocks": _random(m // 4, 4, 4, size=0.2), "alpha": torch.tensor(0.0)},
        "BOFT": {"oft_blocks": _random(3, m // 4, 4, 4, size=0.2), "alpha": torch.tensor(0.0)},
        "IA3": {"weight": _random(n, size=0.2), "on_input": torch.tensor(1)},
        "replaced": {"set_weight": _random(m, n, size=0.2)},
    }[case]


OFTEN, RARELY = ["DoRA of inputs", "GLoRA"], ["DoRA of rows", "OFT", "BOFT", "IA3", "replaced", "split"]


@pytest.mark.parametrize("case", [*OFTEN, *(pytest.param(case, marks=pytest.mark.slow) for case in RARELY)])
def test_inspect_and_transfer(case, tmp_path):
    """By `direct` at full rank the output is the update; by the default method it is made, and the share stated."""
    files = pico.write(tmp_path / "models")
    made = {name: _parts(case, m, n) for name, (m, n) in pico.LAYERS.items() if "blocks.0" in name}
    path = _write(made, tmp_path / "x.safetensors")
    assert describe(path).layers == len(made)
    options = loraport.RunOptions(cache="off")
    recipe = {"source": files.source, "target": files.target}
    direct, default = tmp_path / "direct.safetensors", tmp_path / "default.safetensors"
    loraport.transfer(path, output=direct, **recipe, method="direct", rank="full", options=options)
    report = loraport.transfer(path, output=default, **recipe, rank="8", options=options)
    wanted = open_adapter(path, open_checkpoint(files.source)).layers
    for name, layer in open_adapter(direct, open_checkpoint(files.target)).layers.items():
        _close(layer.load().dense(), wanted[name].load().dense(), 1e-4)
    assert all(0 < layer.energy_kept <= 1 for layer in report.layers)
    assert open_adapter(default, open_checkpoint(files.target)).layers.keys() == made.keys()


def test_convert_does_not_fill_the_memory(tmp_path):
    """Whole matrices of terabytes, from a file of some thousand bytes: said before the first is made."""
    tensors = {}
    for block in range(40):
        for layer in ("self_attn.q", "self_attn.k", "cross_attn.q", "cross_attn.o"):
            stem = f"diffusion_model.blocks.{block}.{layer}"
            tensors |= {f"{stem}.{half}": torch.zeros(1).expand(181, 181) for half in ("lokr_w1", "lokr_w2")}
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(UnsupportedError, match="more memory than there is"):
        convert_adapter(tmp_path / "x.pt", tmp_path / "out.safetensors", to="original")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("part", "fine"), [("dora_scale", False), ("lora_up.1.weight", False), ("lora_up.weight", True)]
)
def test_a_strength_that_a_text_encoder_cannot_take(part, fine, tmp_path):
    parts, _ = _inner("lora", 32, 32)
    path = _write({LAYERS[0]: parts}, tmp_path / "x.safetensors")
    tensors = {"lora_te_text_model_layers_0_mlp_fc1." + part: torch.ones(4, 4)}
    save_file(tensors | load_file(path), path)
    adapter = open_adapter(path)
    if fine:
        assert adapter.scaled(0.5).passthrough[0].load().equal(torch.full((4, 4), 0.5))
        return
    with pytest.raises(UnsupportedError, match="strength cannot be applied") as caught:
        adapter.scaled(0.5)
    assert "--drop ^lora_te" in caught.value.message
    assert open_adapter(path, drop="^lora_te").scaled(0.5).layers


def test_what_was_on_the_source_in_training_is_in_no_file(tmp_path):
    files = pico.write(tmp_path / "models")
    path = _write({LAYERS[0]: _parts("DoRA of rows", 32, 32)}, tmp_path / "x.safetensors")
    recipe = {"source": files.source, "target": files.target, "options": loraport.RunOptions(cache="off")}
    with pytest.raises(UnsupportedError, match="--source-lora changed"):
        loraport.transfer(path, **recipe, source_lora=files.lora)


def test_a_distillation_lora_may_be_a_function_of_the_source(tmp_path):
    """The target that it makes, against the same target as a checkpoint; and the plan counts the weight."""
    files = pico.write(tmp_path / "models")
    made = {name: _parts("DoRA of rows", m, n) for name, (m, n) in pico.LAYERS.items() if "blocks.0" in name}
    dora = _write(made, tmp_path / "dora.safetensors")
    layers = open_adapter(dora, open_checkpoint(files.source)).layers
    target = {
        k: t + layers[k[:-7]].load().dense() if k[:-7] in layers else t for k, t in load_file(files.source).items()
    }
    save_file(target, files.target)
    options = loraport.RunOptions(cache="off")
    found = {}
    for name, side in {"lora": {"target_lora": dora}, "checkpoint": {"target": files.target}}.items():
        output = tmp_path / f"{name}.safetensors"
        loraport.transfer(files.lora, source=files.source, **side, output=output, rank="full", options=options)
        found[name] = open_adapter(output).layers
    for name, layer in found["lora"].items():
        _close(layer.load().dense(), found["checkpoint"][name].load().dense(), 1e-3)
    models = {"source": str(files.source), "target": str(files.target)}
    plain, other = (loraport.plan(loraport.Recipe(lora=str(path), **models)) for path in (files.lora, dora))
    peaks = {job.name: job.peak_bytes for job in plain.jobs}
    assert all(job.peak_bytes >= peaks[job.name] + 3 * 4 * job.shape[0] * job.shape[1] for job in other.jobs)


@pytest.mark.parametrize("case", ["DoRA of rows", "split"])
def test_convert_says_what_it_multiplied_out(case, source, tmp_path):
    stem = "lycoris_blocks_0_self_attn_k"
    path = _write({LAYERS[0]: _parts(case, 32, 32)}, tmp_path / "x.safetensors")
    plain = {f"{stem}.lora_up.weight": _random(32, 2), f"{stem}.lora_down.weight": _random(2, 32)}
    save_file(load_file(path) | plain, path)
    assert convert_adapter(path, tmp_path / "out.safetensors", model=source).multiplied == (LAYERS[0],)
