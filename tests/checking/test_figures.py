"""Figures by another route: dense matrices and the library's decomposition."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import loraport
import pico
from loraport.analysis import nulls, routing_maps
from loraport.analysis.coordinates import Coordinates
from loraport.checking import figures, look, sample, spectra
from loraport.checking.thresholds import thresholds
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.engine import kinship, rounding
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe
from loraport.methods.casa.routing import DriftRouting


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> pico.Pico:
    return pico.write(tmp_path_factory.mktemp("pico"))


@pytest.fixture(scope="module")
def found(files: pico.Pico) -> loraport.CheckResult:
    return loraport.check(files.lora, source=files.source, target=files.target, deep=True)


def dense(files: pico.Pico, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source, drift and update of a layer in float64, by the files' keys."""
    source, target, lora = (load_file(path) for path in (files.source, files.target, files.lora))
    A, B = (lora[f"diffusion_model.{name}.lora_{part}.weight"].double() for part in "AB")
    W = source[f"{name}.weight"].double()
    return W, target[f"{name}.weight"].double() - W, B @ A


def rigidity(W: torch.Tensor, update: torch.Tensor) -> float:
    S = torch.linalg.svdvals(W)
    return float((torch.linalg.svdvals(W + update) - S).norm() / S.norm())


def head(W: torch.Tensor, update: torch.Tensor) -> float:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    k = int((S.square().cumsum(0) < 0.9 * S.square().sum()).sum()) + 1
    h = math.ceil(k / 10)
    U, V = (torch.linalg.qr(torch.cat([X, torch.eye(len(X), dtype=X.dtype)], 1)).Q for X in (U, Vh.T))
    C = (U.T @ update @ V).square()  # in bases of the whole spaces, of which the first columns are those of W
    C_head = C[:h].sum() + C[:, :h].sum() - C[:h, :h].sum()
    m, n = W.shape
    return float(C_head / C.sum()) / (1 - (1 - h / m) * (1 - h / n))


def common(drift: torch.Tensor, update: torch.Tensor) -> float:
    U, S, Vh = torch.linalg.svd(update)
    r = int((1e-6 * S[0] < S).sum())
    return float((U[:, :r].T @ drift @ Vh[:r].T).square().mean() / drift.square().mean())


def directions(drift: torch.Tensor, share: float) -> int:
    held = torch.linalg.svdvals(drift).square().cumsum(0)
    return 1 + int((held < share * held[-1]).sum())


@pytest.mark.parametrize("name", ["blocks.0.self_attn.q", "blocks.1.ffn.0", "blocks.1.ffn.2"])
def test_every_figure_of_a_layer(files: pico.Pico, found: loraport.CheckResult, name: str):
    W, drift, update = dense(files, name)
    (layer,) = (each for each in found.layers if each.name == name)
    product, chance = float((update * drift).sum()), float(update.norm() * drift.norm()) / math.sqrt(W.numel())
    expected = {
        "drift": float(drift.norm() / W.norm()),
        "norm_ratio": float((W + drift).norm() / W.norm()),
        "update": float(update.norm() / W.norm()),
        "update_over_drift": float(update.norm() / drift.norm()),
        "overlap": product / float(update.norm() * drift.norm()),
        "dose": product / float(update.norm() ** 2),
        "rigidity_drift": rigidity(W, drift),
        "rigidity_lora": rigidity(W, update),
        "head_drift": head(W, drift),
        "head_lora": head(W, update),
        "common": common(drift, update),
        "directions_drift": directions(drift, 0.99 * (1 - layer.figures["rounding"])) / min(W.shape),
    }
    assert {key: layer.figures[key] for key in expected} == pytest.approx(expected, rel=2e-4, abs=1e-6)
    sigma = layer.nulls["dose"]["one standard deviation of unrelated ones"]
    assert sigma == pytest.approx(chance / float(update.norm() ** 2), rel=1e-4)


def test_what_went_in_is_told_with_sizes(files: pico.Pico, found: loraport.CheckResult):
    told = {each.role: (Path(each.file), each.bytes) for each in found.inputs}
    named = {"LoRA": files.lora, "source": files.source, "target": files.target}
    assert told == {role: (path, path.stat().st_size) for role, path in named.items()}


@pytest.mark.parametrize("cache", [None, "auto", "on"])
def test_digests_that_a_transfer_left_in_the_cache_are_told(files: pico.Pico, cache: str | None):
    pair = {"source": files.source, "target": files.target}
    made = loraport.transfer(files.lora, **pair)
    found = loraport.check(files.lora, **pair, options=RunOptions(cache=cache))
    assert {each.role: each.digest for each in found.inputs} == {each.role: each.digest for each in made.inputs}
    other = loraport.check(files.lora, **pair, options=RunOptions(cache=cache, verify_inputs=True))
    assert [each.role for each in other.inputs if each.digest is not None] == ["LoRA"]  # which is read here


def test_what_the_method_changes_is_what_a_transfer_writes(files: pico.Pico, found: loraport.CheckResult):
    made = files.folder / "full.safetensors"
    loraport.transfer(files.lora, source=files.source, target=files.target, output=made, rank="full", dtype="float32")
    new, name = load_file(made), "blocks.0.self_attn.q"
    written = new[f"diffusion_model.{name}.lora_B.weight"] @ new[f"diffusion_model.{name}.lora_A.weight"]
    _, _, update = dense(files, name)
    (layer,) = (each for each in found.layers if each.name == name)
    along, size = float((written * update).sum()), float(update.norm())
    assert layer.figures["change"] == pytest.approx(float((written - update).norm()) / size, rel=1e-3)
    assert layer.figures["method_dose"] == pytest.approx(along / size**2, rel=1e-3)
    assert layer.figures["method_cosine"] == pytest.approx(along / size / float(written.norm()), rel=1e-3)


