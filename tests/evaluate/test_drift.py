"""Drifts of which is known how much lies in the strongest directions."""

import pytest
import torch
from torch import Generator

from loraport.core.thin_svd import thin_svd
from loraport.evaluate.drift import concentration, share_of_first, summary


def _weight(m: int, n: int) -> torch.Tensor:
    return torch.randn(m, n, generator=Generator().manual_seed(0)) / n**0.5


def test_share_of_drifts_inside_and_outside_the_first_directions():
    W = _weight(24, 16)
    basis = thin_svd(W)
    inside, outside = basis.U[:, :1] @ basis.Vh[7:8], basis.U[:, 5:6] @ basis.Vh[7:8]
    assert share_of_first(basis, inside, 3) == pytest.approx(1, abs=1e-5)
    assert share_of_first(basis, outside, 3) == pytest.approx(0, abs=1e-5)
    assert share_of_first(basis, inside + outside, 3) == pytest.approx(0.5, abs=1e-5)


def test_a_gaussian_drift_is_not_concentrated_and_a_scaled_weight_is():
    W = _weight(96, 96) @ torch.diag(torch.linspace(2, 0.02, 96))
    noise = torch.randn(96, 96, generator=Generator().manual_seed(1))
    flat = concentration("flat", W, W + 0.1 * noise)
    assert flat.shares["drift"] == pytest.approx(1, abs=0.1)
    assert concentration("head", W, 1.1 * W).shares["drift"] > 1.5


def test_summary_averages_over_layers():
    W = _weight(16, 16)
    layers = [concentration(str(i), W, W * (1 + 0.1 * i)) for i in (1, 2, 3)]
    assert summary(layers)["relative drift"]["mean"] == pytest.approx(0.2, rel=1e-4)
