"""What must hold for CASA whatever the numbers are. Tiny layers, float64."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.core.truncation import truncated_svd
from loraport.methods.base import LayerInputs
from loraport.methods.casa.method import Casa
from loraport.methods.casa.params import CasaParams

sys.path.insert(0, str(Path(__file__).parent))
import oracle

CASA = Casa()
SHAPES = [(1, 1), (1, 7), (7, 1), (8, 8), (13, 9), (9, 13), (24, 24), (40, 16), (16, 40)]
layers = st.tuples(st.sampled_from(SHAPES), st.integers(0, 5), st.integers(0, 2**16))
params_of_any_kind = st.builds(
    CasaParams,
    restore=st.booleans(),
    arbitrate=st.booleans(),
    tau=st.sampled_from([0.0, 0.05, 0.5, 5.0]),
    q_dom=st.sampled_from([0.0, 0.45, 0.5, 1.0]),
    q_act=st.sampled_from([0.0, 0.5, 0.85, 1.0]),
    head_energy=st.sampled_from([0.3, 0.9, 1.0]),
    density=st.sampled_from(["head", "full"]),
    complete_basis=st.booleans(),
    cut_nonsquare=st.booleans(),
)


def make(shape, rank, seed, *, drift=0.3, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    (m, n), p = shape, min(shape)

    def random(a, b):
        return torch.randn(a, b, generator=g, dtype=torch.float64).to(dtype)

    U, V = torch.linalg.qr(random(m, p)).Q, torch.linalg.qr(random(n, p)).Q
    W = (U * torch.linspace(3, 0.2, p, dtype=dtype)) @ V.T
    D = drift * random(m, n) / math.sqrt(max(m, n))
    update = LowRank(random(m, rank) / math.sqrt(m), random(rank, n))
    return W, D, LayerInputs("layer", update, thin_svd(W), None, DenseOperator(D))


def run(inputs, params):
    return CASA.transfer(inputs, params)


def distance(a, b):
    return float((a - b).norm() / max(float(b.norm()), 1e-30))


def check_by_the_oracle(W, D, inputs, params):
    full = inputs.basis.completed()
    k = inputs.basis.head(params.head_energy) if W.shape[0] == W.shape[1] or params.cut_nonsquare else min(W.shape)
    expected = oracle.casa(
        W,
        D,
        inputs.update.dense(),
        U=full.U,
        S=full.S,
        Vh=full.Vh,
        k=k,
        tau=params.tau,
        q_dom=params.q_dom,
        q_act=params.q_act,
        restore=params.restore,
        arbitrate=params.arbitrate,
        density=params.density,
        everywhere=params.complete_basis,
    )
    output = run(inputs, params)
    scale = float(D.norm() + inputs.update.norm())
    assert float((output.update.dense() - expected.delta).norm()) <= 1e-9 * scale
    assert abs(output.update.norm() - float(expected.delta.norm())) <= 1e-7 * scale
    assert output.stats["dominant_share"] == pytest.approx(float(expected.dominant.double().mean()), abs=1e-12)
    assert output.stats["arbitrated_share"] == pytest.approx(float(expected.hit.double().mean()), abs=1e-12)
    if params.restore:
        coordinates = full.U.T @ D @ full.Vh.T
        undone = float(coordinates[~expected.dominant].square().sum() / D.square().sum())
        assert output.stats["drift_undone"] == pytest.approx(undone, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(layers, params_of_any_kind)
def test_equals_the_dense_oracle(layer, params):
    check_by_the_oracle(*make(*layer), params)


WEIGHTS = {
    "of low rank": lambda W: W[:, :1] @ W[:1] + W[:, -1:] @ W[-1:],
    "repeated singular values": lambda W: 2 * thin_svd(W).U @ thin_svd(W).Vh,
    "an empty row": lambda W: W * (torch.arange(len(W)) != len(W) // 2)[:, None],
    "small": lambda W: 1e-4 * W,
}
DRIFTS = {
    "in one row": lambda D: D * (torch.arange(len(D)) == len(D) // 2)[:, None],
    "of rank one": lambda D: D[:, :1] @ D[:1],
    "enormous": lambda D: 1e6 * D,
    "tiny": lambda D: 1e-7 * D,
}


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.sampled_from(SHAPES), st.sampled_from([1, 4, 30]), st.integers(0, 2**16)),
    params_of_any_kind,
    st.sampled_from(sorted(WEIGHTS)),
    st.sampled_from(sorted(DRIFTS)),
    st.sampled_from([1.0, -1.0, 1e-6, 1e6]),
)
def test_equals_the_dense_oracle_on_layers_that_no_model_has(layer, params, weight, drift, strength):
    W, D, inputs = make(*layer)
    W, D = WEIGHTS[weight](W), DRIFTS[drift](D)
    if float(W.norm()) == 0.0 or float(D.norm()) == 0.0:
        return
    update = inputs.update.scaled(strength * float(W.norm()))
    update.A[len(update.A) // 2] *= len(update.A) == 1  # a direction of nothing, if there are several
    check_by_the_oracle(W, D, LayerInputs("layer", update, thin_svd(W), None, DenseOperator(D)), params)


@settings(deadline=None, max_examples=25)
@given(layers, params_of_any_kind)
def test_products_agree_with_the_matrix(layer, params):
    _, _, inputs = make(*layer)
    op = run(inputs, params).update
    m, n = op.shape
    g = torch.Generator().manual_seed(1)
    X = torch.randn(n, 3, generator=g, dtype=torch.float64)
    Y = torch.randn(m, 3, generator=g, dtype=torch.float64)
    dense = op.dense()
    scale = float(dense.norm()) + 1e-12
    assert (op.shape, dense.shape) == (inputs.update.shape, torch.Size(inputs.update.shape))
    assert float((op.apply(X) - dense @ X).abs().max()) < 1e-9 * scale
    assert float((op.apply_t(Y) - dense.T @ Y).abs().max()) < 1e-9 * scale
    assert float((op.T.apply(Y) - dense.T @ Y).abs().max()) < 1e-9 * scale
    assert float((op.T.dense() - dense.T).abs().max()) < 1e-9 * scale


@settings(deadline=None, max_examples=30)
@given(layers, params_of_any_kind)
def test_no_drift_gives_back_the_update(layer, params):
    _, _, inputs = make(*layer, drift=0.0)
    output = run(inputs, params)
    assert output.update is inputs.update or torch.equal(output.update.dense(), inputs.update.dense())
    nothing = replace(inputs, drift=LowRank.zeros(*inputs.update.shape, dtype=torch.float64))
    assert torch.equal(run(nothing, params).update.dense(), inputs.update.dense())


@settings(deadline=None, max_examples=30)
@given(layers, params_of_any_kind, st.integers(0, 2**16))
def test_signs_of_singular_pairs_and_the_split_of_the_update_do_not_matter(layer, params, seed):
    _, _, inputs = make(*layer)
    expected = run(inputs, params).update.dense()
    basis, update = inputs.basis, inputs.update
    g = torch.Generator().manual_seed(seed)
    sign = torch.where(torch.rand(basis.S.numel(), generator=g) < 0.5, -1.0, 1.0).double()
    if not params.complete_basis:  # the completion of a flipped basis is another one
        flipped = SpectralBasis(basis.U * sign, basis.S, sign[:, None] * basis.Vh)
        assert distance(run(replace(inputs, basis=flipped), params).update.dense(), expected) < 1e-8
    for c in (-3.7, 0.01):
        split = replace(inputs, update=LowRank(update.B * c, update.A / c))
        assert distance(run(split, params).update.dense(), expected) < 1e-8


@settings(deadline=None, max_examples=30)
@given(layers, st.sampled_from([0.1, 0.5, 0.9]))
def test_restore_only_is_the_closed_form(layer, q_dom):
    W, D, inputs = make(*layer)
    params = CasaParams(arbitrate=False, q_dom=q_dom)
    output = run(inputs, params)
    full = inputs.basis.completed()
    k = inputs.basis.head(0.9)
    dense = oracle.casa(
        W, D, inputs.update.dense(), U=full.U, S=full.S, Vh=full.Vh, k=k, tau=0.5, q_dom=q_dom, q_act=0.85
    )
    rows, cols = dense.dominant.all(dim=1), dense.dominant.all(dim=0)
    U, V = full.U[:, rows], full.Vh[cols].T
    m, n = W.shape
    left = torch.eye(m, dtype=torch.float64) - U @ U.T
    right = torch.eye(n, dtype=torch.float64) - V @ V.T
    expected = inputs.update.dense() - left @ D @ right
    assert float((output.update.dense() - expected).norm()) < 1e-9 * float(D.norm() + inputs.update.norm())


@settings(deadline=None, max_examples=30)
@given(layers, params_of_any_kind, st.integers(0, 4))
def test_a_drift_in_factors_equals_the_dense_route(layer, params, rank):
    _, _, inputs = make(*layer)
    m, n = inputs.update.shape
    g = torch.Generator().manual_seed(rank)
    drift = LowRank(
        torch.randn(m, rank, generator=g, dtype=torch.float64), torch.randn(rank, n, generator=g, dtype=torch.float64)
    )
    factored = run(replace(inputs, drift=drift), params)
    dense = run(replace(inputs, drift=DenseOperator(drift.dense())), params)
    scale = drift.norm() + inputs.update.norm() + 1e-12
    assert float((factored.update.dense() - dense.update.dense()).norm()) < 1e-7 * scale
    if not params.arbitrate:
        assert isinstance(factored.update, LowRank)
        assert factored.update.rank <= inputs.update.rank + rank


@settings(deadline=None, max_examples=30)
@given(layers, params_of_any_kind)
def test_what_was_prepared_for_one_update_serves_another(layer, params):
    _, _, inputs = make(*layer)
    shape, rank, seed = layer
    _, _, other = make(shape, rank, seed + 1)
    kept = CASA.prepare(replace(inputs, update=other.update), params)
    reads = CASA.reads_drift(inputs.update.shape, params)
    again = replace(inputs, prepared=kept, drift=inputs.drift if reads else None)
    assert torch.equal(run(again, params).update.dense(), run(inputs, params).update.dense())


@settings(deadline=None, max_examples=25)
@given(layers, params_of_any_kind)
def test_a_transposed_layer_gives_the_transposed_update(layer, params):
    _, _, inputs = make(*layer)
    flipped = LayerInputs("layer", inputs.update.T, inputs.basis.T, None, inputs.drift.T)
    expected = run(inputs, params).update.dense()
    if params.complete_basis and expected.shape[0] != expected.shape[1]:
        return  # two completions of a null space
    assert distance(run(flipped, params).update.dense().T, expected) < 1e-9


@settings(deadline=None, max_examples=25)
@given(layers, params_of_any_kind)
def test_full_rank_output_is_the_update_itself(layer, params):
    _, _, inputs = make(*layer)
    output = run(inputs, params)
    small = truncated_svd(output.update, rank="full", start=output.start)
    assert small.rank == min(output.update.shape)
    assert distance(small.update.dense(), output.update.dense()) < 1e-7 or output.update.norm() < 1e-12
    assert small.energy_kept == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
def test_repeated_singular_values_and_equal_drift_are_no_trouble(shape):
    _, D, inputs = make(shape, 3, 0)
    basis = replace(inputs.basis, S=torch.ones_like(inputs.basis.S))
    for drift in (D, torch.ones_like(D)):
        output = run(replace(inputs, basis=basis, drift=DenseOperator(drift)), CasaParams())
        assert bool(torch.isfinite(output.update.dense()).all())


@pytest.mark.parametrize("shape", [(64, 64), (96, 48), (48, 96)])
def test_float32_is_close_to_float64(shape):
    _, D, inputs = make(shape, 4, 5)
    exact = run(inputs, CasaParams())
    single = LayerInputs(
        "layer",
        inputs.update.to(torch.float32),
        SpectralBasis(inputs.basis.U.float(), inputs.basis.S.float(), inputs.basis.Vh.float()),
        None,
        DenseOperator(D.float()),
    )
    output = run(single, CasaParams())
    assert output.update.dtype == torch.float32
    assert distance(output.update.dense().double(), exact.update.dense()) < 1e-4
    assert output.update.norm() == pytest.approx(exact.update.norm(), rel=1e-5)
    assert set(output.stats) == set(exact.stats)


@pytest.mark.parametrize("drift", [0.02, 0.5])
@pytest.mark.parametrize("shape", [(256, 256), (400, 160), (160, 400)])
def test_the_low_rank_result_is_nearly_the_best_one(shape, drift):
    _, D, inputs = make(shape, 8, 7, drift=drift)
    single = LayerInputs(
        "layer",
        inputs.update.to(torch.float32),
        SpectralBasis(inputs.basis.U.float(), inputs.basis.S.float(), inputs.basis.Vh.float()),
        None,
        DenseOperator(D.float()),
    )
    output = run(single, CasaParams())
    exact = output.update.dense().double()
    energies = torch.linalg.svdvals(exact).square()
    for rank in (8, 24):
        small = truncated_svd(output.update, rank=rank, start=output.start)
        best = float(energies[:rank].sum() / energies.sum())
        kept = 1 - float((exact - small.update.to(torch.float64).dense()).norm() ** 2 / exact.norm() ** 2)
        assert small.energy_kept == pytest.approx(kept, abs=1e-5)
        assert kept >= 0.999 * best


@pytest.mark.parametrize("shape", [(96, 96), (160, 64), (64, 160)])
def test_a_distillation_lora_in_float32_equals_the_dense_route(shape):
    _, _, inputs = make(shape, 4, 11)
    g = torch.Generator().manual_seed(12)
    drift = LowRank(torch.randn(shape[0], 8, generator=g) * 0.05, torch.randn(8, shape[1], generator=g) * 0.05)
    basis = SpectralBasis(inputs.basis.U.float(), inputs.basis.S.float(), inputs.basis.Vh.float())
    update = inputs.update.to(torch.float32)
    for arbitrate in (True, False):
        params = CasaParams(arbitrate=arbitrate)
        factored = run(LayerInputs("layer", update, basis, None, drift), params)
        dense = run(LayerInputs("layer", update, basis, None, DenseOperator(drift.dense())), params)
        assert distance(factored.update.dense(), dense.update.dense()) < 1e-4
        small = truncated_svd(factored.update, rank=12, start=factored.start)
        if not arbitrate:
            assert small.energy_kept == pytest.approx(1.0, abs=1e-6)
            assert distance(small.update.dense(), dense.update.dense()) < 1e-4


@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize("shape", [(40, 16), (16, 40)])
def test_the_gram_matrix_of_a_rectangular_update_is_that_of_the_matrix(shape, restore):
    new = run(make(shape, 5, 3)[2], CasaParams(restore=restore)).update
    core = (new.T if shape[0] < shape[1] else new).core
    M, X = core.dense(), torch.eye(16, dtype=torch.float64)
    for found in (core.gram_matrix(), core.gram(X)):
        assert distance(found.tril(), (M.T @ M).tril()) < 1e-12


def test_each_step_of_a_search_multiplies_small_matrices_only():
    """What a LoRA has outside of the thin basis of a tall layer is multiplied with itself once, whatever its rank."""
    core = run(make((40, 16), 5, 3)[2], CasaParams()).update.core
    X = torch.eye(16, dtype=torch.float64)[:, :2]
    counts = []
    for _ in range(3):
        with FlopCounterMode(display=False) as counter:
            core.gram(X)
        counts.append(counter.get_total_flops())
    assert counts[0] - counts[1] == 2 * 40 * 5 * 5
    assert counts[1] == counts[2]
