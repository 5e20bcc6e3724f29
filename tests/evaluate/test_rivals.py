"""Baselines and controls: what each of them must do on a layer where the answer is known."""

from dataclasses import replace

import pytest
import torch
from scipy.linalg import polar
from torch import Generator

from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.methods import registry
from loraport.methods.base import LayerInputs
from loraport.methods.baselines.cluster_transport_steps import spectral_clusters

RIVALS = (
    "identity",
    "restore-only",
    "arbitrate-only",
    "full-restore",
    "random-mask",
    "reversed-mask",
    "uniform-shrink",
    "orthogonal-shift",
    "cluster-transport",
    "matched-gain",
)
SHAPES = ((12, 12), (20, 12), (12, 20))


def _inputs(
    shape: tuple[int, int], drift: float, factored: bool = False, weight: float = 1.0
) -> tuple[LayerInputs, torch.Tensor]:
    m, n = shape
    generator = Generator().manual_seed(m * 31 + n)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    W = weight * draw(m, n)
    D = drift * draw(m, 3) @ draw(3, n) if factored else drift * draw(m, n)
    op = LowRank.from_dense(D).truncated(3) if factored else DenseOperator(D)
    return LayerInputs(
        name="layer",
        update=LowRank(draw(m, 2), draw(2, n)),
        basis=thin_svd(W),
        target_basis=thin_svd(W + D),
        drift=op,
        source=DenseOperator(W),
        target=DenseOperator(W + D),
    ), D


def _new(name: str, inputs: LayerInputs, **settings: float | bool) -> torch.Tensor:
    method, params = registry.resolve(name, settings)
    return method.transfer(inputs, params).update.dense()


