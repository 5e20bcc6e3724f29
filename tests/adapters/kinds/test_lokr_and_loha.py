"""LoKr and LoHa against the dense formula written out here, entry by entry, through every command."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import pico
from adapter_parts import LAYERS, Parts, close, factors, gaussian, write_lycoris
from loraport.adapters.convert import convert
from loraport.adapters.loading import load
from loraport.adapters.loading.layers import stored_update
from loraport.adapters.parse import open_adapter
from loraport.cli.main import app
from loraport.errors import MismatchError, NumericalError, UnmatchedKeysError, UnsupportedError
from loraport.models.checkpoint import open_checkpoint

SHAPE = {"self_attn.q": (32, 32), "ffn.0": (64, 32), "ffn.2": (32, 64)}


def _lokr(m: int, n: int, *, rank1: int = 0, rank2: int = 0, small: int = 4, seed: int = 0) -> Parts:
    found = {}
    for half, (a, b), rank in (("w1", (small, small), rank1), ("w2", (m // small, n // small), rank2)):
        seed += 10
        if rank:
            found |= {
                f"lokr_{half}_a": gaussian(a, rank, seed=seed),
                f"lokr_{half}_b": gaussian(rank, b, seed=seed + 1),
            }
        else:
            found[f"lokr_{half}"] = gaussian(a, b, seed=seed)
    return found


def _loha(m: int, n: int, *, rank1: int, rank2: int, seed: int = 0) -> Parts:
    return {
        "hada_w1_a": gaussian(m, rank1, seed=seed),
        "hada_w1_b": gaussian(rank1, n, seed=seed + 1),
        "hada_w2_a": gaussian(m, rank2, seed=seed + 2),
        "hada_w2_b": gaussian(rank2, n, seed=seed + 3),
    }


def _dense(parts: Parts, alpha: float | None) -> Tensor:
    """The update in float64 by the definition: products of entries for LoHa, blocks w1[i, j] * w2 for LoKr."""
    parts = {name: tensor.double() for name, tensor in parts.items()}
    if "hada_w1_a" in parts:
        scale = 1.0 if alpha is None else alpha / parts["hada_w1_b"].shape[0]
        return scale * (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    inner = [parts[f"lokr_{half}_b"].shape[0] for half in ("w1", "w2") if f"lokr_{half}_b" in parts]
    scale = alpha / inner[-1] if alpha is not None and inner else 1.0
    w1, w2 = (
        parts[f"lokr_{half}"] if f"lokr_{half}" in parts else parts[f"lokr_{half}_a"] @ parts[f"lokr_{half}_b"]
        for half in ("w1", "w2")
    )
    rows = [torch.cat([w1[i, j] * w2 for j in range(w1.shape[1])], dim=1) for i in range(w1.shape[0])]
    return scale * torch.cat(rows, dim=0)


CASES = {
    "LoKr whole": lambda m, n: _lokr(m, n),
    "LoKr w2 factored": lambda m, n: _lokr(m, n, rank2=2),
    "LoKr w1 factored": lambda m, n: _lokr(m, n, rank1=2),
    "LoKr both factored": lambda m, n: _lokr(m, n, rank1=2, rank2=2),
    "LoKr both factored, ranks differ": lambda m, n: _lokr(m, n, rank1=3, rank2=2),
    "LoKr of inner ranks above its sides": lambda m, n: _lokr(m, n, rank1=9, rank2=40),
    "LoKr of a number and a matrix": lambda m, n: _lokr(m, n, small=1, rank2=3),
    "LoHa": lambda m, n: _loha(m, n, rank1=2, rank2=2),
    "LoHa, ranks differ": lambda m, n: _loha(m, n, rank1=3, rank2=2),
    "LoHa of rank 1": lambda m, n: _loha(m, n, rank1=1, rank2=1),
    "LoHa of full rank": lambda m, n: _loha(m, n, rank1=8, rank2=8),
    "LoHa of inner ranks above its sides": lambda m, n: _loha(m, n, rank1=80, rank2=3),
    "LoHa of zeros": lambda m, n: {
        name: t * (name != "hada_w2_a") for name, t in _loha(m, n, rank1=2, rank2=2).items()
    },
}


def _write(made: dict[str, Parts], path: Path, alpha: float | None, dtype: torch.dtype = torch.float32) -> Path:
    tensors = {
        f"diffusion_model.{layer}.{name}": t.to(dtype) for layer, parts in made.items() for name, t in parts.items()
    }
    if alpha is not None:
        tensors |= {f"diffusion_model.{layer}.alpha": torch.tensor(alpha) for layer in made}
    save_file(tensors, path)
    return path


def _close(found: Tensor, wanted: Tensor) -> None:
    assert (found.double() - wanted).norm() <= 1e-5 * wanted.norm()


def _run(*words: object) -> str:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words], prog_name="loraport")
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def files(tmp_path):
    return pico.write(tmp_path)


@pytest.mark.parametrize("alpha", [None, 1.0, 6.0])
@pytest.mark.parametrize("case", CASES)
def test_the_update_is_the_dense_formula(case, alpha, tmp_path):
    made = {f"blocks.0.{name}": CASES[case](m, n) for name, (m, n) in SHAPE.items()}
    adapter = open_adapter(_write(made, tmp_path / "lora.safetensors", alpha))
    for layer, parts in made.items():
        update = adapter.layers[layer]
        loaded = update.load()
        assert loaded.rank == update.rank <= min(update.shape)
        _close(loaded.dense(), _dense(parts, alpha))
        stored = stored_update(update)
        product = stored if isinstance(stored, Tensor) else stored[0] @ stored[1]
        _close(update.scale * product, _dense(parts, alpha))


@pytest.mark.parametrize("case", ["LoKr whole", "LoKr w2 factored", "LoHa", "LoHa of full rank"])
def test_bfloat16_factors_lose_nothing_on_the_way(case, tmp_path):
    parts = {name: t.bfloat16() for name, t in CASES[case](32, 32).items()}
    adapter = open_adapter(_write({"blocks.0.self_attn.q": parts}, tmp_path / "x.safetensors", 2.0, torch.bfloat16))
    _close(adapter.layers["blocks.0.self_attn.q"].load().dense(), _dense(parts, 2.0))


@pytest.mark.parametrize("case", ["LoKr both factored", "LoHa of full rank"])
def test_transfer_convert_inspect_and_verify(case, files):
    made = {layer: CASES[case](m, n) for layer, (m, n) in pico.LAYERS.items()}
    lora = _write(made, files.folder / "made.safetensors", 2.0)
    wanted = {layer: _dense(parts, 2.0) for layer, parts in made.items()}
    _run("verify", lora, "--no-load", "--model", files.target)
    facts = json.loads(_run("inspect", lora, "--json"))
    assert "LoKr" in json.dumps(facts) or "LoHa" in json.dumps(facts)

    outputs = {"transfer": files.folder / "out.safetensors"}
    models = ["--source", files.source, "--target", files.target]
    _run("transfer", lora, *models, "--method", "direct", "-o", outputs["transfer"])
    for to in ("universal", "kohya", "diffusers", "original", "same-as-input"):
        outputs[to] = files.folder / f"{to}.safetensors"
        _run("convert", lora, "--to", to, "-o", outputs[to])
    for output in outputs.values():
        found = open_adapter(output).layers
        assert found.keys() == wanted.keys()
        for layer, update in wanted.items():
            _close(found[layer].load().dense(), update)
        assert not any(key.rpartition(".")[2].startswith(("lokr", "hada")) for key in load_file(output))
    _run("verify", outputs["transfer"], "--no-load", "--model", files.target)


def test_a_layer_one_entry_wide(tmp_path):
    """1 x n and m x 1, and matrices of a single row or column inside the product."""
    from loraport.adapters.kinds import KINDS
    from loraport.containers.tensors import open_tensors

    for m, n in [(1, 5), (5, 1), (1, 1), (6, 1)]:
        for rank1, rank2 in itertools.product([0, 1, 2], [0, 1, 2]):
            parts = _lokr(m, n, rank1=rank1, rank2=rank2, small=1)
            save_file(parts, tmp_path / "x.safetensors")
            refs = open_tensors(tmp_path / "x.safetensors").groups[()]
            _close(load(KINDS["lokr"], refs, (m, n)).dense(), _dense(parts, None))
        parts = _loha(m, n, rank1=2, rank2=3)
        save_file(parts, tmp_path / "x.safetensors")
        refs = open_tensors(tmp_path / "x.safetensors").groups[()]
        _close(load(KINDS["loha"], refs, (m, n)).dense(), _dense(parts, None))


@pytest.mark.parametrize("case", ["LoKr whole", "LoKr w2 factored", "LoHa"])
def test_a_scale_by_hand(case, tmp_path):
    """Also for two whole matrices, of which the file can say nothing."""
    parts = CASES[case](32, 32)
    path = _write({"blocks.0.self_attn.q": parts}, tmp_path / "x.safetensors", 5.0)
    layer = open_adapter(path, scale=0.5).layers["blocks.0.self_attn.q"]
    assert layer.scale_source == "stated by hand"
    _close(layer.load().dense(), _dense(parts, None) / 2)


class TestRefused:
    Q = "blocks.0.self_attn.q"

    @pytest.mark.parametrize("case", ["LoKr both factored", "LoHa"])
    def test_a_part_that_is_missing_is_named(self, case, tmp_path):
        parts = CASES[case](32, 32)
        gone = sorted(parts)[-1]
        del parts[gone]
        with pytest.raises(UnmatchedKeysError, match=f"diffusion_model.{self.Q}.{gone} is missing"):
            open_adapter(_write({self.Q: parts}, tmp_path / "x.safetensors", None))

    @pytest.mark.parametrize("case", ["LoKr both factored", "LoHa"])
    def test_factors_that_do_not_fit(self, case, tmp_path):
        parts = CASES[case](32, 32)
        last = sorted(parts)[-1]
        parts[last] = torch.ones(7, parts[last].shape[1])
        with pytest.raises(MismatchError, match="do not fit each other"):
            open_adapter(_write({self.Q: parts}, tmp_path / "x.safetensors", None))

    def test_a_product_of_the_wrong_size(self, files, tmp_path):
        path = _write({self.Q: _lokr(16, 16)}, tmp_path / "x.safetensors", None)
        with pytest.raises(MismatchError, match="16 x 16 and 32 x 32"):
            open_adapter(path, open_checkpoint(files.source))

    def test_two_kinds_on_one_layer(self, tmp_path):
        parts = CASES["LoKr whole"](32, 32) | CASES["LoHa"](32, 32)
        with pytest.raises(UnsupportedError, match="several kinds: loha and lokr"):
            open_adapter(_write({self.Q: parts}, tmp_path / "x.safetensors", None))

    def test_one_matrix_whole_and_in_factors(self, tmp_path):
        parts = CASES["LoKr whole"](32, 32) | CASES["LoKr w2 factored"](32, 32)
        with pytest.raises(UnsupportedError, match="both whole and in factors"):
            open_adapter(_write({self.Q: parts}, tmp_path / "x.safetensors", None))

    @pytest.mark.parametrize("case", CASES)
    def test_numbers_that_are_not_finite(self, case, tmp_path):
        parts = CASES[case](32, 32)
        parts[sorted(parts)[0]][0, 0] = float("nan")
        layer = open_adapter(_write({self.Q: parts}, tmp_path / "x.safetensors", None)).layers[self.Q]
        with pytest.raises(NumericalError, match="NaN or infinity"):
            layer.load()

    def test_a_rank_beyond_all_measure_is_refused_before_it_is_read(self, tmp_path):
        """A few bytes in a torch file can claim a rank of millions."""
        sizes = {
            "lora": {"lora_A.weight": (10**6, 32), "lora_B.weight": (32, 10**6)},
            "lokr": {"lokr_w1": (4, 4), "lokr_w2_a": (8, 10**6), "lokr_w2_b": (10**6, 8)},
            "loha": {f"hada_w{n}_{side}": (32, 10**6) if side == "a" else (10**6, 32) for n in (1, 2) for side in "ab"},
        }
        for parts in sizes.values():
            tensors = {f"diffusion_model.{self.Q}.{name}": torch.zeros(1).expand(size) for name, size in parts.items()}
            torch.save(tensors, tmp_path / "x.pt")
            assert (tmp_path / "x.pt").stat().st_size < 10_000
            with pytest.raises(MismatchError, match="rank 1,000,000"):
                open_adapter(tmp_path / "x.pt")


@pytest.mark.parametrize("scalar", [0.25, -2.0, 0.0])
def test_a_scalar_of_old_lycoris_counts(scalar, tmp_path):
    parts, update = factors("loha", 32, 32)
    path = write_lycoris({LAYERS[0]: parts | {"scalar": torch.tensor(scalar)}}, tmp_path / "x.safetensors")
    close(open_adapter(path).layers[LAYERS[0]].load().dense(), scalar * update)
    for to in ("universal", "kohya"):
        convert(path, tmp_path / "out.safetensors", to=to, overwrite=True)
        close(open_adapter(tmp_path / "out.safetensors").layers[LAYERS[0]].load().dense(), scalar * update)
