"""Figures for the report."""

import pytest
import torch

from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator, cosine


def test_cosine():
    x = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert cosine(DenseOperator(x), DenseOperator(-2 * x)) == pytest.approx(-1)
    assert cosine(LowRank.from_dense(x), DenseOperator(x)) == pytest.approx(1)
    assert cosine(DenseOperator(x), LowRank.zeros(2, 2)) == 0.0