def test_figures_of_all_layers_are_ratios_of_sums(files: pico.Pico, found: loraport.CheckResult):
    rows = [dense(files, layer.name) for layer in found.layers]
    product = sum(float((update * drift).sum()) for _, drift, update in rows)
    size = sum(float(update.norm() ** 2) for _, _, update in rows)
    assert found.figure("dose").value == pytest.approx(product / size, rel=1e-3)
    assert found.figure("dose").layers == len(rows) == len(pico.LAYERS)


def test_a_gaussian_drift_looks_like_its_null_models(found: loraport.CheckResult):
    """The pico target is its source and a Gaussian drift."""
    figure = found.figure("rigidity_drift")
    assert figure.value == pytest.approx(figure.nulls[0].value, rel=0.2)
    assert found.figure("head_drift").value == pytest.approx(1.0, abs=0.15)
    assert abs(found.figure("overlap").value) < 4 * found.figure("overlap").nulls[0].value


@pytest.mark.parametrize("shape", [(30, 20), (20, 20), (20, 30)])
def test_the_head_of_check_is_that_of_analyze(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(1)
    W, D = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    basis = thin_svd(W)
    mine = spectra.energy_in_first(DenseOperator(D), basis, 3) / float(D.square().sum()) / routing_maps.area(shape, 3)
    upright, D = (basis, D) if shape[0] >= shape[1] else (basis.T, D.T)
    update = Coordinates.of_routing(DriftRouting.of(upright, DenseOperator(D), len(basis.S), "head"))
    assert routing_maps.concentration(update.C, update.rest_energy, max(shape), 3) == pytest.approx(mine)


def test_a_whole_matrix_is_not_decomposed_for_the_directions_that_it_has_all_of():
    W, D, X = torch.randn(3, 300, 280, generator=torch.Generator().manual_seed(1)).unbind()
    whole, thin = (
        look.of_lora(update, DenseOperator(D), float(W.norm()), float(D.norm()))
        for update in (LowRank.from_dense(X), LowRank(X[:, :4], W[:4]))
    )
    assert figures.values(thin).keys() - figures.values(whole).keys() == {"common"}
    assert figures.values(whole)["overlap"] == pytest.approx(float((X * D).sum() / X.norm() / D.norm()), rel=1e-3)


@pytest.mark.parametrize("shape", [(120, 60), (60, 120)])
def test_the_rounding_of_check_is_that_of_analyze(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(1)
    W, D = (torch.randn(shape, generator=generator) for _ in range(2))
    basis, size = thin_svd(W), float(D.norm())
    sums = {"drift2": size**2, "noise2": 0.1 * size**2}
    mine = look._spectrum_of_drift(W, W + D, DenseOperator(D), basis, sums, "BF16", generator)
    upright, noise = basis if shape[0] >= shape[1] else basis.T, math.sqrt(0.1) * size
    theirs = nulls.rounding(upright, "BF16", noise, basis.head(0.9), generator)
    assert math.sqrt(mine["stretch_round2"] / mine["S2"]) == pytest.approx(theirs.rigidity, rel=0.1)
    assert mine["head_round2"] / mine["head_round_even2"] == pytest.approx(theirs.concentration, rel=0.1)


def test_a_sample_has_every_type_and_every_depth(tmp_path: Path):
    made = pico.write(tmp_path)
    plan = make_plan(Recipe(lora=str(made.lora), source=str(made.source), target=str(made.target)))
    jobs = [
        replace(job, name=f"blocks.{block}{job.name.removeprefix('blocks.0')}")
        for block in range(40)
        for job in plan.jobs[: len(pico.LAYERS) // 2]
    ]
    chosen = sample.choose(jobs, deep=False)
    assert len(chosen) == sample.MOST_READ
    assert [each.job.name for each in chosen] == [each.job.name for each in sample.choose(jobs, deep=False)]
    assert {each.kind for each in chosen} == {sample.kind_of_layer(name) for name in pico.LAYERS}
    depths = sorted(each.depth for each in chosen)
    assert depths[0] < 0.25
    assert depths[-1] > 0.75
    assert max(b - a for a, b in pairwise(depths)) < 0.25
    assert len(sample.choose(jobs, deep=True)) == len(jobs)


def test_layers_too_large_to_decompose_are_read_all_the_same():
    assert sample.decomposition_cost((5120, 5120)) > sample.DECOMPOSE_BUDGET
    assert sample.decomposition_cost((1536, 1536)) < sample.DECOMPOSE_BUDGET / 3


def test_every_threshold_says_what_it_was_measured_on():
    for name, each in thresholds().items():
        assert each.meaning, name
        assert "PENDING" not in each.measured, name
    assert thresholds()["unrelated"].value == kinship.UNRELATED
    assert thresholds()["rounding"].value == rounding.MOSTLY


def test_sums_of_layers_add_up():
    assert figures.added_up([{"a": 1.0, "b": 2.0}, {"a": 3.0}]) == {"a": 4.0, "b": 2.0}
