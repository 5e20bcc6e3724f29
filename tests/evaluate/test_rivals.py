"""Baselines and controls: what each of them must do on a layer where the answer is known."""

from dataclasses import replace

import pytest
import torch
from torch import Generator

from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.methods import registry
from loraport.methods.base import LayerInputs

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


def _inputs(shape: tuple[int, int], drift: float, factored: bool = False) -> tuple[LayerInputs, torch.Tensor]:
    m, n = shape
    generator = Generator().manual_seed(m * 31 + n)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    W = draw(m, n)
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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", RIVALS)
def test_without_drift_the_update_comes_back(name, shape):
    inputs, _ = _inputs(shape, 0.0)
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


def test_orthogonal_shift_is_orthogonal():
    inputs, D = _inputs((12, 20), 0.3)
    assert float((_new("orthogonal-shift", inputs) * D).sum()) == pytest.approx(0, abs=1e-9)


def test_prolora_with_everything_in_the_main_subspace_is_the_update():
    inputs, _ = _inputs((12, 12), 0.3)
    for mixed in (False, True):
        new = _new("prolora", inputs, energy=1.0, mixed=mixed)
        torch.testing.assert_close(new, inputs.update.dense(), atol=1e-8, rtol=0)


def test_prolora_without_drift_loses_the_mixed_terms_only():
    inputs, _ = _inputs((12, 12), 0.0)
    torch.testing.assert_close(_new("prolora", inputs, mixed=True), inputs.update.dense(), atol=1e-8, rtol=0)
    assert _new("prolora", inputs).norm() < 0.98 * inputs.update.norm()


def test_cross_lora_projects():
    inputs, _ = _inputs((12, 12), 0.3)
    new = _new("cross-lora", inputs, energy=0.5)
    assert new.norm() < inputs.update.norm()
    torch.testing.assert_close(_new("cross-lora", inputs, energy=1.0), inputs.update.dense(), atol=1e-8, rtol=0)


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
