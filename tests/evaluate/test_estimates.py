"""Metrics against cases worked out by hand."""

import math

import pytest
import torch
from torch import Generator

from loraport.core.bootstrap import Bootstrap, Estimate
from loraport.evaluate.estimates import Reference, frechet, frechet_estimate, gain_ratio


def _estimate(value: float, error: float = 0.0) -> Estimate:
    noise = torch.randn(400, generator=Generator().manual_seed(int(abs(value) * 1000)), dtype=torch.float64)
    return Estimate(value, value + error * noise)


def test_gain_ratio_by_hand():
    A, B, C = _estimate(0.1), _estimate(0.9), _estimate(0.2)
    for score, expected in ((0.6, 0.5), (0.2, 0.0), (0.0, -0.25), (1.0, 1.0)):
        ratio = gain_ratio(A, B, C, _estimate(score))
        assert ratio is not None
        assert ratio.value == pytest.approx(expected)
        assert ratio.error == pytest.approx(0, abs=1e-12)


def test_gain_ratio_of_a_lora_that_lowers_its_score():
    ratio = gain_ratio(_estimate(0.9), _estimate(0.1), _estimate(0.8), _estimate(0.4))
    assert ratio is not None
    assert ratio.value == pytest.approx(0.5)


def test_no_gain_ratio_where_the_gain_is_noise():
    assert gain_ratio(_estimate(0.5, 0.1), _estimate(0.6, 0.1), _estimate(0.5), _estimate(0.6)) is None
    assert gain_ratio(_estimate(0.5, 0.01), _estimate(0.6, 0.01), _estimate(0.5), _estimate(0.6)) is not None


def test_difference_is_paired():
    shared = torch.randn(400, generator=Generator().manual_seed(1), dtype=torch.float64)
    difference = Estimate(3.0, 3 + shared) - Estimate(1.0, 1 + shared)
    assert difference.value == 2.0
    assert difference.error < 1e-12


def test_bootstrap_error_is_that_of_the_mean_over_prompts():
    values = torch.randn(1, 200, generator=Generator().manual_seed(2))
    estimate = Bootstrap.of(200, draws=2000).mean(values)
    assert estimate.value == pytest.approx(values.double().mean().item())
    assert estimate.error == pytest.approx(values.std().item() / math.sqrt(200), rel=0.06)


def test_seeds_of_a_prompt_do_not_count_as_independent():
    by_prompt = torch.randn(1, 50, generator=Generator().manual_seed(3))
    bootstrap = Bootstrap.of(50)
    assert bootstrap.mean(by_prompt.repeat(9, 1)).error == pytest.approx(bootstrap.mean(by_prompt).error)


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = Generator().manual_seed(4)
    bootstrap = Bootstrap.of(60, draws=400)
    hits = 0
    for _ in range(300):
        low, high = bootstrap.mean(torch.rand(2, 60, generator=generator)).interval(0.9)
        hits += low <= 0.5 <= high
    assert 0.84 <= hits / 300 <= 0.95


def test_bootstrap_is_the_same_every_time():
    assert torch.equal(Bootstrap.of(16, seed=5).counts, Bootstrap.of(16, seed=5).counts)
    assert not torch.equal(Bootstrap.of(16, seed=5).counts, Bootstrap.of(16, seed=6).counts)


def test_frechet_of_gaussians_with_known_moments():
    """Diagonal Gaussians: |m - m'|^2 + sum (s - s')^2, over the spread of the real ones."""
    real = Reference(torch.zeros(3, dtype=torch.float64), torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()))
    base = torch.randn(4000, 3, generator=Generator().manual_seed(6), dtype=torch.float64)
    base = (base - base.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(base.T.cov())).T  # exactly white
    x = base * torch.tensor([2.0, 2.0, 1.0]).double() + torch.tensor([0.5, 0.0, -1.0]).double()
    expected = (0.25 + 1.0 + (2 - 1) ** 2 + (2 - 2) ** 2 + (1 - 3) ** 2) / 14
    assert frechet(x, real) == pytest.approx(expected, rel=1e-9)


def test_frechet_with_covariances_that_do_not_commute():
    generator = Generator().manual_seed(7)
    a, b = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    x, y = (torch.randn(500, 4, generator=generator, dtype=torch.float64) @ m for m in (a, b))
    C, D = x.T.cov(), y.T.cov()
    values = torch.linalg.eigvals(C @ D).real.clamp_min(0)
    expected = (x.mean(0) - y.mean(0)).square().sum() + C.trace() + D.trace() - 2 * values.sqrt().sum()
    assert frechet(x, Reference.of(y)) == pytest.approx((expected / D.trace()).item(), rel=1e-9)


def test_frechet_of_a_draw_is_that_of_the_drawn_clips():
    features = torch.randn(2, 12, 3, generator=Generator().manual_seed(8))
    reference = Reference.of(torch.randn(50, 3, generator=Generator().manual_seed(9)))
    bootstrap = Bootstrap.of(12, draws=3)
    estimate = frechet_estimate(bootstrap, features, reference)
    assert estimate.value == pytest.approx(frechet(features.flatten(0, 1), reference))
    for counts, value in zip(bootstrap.counts, estimate.draws, strict=True):
        drawn = features.repeat_interleave(counts.long(), dim=1).flatten(0, 1)
        assert value.item() == pytest.approx(frechet(drawn, reference))


def test_interval_of_a_biased_bootstrap_contains_the_value():
    features = torch.randn(2, 40, 16, generator=Generator().manual_seed(10))
    estimate = frechet_estimate(Bootstrap.of(40), features, Reference.of(features.flatten(0, 1)))
    low, high = estimate.interval()
    assert low < estimate.value < high
