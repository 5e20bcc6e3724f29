"""What holds for every method there is, without naming one."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator

import loraport
import pico
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe
from loraport.engine.results import COLUMNS, layer_columns
from loraport.engine.small_maps import packed_maps
from loraport.errors import NumericalError
from loraport.methods import base, registry
from loraport.methods.base import LayerInputs
from loraport.methods.maps import BANDS

DOCS = Path(__file__).parents[2] / "docs"
SHAPES = [(24, 24), (40, 16), (16, 40)]
NAMES = [*registry.names(), *registry.presets()]


def layer(shape, *, rank=3, drift=0.3, dtype=torch.float64) -> LayerInputs:
    """A layer with all that a method can ask for."""
    m, n = shape
    generator = Generator().manual_seed(m * 31 + n)

    def draw(a: int, b: int) -> torch.Tensor:
        return torch.randn(a, b, generator=generator, dtype=dtype)

    W, D = draw(m, n), drift * draw(m, n)
    return LayerInputs(
        name="layer",
        update=LowRank(draw(m, rank), draw(rank, n)),
        basis=thin_svd(W),
        target_basis=thin_svd(W + D),
        drift=DenseOperator(D),
        source=DenseOperator(W),
        target=DenseOperator(W + D),
    )


def only_what_is_needed(inputs: LayerInputs, needs: base.Needs) -> LayerInputs:
    """The layer as the engine would hand it over."""
    return LayerInputs(
        name=inputs.name,
        update=inputs.update,
        basis=inputs.basis if needs.basis else None,
        target_basis=inputs.target_basis if needs.target_basis else None,
        drift=inputs.drift if needs.drift else None,
        source=inputs.source if needs.source else None,
        target=inputs.target if needs.target else None,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_method_reports_what_it_declares_and_reads_what_it_asks_for(name, shape):
    method, params = registry.resolve(name)
    output = method.transfer(only_what_is_needed(layer(shape), method.needs(params)), params)
    assert output.stats.keys() == {column.key for column in method.columns}
    assert len({column.title for column in method.columns}) == len(method.columns)
    for column in method.columns:
        assert column.help
        value = output.stats[column.key]
        assert isinstance(value, str) == (column.unit == "text"), column
        assert column.unit != "count" or isinstance(value, int), column
        assert column.unit != "share" or -1e-9 <= value <= 1 + 1e-9, column
    old, new = layer(shape).update.dense(), output.update.dense()
    sizes = {"norm_ratio": new.norm() / old.norm(), "cosine": (new * old).sum() / (new.norm() * old.norm())}
    for key in sizes.keys() & output.stats.keys():
        assert output.stats[key] == pytest.approx(float(sizes[key]), abs=1e-9), key


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_method_draws_what_it_declares(name, shape):
    method, params = registry.resolve(name)
    maps = method.transfer(only_what_is_needed(layer(shape), method.needs(params)), params).maps
    declared = {each.key: each for each in method.maps}
    assert len({each.title for each in method.maps}) == len(declared) == len(method.maps)
    assert maps.keys() <= declared.keys()
    assert name != method.name or maps.keys() == declared.keys()
    assert packed_maps(maps).keys() == maps.keys()
    for key, found in maps.items():
        about, sides = declared[key], (len(found.values), len(found.values[0]))
        assert about.look.endswith(".")
        assert not about.lines or len(about.lines) == sides[0], key
        assert all(cells <= BANDS or cells == of for cells, of in zip(sides, found.of, strict=True)), key
        assert about.lines or found.of == (min(shape), min(shape)), key
        numbers = [value for row in found.values for value in row]
        assert about.unit != "share" or (min(numbers) >= -1e-6 and max(numbers) <= 1 + 1e-6), key
        assert about.high is None or about.unit != "share" or about.high == 1.0


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("name", NAMES)
def test_an_update_of_zeros_has_figures_like_any_other(name, rank):
    method, params = registry.resolve(name)
    plain = layer((24, 16), rank=rank)
    output = method.transfer(replace(plain, update=plain.update.scaled(0.0)), params)
    assert output.update.dense().isfinite().all()
    assert all(isinstance(value, str) or math.isfinite(value) for value in output.stats.values())
    assert not method.keeps_rank or not output.update.dense().any()


@pytest.mark.parametrize("name", NAMES)
def test_only_the_product_of_the_factors_counts(name):
    plain = layer((24, 16))
    method, params = registry.resolve(name)
    expected = method.transfer(plain, params).update.dense()
    B, A = plain.update.B, plain.update.A
    for update in (plain.update.padded(8), LowRank(torch.cat([B / 2, B / 2], dim=1), torch.cat([A, A]))):
        new = method.transfer(replace(plain, update=update), params).update.dense()
        assert float((new - expected).norm()) < 1e-9 * float(expected.norm())


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (5, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_may_have_fewer_rows_or_columns_than_the_lora_has_ranks(name, shape):
    large = layer(shape, rank=7)
    method, params = registry.resolve(name)
    expected = method.transfer(replace(large, update=LowRank.from_dense(large.update.dense())), params).update.dense()
    new = method.transfer(large, params).update.dense()
    assert float((new - expected).norm()) < 1e-9 * float(large.update.norm())


def test_something_not_asked_for_is_named():
    inputs = LayerInputs("blocks.0.q", LowRank.zeros(3, 2))
    for need in ("source", "target", "drift", "basis", "target_basis"):
        with pytest.raises(RuntimeError, match=rf"blocks\.0\.q.*'{need}'"):
            getattr(inputs, f"require_{need}")()


def test_columns_of_a_run_are_the_engine_s_and_then_the_method_s():
    keys = [column.key for column in layer_columns(["casa", "direct"])]
    assert keys[: len(COLUMNS)] == [column.key for column in COLUMNS]
    assert keys.count("cosine") == 1
    assert {"clusters", "cosine"} <= set(keys)


@pytest.mark.parametrize("shape", [(1536, 1536), (8960, 1536), (1536, 8960)])
@pytest.mark.parametrize("name", NAMES)
def test_estimates_grow_with_the_work(name, shape):
    method, params = registry.resolve(name)
    m, n = shape

    cost = method.cost(shape, 32, params, False)
    assert 0 < cost.weight < method.cost((2 * m, 2 * n), 32, params, False).weight
    assert method.cost(shape, 32, params, True).weight <= cost.weight
    assert sum(method.steps(shape, 32, params, False).values(), base.Cost()).weight == pytest.approx(cost.weight)
    assert method.memory(shape, 32, params) < method.memory(shape, 64, params)
    if not method.needs(params).nothing:
        assert method.memory(shape, 32, params) >= 4 * m * n


@pytest.mark.parametrize("name", registry.names())
def test_what_a_run_keeps_in_the_cache_is_what_the_method_says(name, tmp_path):
    files = pico.write(tmp_path / "pico")
    recipe = Recipe(lora=str(files.lora), source=str(files.source), target=str(files.target), method=name)
    options = RunOptions(cache=str(tmp_path / "cache"), log="off")
    loraport.transfer(
        files.lora, source=files.source, target=files.target, output=tmp_path / "out.safetensors", method=name,
        options=options,
    )  # fmt: skip
    kept = [load_file(file) for file in (tmp_path / "cache").rglob("*.safetensors") if file.parts[-3] != "result"]
    total = sum(tensor.numel() * tensor.element_size() for entry in kept for tensor in entry.values())
    assert total == pytest.approx(make_plan(recipe).cache_bytes, rel=0.02)


@pytest.fixture
def no_trace(monkeypatch):
    """What a test registers is forgotten."""
    monkeypatch.setattr(base, "METHODS", dict(base.METHODS))
    monkeypatch.setattr(base, "PRESETS", dict(base.PRESETS))
    monkeypatch.setattr(registry, "METHODS", base.METHODS)
    monkeypatch.setattr(registry, "PRESETS", base.PRESETS)


def test_the_example_in_the_documents_is_a_method(tmp_path, no_trace):
    code = re.search(r"```python\n(.*?)```", (DOCS / "adding-a-method.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code[1], "adding-a-method.md", "exec"), {"__name__": "example"})
    method, params = registry.resolve("shrink-all")
    output = method.transfer(layer((24, 16)), params)
    assert output.stats.keys() == {column.key for column in method.columns}
    files = pico.write(tmp_path / "pico")
    made = tmp_path / "made.safetensors"
    report = loraport.transfer(
        files.lora, source=files.source, target=files.target, output=made, method="shrink",
        params={"shrink.beta": 1.0}, rank="full", options=RunOptions(cache="off", log="off"),
    )  # fmt: skip
    source, target, given, new = (load_file(f) for f in (files.source, files.target, files.lora, made))
    for entry in report.layers:
        key = f"diffusion_model.{entry.name}"
        update = given[f"{key}.lora_B.weight"] @ given[f"{key}.lora_A.weight"]
        added = new[f"{key}.lora_B.weight"] @ new[f"{key}.lora_A.weight"]
        whole = target[f"{entry.name}.weight"] + added
        assert torch.allclose(whole, source[f"{entry.name}.weight"] + update, atol=1e-4)
        assert "removed" in entry.stats


def test_two_methods_of_one_name_are_an_error(no_trace):
    class Other(type(registry.get("casa"))):
        """Another."""

    with pytest.raises(ValueError, match="casa"):
        base.register(Other)


def test_a_method_that_does_not_say_all_is_an_error(no_trace):
    with pytest.raises(TypeError, match="does not say its version, Params"):
        base.register(type("Mine", (base.TransferMethod,), {"name": "mine", "summary": "", "reference": ""}))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda update: update, "must return a LayerOutput"),
        (lambda update: base.LayerOutput(update.dense(), {}, update), "an Operator as its update"),
        (lambda update: base.LayerOutput(update.T, {}, update), r"made \(32, 64\) of blocks.0.ffn.0, .* \(64, 32\)"),
        (lambda update: base.LayerOutput(update, {"mine": 1.0}, update), "'mine' .* its columns do not declare"),
        (lambda update: base.LayerOutput(update, {"cosine": None}, update), "'cosine' as None .* a number or text"),
        (lambda update: base.LayerOutput(update, {"cosine": math.nan}, update), "'cosine' as nan"),
    ],
)
def test_what_is_wrong_with_a_method_is_said_and_nothing_is_written(made, words, tmp_path, no_trace):
    class Mine(type(registry.get("casa"))):
        """Returns what no method may."""

        name = "mine"

        def transfer(self, inputs, params):
            return made(inputs.update)

    base.register(Mine)
    files = pico.write(tmp_path / "pico")
    with pytest.raises((TypeError, ValueError, NumericalError), match=words):
        loraport.transfer(
            files.lora, source=files.source, target=files.target, output=tmp_path / "made.safetensors", method="mine",
            layers="ffn", options=RunOptions(cache="off", workers=1),
        )  # fmt: skip
    assert not (tmp_path / "made.safetensors").exists()
