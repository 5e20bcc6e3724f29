"""Figures for the report."""

import math

import pytest
import torch

from loraport.core.lowrank import LowRank
from loraport.core.operator import column_norms, norm, thin_product
from loraport.core.operators import DenseOperator, cosine


def test_cosine():
    x = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert cosine(DenseOperator(x), DenseOperator(-2 * x)) == pytest.approx(-1)
    assert cosine(LowRank.from_dense(x), DenseOperator(x)) == pytest.approx(1)
    assert cosine(DenseOperator(x), LowRank.zeros(2, 2)) == 0.0


@pytest.mark.parametrize("size", [1e-30, 1e-19, 1.0, 1e19, 1e37])
def test_norms_are_right_where_squares_leave_float32(size):
    x = torch.full((3, 5), size)
    assert norm(x) == pytest.approx(float(x.double().norm()), rel=1e-6)
    assert norm(x[0]) == pytest.approx(float(x[0].double().norm()), rel=1e-6)
    assert DenseOperator(x).norm() == norm(x)


def test_norms_of_nothing_and_of_what_is_not_finite():
    assert norm(torch.zeros(2, 3)) == 0.0
    assert norm(torch.zeros(0, 3)) == 0.0
    assert norm(torch.tensor([[1.0, math.inf]])) == math.inf
    assert math.isnan(norm(torch.tensor([[1.0, math.nan]])))


@pytest.mark.parametrize(("m", "n"), [(7, 5), (300, 96), (300, 193), (65, 64)])
def test_norms_of_columns_have_the_bits_that_they_have_all_at_once(m, n):
    M = torch.randn(m, n + 3, generator=torch.Generator().manual_seed(0))[:, 3:]
    assert torch.equal(column_norms(M), torch.linalg.vector_norm(M, dim=0))


def test_thin_products_are_products_however_the_matrix_lies():
    M, X = (torch.randn(40, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (30, 4))
    assert torch.allclose(thin_product(M.T, X), M.T @ X)
    assert torch.allclose(thin_product(M, thin_product(M.T, X)), M @ M.T @ X)
    assert thin_product(M.T, X).is_contiguous()