@pytest.mark.parametrize("weight", [1.0, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", RIVALS)
def test_without_drift_the_update_comes_back(name, shape, weight):
    inputs, _ = _inputs(shape, 0.0, weight=weight)
    method, params = registry.resolve(name)
    stats = method.transfer(inputs, params).stats
    assert stats.get("drift_undone") == stats.get("drift_undone_by_casa", stats.get("drift_undone"))
    assert (stats.get("cosine", 1), stats.get("norm_ratio", 1)) == pytest.approx((1, 1))
    assert stats.get("cosine_to_drift", 0) == 0
    torch.testing.assert_close(_new(name, inputs), inputs.update.dense(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factored", [False, True])
def test_full_restore_leaves_the_source_and_the_lora(shape, factored):
    inputs, D = _inputs(shape, 0.3, factored)
    torch.testing.assert_close(D + _new("full-restore", inputs), inputs.update.dense(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factored", [False, True])
def test_revert_is_restoration_less_the_lora(shape, factored):
    inputs, _ = _inputs(shape, 0.3, factored)
    both = _new("restore-only", inputs) - inputs.update.dense()
    torch.testing.assert_close(_new("revert", inputs), both, atol=1e-8, rtol=0)


@pytest.mark.parametrize("mask", ["random-mask", "reversed-mask"])
def test_masks_undo_as_much_drift_as_casa(mask):
    inputs, _ = _inputs((60, 60), 0.3)
    method, params = registry.resolve(mask)
    stats = method.transfer(inputs, params).stats
    assert stats["drift_undone"] == pytest.approx(stats["drift_undone_by_casa"], abs=0.05)
    assert 0 < stats["drift_undone"] < 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", ["random-mask", "reversed-mask"])
def test_masks_spare_as_many_rows_as_columns_of_the_routing_matrix(mask, shape):
    inputs, D = _inputs(shape, 0.3)
    basis = inputs.require_basis()
    undone = inputs.update.dense() - _new(mask, inputs)
    energies = (basis.U.T @ D @ basis.Vh.T).square()
    spared = []
    for side, left in enumerate((basis.U.T @ undone, basis.Vh @ undone.T)):
        spared.append(left.norm(dim=1) < 1e-9)
        density = energies.sum(1 - side)
        weakest = density[spared[-1]].max() < density[~spared[-1]].min()
        assert weakest == (mask == "reversed-mask")
    assert 0 < spared[0].sum() == spared[1].sum() < 12
    U, V = basis.U[:, spared[0]], basis.Vh[spared[1]].T
    rest = D - U @ U.T @ D
    torch.testing.assert_close(undone, rest - rest @ V @ V.T, atol=1e-9, rtol=0)


def test_a_random_mask_is_drawn_for_each_layer_and_seed():
    inputs, _ = _inputs((60, 60), 0.3)
    first, again = (_new("random-mask", inputs, seed=1) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, _new("random-mask", inputs, seed=2))
    assert not torch.equal(first, _new("random-mask", replace(inputs, name="other"), seed=1))


@pytest.mark.parametrize("factored", [False, True])
def test_drift_is_taken_out_by_the_share_that_was_asked_for(factored):
    inputs, D = _inputs((12, 20), 0.3, factored)
    update = inputs.update.dense()
    new = _new("uniform-shrink", inputs, share=0.3, strength=1.5)
    torch.testing.assert_close(new, 1.5 * update - 0.3 * D, atol=1e-8, rtol=0)
    torch.testing.assert_close(_new("uniform-shrink", inputs, share=0.0), update, atol=1e-8, rtol=0)
    for beta in (1.0, 0.25):
        parallel = (update * D).sum() / D.square().sum() * D
        new = _new("orthogonal-shift", inputs, beta=beta)
        torch.testing.assert_close(new, update - beta * parallel, atol=1e-8, rtol=0)
        method, params = registry.resolve("orthogonal-shift", {"beta": beta})
        cosine = float((new * update).sum() / new.norm() / update.norm())
        assert method.transfer(inputs, params).stats["cosine"] == pytest.approx(cosine)


def test_an_update_along_the_drift_leaves_nothing_whatever_rounding_makes_of_it():
    method, params = registry.resolve("orthogonal-shift")
    for n in range(2, 40):
        inputs, _ = _inputs((n, n), 0.3)
        made = method.transfer(replace(inputs, drift=inputs.update.scaled(-0.7)), params)
        assert made.update.dense().norm() < 1e-9 * inputs.update.norm()
        assert made.stats["cosine_to_drift"] == pytest.approx(-1)
        assert isinstance(made.stats["cosine"], float)


def test_prolora_with_everything_in_the_main_subspace_is_the_update():
    inputs, _ = _inputs((12, 12), 0.3)
    for mixed in (False, True):
        new = _new("prolora", inputs, energy=1.0, mixed=mixed)
        torch.testing.assert_close(new, inputs.update.dense(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_prolora_by_projections(shape):
    inputs, _ = _inputs(shape, 0.3)
    source, target = inputs.require_basis(), inputs.require_target_basis()
    method, params = registry.resolve("prolora", {"energy": 0.5})
    k = method.transfer(inputs, params).stats["main_subspace"]
    assert source.S[: k - 1].square().sum() < 0.5 * source.S.square().sum() <= source.S[:k].square().sum()

    def moved(X, of_source, of_target):  # into the main subspace, and the rest into the rest
        s, t = of_source @ of_source.T, of_target @ of_target.T
        one = torch.eye(len(X), dtype=X.dtype)
        return t @ s @ X, (one - t) @ (one - s) @ X

    update = inputs.update.dense()
    main, rest = moved(update, source.U[:, :k], target.U[:, :k])
    right = source.Vh[:k].T, target.Vh[:k].T
    four = [part.T for rows in (main, rest) for part in moved(rows.T, *right)]
    torch.testing.assert_close(_new("prolora", inputs, energy=0.5), four[0] + four[3], atol=1e-9, rtol=0)
    torch.testing.assert_close(_new("prolora", inputs, energy=0.5, mixed=True), sum(four), atol=1e-9, rtol=0)


def test_prolora_without_drift_loses_the_mixed_terms_only():
    inputs, _ = _inputs((12, 12), 0.0)
    torch.testing.assert_close(_new("prolora", inputs, mixed=True), inputs.update.dense(), atol=1e-8, rtol=0)
    assert _new("prolora", inputs).norm() < 0.98 * inputs.update.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_lora_projects(shape):
    inputs, _ = _inputs(shape, 0.3)
    W, update = inputs.target.dense(), inputs.update.dense()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    for energy in (0.5, 1.0):
        k = int((S.square().cumsum(0) < energy * S.square().sum() * (1 - 1e-12)).sum()) + 1
        projected = U[:, :k] @ U[:, :k].T @ update @ Vh[:k].T @ Vh[:k]
        torch.testing.assert_close(_new("cross-lora", inputs, energy=energy), projected, atol=1e-8, rtol=0)


@pytest.mark.parametrize(("gap", "largest", "labels"), [(0.25, 9, "00012"), (0.25, 2, "00123"), (0.24, 9, "01123")])
def test_neighbours_within_the_gap_are_one_cluster(gap, largest, labels):
    S = torch.tensor([4.0, 3.0, 3.0, 1.0, 0.0])  # 3 is less than 4 by a quarter of 4
    assert "".join(map(str, spectral_clusters(S, gap, largest).tolist())) == labels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("largest", [1, 3, 64])
def test_cluster_transport_by_polar_factors(shape, largest):
    inputs, _ = _inputs(shape, 0.3)
    source, target = inputs.require_basis(), inputs.require_target_basis()
    clusters: list[list[int]] = []
    for i, value in enumerate(source.S.tolist()):
        old = clusters[-1] if clusters else []
        if old and len(old) < largest and source.S[old[-1]] - value <= 0.2 * source.S[old[-1]]:
            old.append(i)
        else:
            clusters.append([i])

    def turn(s, t):
        one = torch.eye(len(s), dtype=s.dtype)
        outside = (one - t @ t.T) @ (one - s @ s.T)
        return outside + sum(t[:, c] @ torch.from_numpy(polar(t[:, c].T @ s[:, c])[0]) @ s[:, c].T for c in clusters)

    expected = turn(source.U, target.U) @ inputs.update.dense() @ turn(source.Vh.T, target.Vh.T).T
    method, params = registry.resolve("cluster-transport", {"gap": 0.2, "largest": largest})
    made = method.transfer(inputs, params)
    assert made.stats["clusters"] == len(clusters)
    torch.testing.assert_close(made.update.dense(), expected, atol=1e-8, rtol=0)


def test_cluster_transport_keeps_the_norm_and_one_cluster_is_direct_reuse():
    inputs, _ = _inputs((12, 12), 0.3)
    assert _new("cluster-transport", inputs).norm() == pytest.approx(float(inputs.update.norm()))
    whole = _new("cluster-transport", inputs, gap=1e9)
    torch.testing.assert_close(whole, inputs.update.dense(), atol=1e-8, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factored", [False, True])
def test_matched_gain_is_the_ratio_of_norms_and_what_the_drift_cancels(shape, factored):
    inputs, D = _inputs(shape, 0.3, factored)
    update, W = inputs.update.dense(), inputs.source.dense()
    gain = float(((W + D).norm() / W.norm()) ** 2)
    torch.testing.assert_close(_new("matched-gain", inputs, give_back=0.0), gain * update, atol=1e-8, rtol=0)
    U, _, Vh = (part[..., :2] if i < 2 else part[:2] for i, part in enumerate(torch.linalg.svd(update, False)))
    lost = (-(U.T @ D @ Vh.T).diagonal()).clamp_min(0)
    expected = update + (U * lost) @ Vh
    torch.testing.assert_close(_new("matched-gain", inputs, power=0.0), expected, atol=1e-8, rtol=0)


def test_matched_gain_gives_back_exactly_what_a_parallel_drift_cancels():
    inputs, _ = _inputs((12, 12), 0.3)
    opposed = replace(inputs, drift=inputs.update.scaled(-0.4))
    method, params = registry.resolve("matched-gain", {"power": 0.0})
    new = method.transfer(opposed, params)
    torch.testing.assert_close(new.update.dense(), 1.4 * inputs.update.dense(), atol=1e-8, rtol=0)
    assert new.stats["given_back"] == pytest.approx(0.4)


@pytest.mark.parametrize("name", [name for name in registry.names() if registry.get(name).keeps_rank])
def test_a_method_that_keeps_the_rank_needs_no_more_and_loses_nothing_in_it(name):
    inputs, _ = _inputs((20, 12), 0.3)
    method, params = registry.resolve(name)
    new = method.transfer(inputs, params).update
    assert torch.linalg.matrix_rank(new.dense()) <= inputs.update.rank
