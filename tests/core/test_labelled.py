"""Sums by label: one-hot products, on the CPU and on a device, in the order in which slices stand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraport.core import labelled
from pretended_device import DEVICE, Pretended, pretended_device


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 6), st.integers(0, 1), st.integers(0, 2**16))
def test_sums_are_one_hot_products(k, width, count, dim, seed):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(count, (k,), generator=g)
    X = torch.randn(k, width, generator=g)
    expected = torch.nn.functional.one_hot(labels, count).float().T @ X
    assert torch.allclose(labelled.sums(X, labels, count), expected, atol=1e-6)
    assert torch.equal(labelled.sums(X.T, labels, count, 1), labelled.sums(X, labels, count).T)
    with pretended_device():
        there = labelled.sums((X.T if dim else X).to(DEVICE), labels.to(DEVICE), count, dim)
    assert isinstance(there, Pretended)
    assert torch.equal(there.there, labelled.sums(X.T if dim else X, labels, count, dim))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_vectors_and_counts(dtype):
    x, labels = torch.tensor([1, 2, 3, 4], dtype=dtype), torch.tensor([2, 0, 2, 2])
    assert labelled.sums(x, labels, 4).tolist() == [2, 0, 8, 0]
    with pretended_device():
        assert labelled.sums(x.to(DEVICE), labels.to(DEVICE), 4).there.tolist() == [2, 0, 8, 0]
