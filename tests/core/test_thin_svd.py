"""The thin SVD: exact and orthonormal on every kind of spectrum, and honest about who answered."""

import math

import pytest
import torch

from loraport.core import thin_svd as module
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import gram, singular_values, thin_svd
from loraport.core.truncation import truncated_svd
from loraport.errors import NumericalError

P = 192


def spectrum(kind: str) -> torch.Tensor:
    at = torch.linspace(0, 1, P)
    return {
        "like Wan": 8 * (1 - at).clamp_min(0.02) ** 2 * 0.25 + 6 * torch.exp(-30 * at) + 0.07,
        "flat": torch.ones(P),
        "two plateaus": torch.where(at < 0.5, 2.0, 0.5),
        "graded over 3 decades": torch.logspace(0, -3, P),
        "graded over 6 decades": torch.logspace(0, -6, P),
        "rank deficient": torch.where(at < 0.7, 1.0 + at, 0.0),
        "mostly zero": torch.where(at < 0.1, 1.0, 0.0),
        "outlier": torch.cat([torch.tensor([1e4]), torch.linspace(1, 0.1, P - 1)]),
        "minute": torch.linspace(1e-18, 1e-20, P),
        "zero": torch.zeros(P),
    }[kind]


KINDS = [
    "like Wan", "flat", "two plateaus", "graded over 3 decades", "graded over 6 decades", "rank deficient",
    "mostly zero", "outlier", "minute", "zero",
]  # fmt: skip


def matrix(S, m, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(m, P, generator=g, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(n, P, generator=g, dtype=torch.float64)).Q
    return ((U * S.double()) @ V.T).float()


def check(W, svd, tolerance=2e-5):
    U, S, Vh = svd.U.double(), svd.S.double(), svd.Vh.double()
    p = min(W.shape)
    eye = torch.eye(p, dtype=torch.float64)
    assert svd.U.shape == (W.shape[0], p)
    assert svd.Vh.shape == (p, W.shape[1])
    assert float((U.T @ U - eye).abs().max()) < tolerance
    assert float((Vh @ Vh.T - eye).abs().max()) < tolerance
    assert float(((U * S) @ Vh - W.double()).norm()) <= tolerance * float(W.double().norm())
    assert bool((svd.S.diff() <= 0).all())
    exact = torch.linalg.svdvals(W.double())
    assert float((S - exact).abs().max()) <= tolerance * max(float(exact[0]), 1e-300)


@pytest.mark.parametrize("shape", [(P, P), (3 * P, P), (P, 3 * P)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_spectrum(kind, shape):
    W = matrix(spectrum(kind), *shape)
    check(W, thin_svd(W))


@pytest.mark.parametrize("shape", [(P, P), (700, 300), (300, 700)])
def test_random_matrices(shape):
    W = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    svd = thin_svd(W)
    check(W, svd)
    assert svd.driver == "gram"


@pytest.mark.parametrize("shape", [(P, P), (3 * P, P), (P, 3 * P)])
@pytest.mark.parametrize("kind", KINDS)
def test_values_alone(kind, shape):
    W = matrix(spectrum(kind), *shape)
    found, exact = singular_values(W).double().square(), torch.linalg.svdvals(W.double()).square()
    assert found.shape == exact.shape
    assert bool((found.diff() <= 0).all())
    assert float((found.cumsum(0) - exact.cumsum(0)).abs().max()) <= 1e-5 * float(exact.sum())


def test_values_alone_of_a_usual_difference_need_no_vectors(monkeypatch):
    W = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    for name in ("eigh", "svd", "svdvals"):
        monkeypatch.delattr(torch.linalg, name)
    assert singular_values(W).square().sum() == pytest.approx(float(W.square().sum()), rel=1e-6)


def test_values_alone_of_what_has_a_low_rank_have_no_tail():
    """Else a share of the energy would be looked for in rounding errors."""
    for kind in ("mostly zero", "rank deficient"):
        W, held = matrix(spectrum(kind), 2 * P, P), int((spectrum(kind) > 0).sum())
        assert float(singular_values(W)[held:].square().sum()) < 1e-9 * float(W.square().sum())


def test_usual_weights_take_the_fast_driver_and_odd_ones_do_not():
    assert thin_svd(matrix(spectrum("like Wan"), P, P)).driver == "gram"
    assert thin_svd(matrix(spectrum("rank deficient"), P, P)).driver == "gram"
    assert thin_svd(torch.zeros(P, P)).driver == "gesdd"
    assert (
        thin_svd(torch.randn(P, P, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).driver == "gesdd"
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (7, 3), (3, 7)])
def test_small_ones(shape):
    W = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    check(W, thin_svd(W))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_by_name(value):
    W = torch.ones(4, 4)
    W[1, 2] = value
    with pytest.raises(NumericalError) as caught:
        thin_svd(W, name="blocks.3.ffn.0")
    assert "blocks.3.ffn.0" in str(caught.value)
    assert "1 entries" in str(caught.value)


def test_drivers_stand_in_for_each_other(monkeypatch):
    W = torch.randn(P, P, generator=torch.Generator().manual_seed(3))

    def none(matrix, driver=None):
        return None

    def wrong(matrix):
        return tuple(torch.ones_like(part) for part in torch.linalg.svd(matrix))

    monkeypatch.setattr(module, "_by_gram", wrong)
    assert thin_svd(W).driver == "gesdd"
    monkeypatch.setattr(module, "_by_library", none)
    monkeypatch.setattr(module, "_by_library_in_float64", none)
    with pytest.raises(NumericalError, match="no driver"):
        thin_svd(W, name="blocks.0")


def test_library_failures_are_caught(monkeypatch):
    def fail(*_, **__):
        raise torch.linalg.LinAlgError("did not converge")

    W = torch.randn(P, P, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(torch.linalg, "eigh", fail)
    assert thin_svd(W).driver == "gesdd"
    monkeypatch.setattr(torch.linalg, "svd", fail)
    with pytest.raises(NumericalError):
        thin_svd(W)
    with pytest.raises(NumericalError, match=r"blocks\.0"):
        truncated_svd(DenseOperator(W[:9]), energy=0.9, name="blocks.0")


def test_drivers_are_called_what_they_are_on_each_device():
    names = {device: [name for name, _ in module._attempts(device)] for device in ("cpu", "cuda")}
    assert names == {
        "cpu": ["gram", "gesdd", "gesdd-float64"],
        "cuda": ["gram", "gesvdj", "gesvd", "gesvd-float64"],
    }


@pytest.mark.parametrize("n", [1, 3, 4, 17])
def test_gram_has_the_lower_triangle(n):
    W = torch.randn(9, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(gram(W).tril(), (W.T @ W).tril())


def test_head_and_completion():
    basis = thin_svd(torch.diag(torch.tensor([3.0, 2.0, 1.0]))[:, :2])
    assert [basis.head(energy) for energy in (0.1, 9 / 13, 0.9, 1.0)] == [1, 1, 2, 2]
    full = basis.completed()
    assert full.U.shape == (3, 3)
    assert torch.allclose(full.U @ full.U.T, torch.eye(3), atol=1e-6)
    assert torch.equal(full.U[:, :2], basis.U)
    assert full.completed().U is full.U
    assert basis.T.shape == (2, 3)
    zero = thin_svd(torch.zeros(4, 4))
    assert zero.head(0.9) == 1
