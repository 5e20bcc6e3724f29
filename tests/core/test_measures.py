"""Figures for the report."""

import pytest
import torch

from loraport.core.lowrank import LowRank
from loraport.core.measures import cosine, rounding_floor
from loraport.core.operators import DenseOperator


def test_cosine():
    x = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert cosine(DenseOperator(x), DenseOperator(-2 * x)) == pytest.approx(-1)
    assert cosine(LowRank.from_dense(x), DenseOperator(x)) == pytest.approx(1)
    assert cosine(DenseOperator(x), LowRank.zeros(2, 2)) == 0.0


@pytest.mark.parametrize(("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_rounding_floor_is_what_rounding_does(name, dtype):
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    y = x * (1 + 1e-5)
    measured = float(((x + 3e-9).to(dtype).float() - x).norm() / x.norm()) * 2**0.5
    assert rounding_floor(name) == pytest.approx(measured, rel=0.02)
    assert float((y - x).norm() / x.norm()) < rounding_floor(name)
    assert rounding_floor("something else") == 0.0
