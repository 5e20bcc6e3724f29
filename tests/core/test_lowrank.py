"""Laws of a matrix kept in factors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraport.core import lowrank
from loraport.core.lowrank import LowRank
from loraport.errors import NumericalError

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 14), st.integers(0, 2**16))


def make(m, n, r, seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(m, r, generator=g, dtype=dtype), torch.randn(r, n, generator=g, dtype=dtype))


def close(a, b, tolerance=1e-10):
    return float((a - b).norm()) <= tolerance * (1 + float(b.norm()))


@settings(deadline=None, max_examples=80)
@given(sizes)
def test_everything_agrees_with_the_product(size):
    x = make(*size)
    dense = x.dense()
    m, n, r, seed = size
    g = torch.Generator().manual_seed(seed + 1)
    X, Y = (torch.randn(k, 2, generator=g, dtype=torch.float64) for k in (n, m))
    assert (x.shape, x.rank, x.dtype) == ((m, n), r, torch.float64)
    assert x.norm() == pytest.approx(float(dense.norm()), rel=1e-10, abs=1e-12)
    assert close(x.apply(X), dense @ X)
    assert close(x.apply_t(Y), dense.T @ Y)
    assert close(x.T.dense(), dense.T)
    for factor in (-2.5, 0.0, 1e-6):
        assert close(x.scaled(factor).dense(), factor * dense)
    assert close(x.padded(r + 3).dense(), dense)
    assert x.padded(r + 3).rank == r + 3
    assert close(LowRank.sum([x, x.scaled(-0.5)]).dense(), 0.5 * dense)
    assert torch.equal(LowRank.from_dense(dense).dense(), dense)
    other = make(m, n, 3, seed + 7)
    assert x.inner(other) == pytest.approx(float((dense * other.dense()).sum()), rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=80)
@given(sizes)
def test_svd_is_the_svd_of_the_product(size):
    x = make(*size)
    m, n, r, _ = size
    U, S, Vh = x.svd()
    q = min(m, n, r)
    assert S.shape == (q,)
    assert close(U * S @ Vh, x.dense())
    assert close(U.T @ U, torch.eye(q, dtype=torch.float64))
    assert close(Vh @ Vh.T, torch.eye(q, dtype=torch.float64))
    assert close(S, torch.linalg.svdvals(x.dense())[:q])


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(0, 6))
def test_truncation_is_the_best_one_and_factors_are_balanced(size, rank):
    x = make(*size)
    S = torch.linalg.svdvals(x.dense())
    small = x.truncated(rank)
    left = float(S[rank:].square().sum())
    assert float((x.dense() - small.dense()).norm() ** 2) == pytest.approx(left, rel=1e-8, abs=1e-12)
    balanced = x.balanced()
    assert balanced.rank == x.rank
    assert close(balanced.dense(), x.dense())
    assert close(balanced.B.T @ balanced.B, balanced.A @ balanced.A.T)


def test_nearly_cancelling_terms_have_a_norm_near_zero():
    x = make(20, 15, 4, 0)
    assert LowRank.sum([x, x.scaled(-1.0)]).norm() < 1e-6 * x.norm()
    assert not math.isnan(LowRank.sum([x, x.scaled(-1.0)]).norm())


def test_zeros_and_conversions():
    zero = LowRank.zeros(4, 3, 2)
    assert (zero.norm(), zero.rank, zero.dtype) == (0.0, 2, torch.float32)
    assert LowRank.zeros(4, 3).svd()[1].numel() == 0
    assert make(4, 3, 2, 0).to(torch.float32).dtype == torch.float32
    with pytest.raises(ValueError, match="cannot pad"):
        zero.padded(1)


def test_not_a_number_is_refused():
    x = make(4, 3, 2, 0)
    x.A[0, 0] = math.nan
    with pytest.raises(NumericalError, match="NaN"):
        x.svd()


@pytest.mark.parametrize("shape", [(320, 300), (300, 320)])
def test_a_whole_matrix_is_not_multiplied_with_its_identity(shape):
    """Norm and product come from the matrix itself, and are those of the two factors."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for update in (LowRank.from_dense(matrix), LowRank.from_dense(matrix).scaled(-0.3)):
        assert close(update.dense(), update.B.double() @ update.A.double(), 1e-6)
        assert update.norm() == pytest.approx(float((update.B.double() @ update.A.double()).norm()), rel=1e-6)
    spoilt = LowRank.from_dense(matrix)
    (spoilt.A if shape[0] > shape[1] else spoilt.B)[3, 5] = 0.5
    assert close(spoilt.dense(), spoilt.B @ spoilt.A, 1e-6)


@pytest.mark.parametrize("size", [(320, 300, 290), (300, 320, 290), (300, 310, 300), (280, 290, 600)])
def test_factors_that_are_not_thin_are_taken_as_their_product(size, monkeypatch):
    """Which is what adapters of full rank come as. Nothing in float64 that grows with the rank is done to them."""
    real = torch.linalg.qr
    monkeypatch.setattr(
        torch.linalg, "qr", lambda X: real(X) if X.dtype == torch.float32 else pytest.fail("in float64")
    )
    x = make(*size, 0, torch.float32)
    assert not x.thin
    dense = x.dense().double()
    U, S, Vh = (part.double() for part in x.svd())
    q = min(size)
    assert len(S) == q
    assert close(U * S @ Vh, dense, 1e-5)
    assert close(U.T @ U, torch.eye(q, dtype=torch.float64), 1e-5)
    assert close(S, torch.linalg.svdvals(dense)[:q], 1e-5)
    assert x.norm() == pytest.approx(float(dense.norm()), rel=1e-6)
    assert x.inner(x) == pytest.approx(float(dense.square().sum()), rel=1e-5)
    assert close(x.truncated(5).dense().double(), (U[:, :5] * S[:5]) @ Vh[:5], 1e-5)
    x = make(*size, 0, torch.float32)
    x.A[0, 0] = math.nan
    with pytest.raises(NumericalError, match="NaN"):
        x.svd()


def test_a_norm_is_found_once(monkeypatch):
    x = make(30, 20, 4, 0)
    first = x.norm()
    monkeypatch.setattr(lowrank, "wide", lambda *args: pytest.fail("again"))
    assert x.norm() == x.to(torch.float64, "cpu").norm() == first
