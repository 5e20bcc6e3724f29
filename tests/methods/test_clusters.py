"""Clusters against scipy, block sums against one-hot products, quantiles against torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components as reference

from loraport.methods.casa import arbitration, clusters
from loraport.methods.casa.clusters import (
    Clusters,
    _next,
    _ranked,
    block_sum,
    connected_components,
    edges,
    quantile,
    redrawn_edges,
    turns,
)
from pretended_device import DEVICE, pretended_device


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 40), st.floats(0, 0.2), st.integers(0, 2**16))
def test_components_are_those_of_scipy(k, density, seed):
    edges = torch.rand(k, k, generator=torch.Generator().manual_seed(seed)) < density
    count, labels = reference(edges.numpy(), directed=False)
    ours = connected_components(edges)
    assert ours.count == count
    assert ours.labels.tolist() == labels.tolist()
    assert ours.sizes.tolist() == np.bincount(labels).tolist()


@pytest.mark.parametrize("k", [1, 2, 1000])
def test_long_chains_in_any_order(k):
    order = torch.randperm(k, generator=torch.Generator().manual_seed(0))
    edges = torch.zeros(k, k, dtype=torch.bool)
    edges[order[:-1], order[1:]] = True  # one direction only
    assert connected_components(edges).count == 1


def test_edges_by_hand():
    C = torch.tensor([[9.0, 0.3, 0.0], [0.0, 9.0, 0.0], [0.0, 0.001, 9.0]])
    S = torch.tensor([2.0, 1.5, 1.5])
    assert edges(C, S, 0.5).tolist() == [[False, True, False], [False, False, False], [False, True, False]]
    assert not edges(torch.zeros(3, 3), S, 0.0).any()
    assert int(edges(C, S, 0.0).sum()) == 2
    assert not edges(torch.full((3, 3), torch.nan), S, 0.5).any()


def _all_edges(C: torch.Tensor, S: torch.Tensor, tau: float) -> torch.Tensor:
    return (C.abs() / ((S[:, None] - S[None, :]).abs() + 1e-6)).fill_diagonal_(0.0) > tau


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.floats(1e-6, 1), st.floats(1e-4, 10), st.floats(0, 1e-2), st.integers(0, 2**16))
def test_looking_near_the_diagonal_finds_all_edges(k, size, tau, error, seed):
    """Beside every entry looked at, as they are and drawn once more with errors."""
    g = torch.Generator().manual_seed(seed)
    C = torch.randn(k, k, generator=g) * size
    S = torch.rand(k, generator=g).sort(descending=True).values * 3
    assert torch.equal(edges(C, S, tau), _all_edges(C, S, tau))
    draws = torch.randn(3, k, generator=torch.Generator().manual_seed(0))
    turned, into = turns(S, error)
    nearest = (S[:, None] - S).abs().fill_diagonal_(torch.inf).min(dim=1).values
    assert torch.equal(turned, (error / nearest.clamp_min(1e-6)).clamp_max(1.0))
    assert k == 1 or torch.equal((S - S[into]).abs(), nearest)
    moved = C + (turned * draws[0])[:, None] * C[into] + (turned * draws[1]) * C[:, into]
    again = _all_edges(moved, S + error * draws[2], tau)
    assert int((redrawn_edges(C, S, tau, error) != again).sum()) <= 2  # sums in another order, beside tau


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**16))
def test_block_sums_are_one_hot_products(a, b, count, seed):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(a, b, generator=g, dtype=torch.float64)
    rows, cols = (torch.randint(count, (size,), generator=g) for size in (a, b))
    one_hot = [torch.nn.functional.one_hot(labels, count).double() for labels in (rows, cols)]
    assert torch.allclose(block_sum(X, rows, cols, count), one_hot[0].T @ X @ one_hot[1])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_quantiles_are_those_of_torch(values, q, dtype):
    x = torch.tensor(values, dtype=dtype)
    before = x.clone()
    expected = torch.quantile(x, q)
    assert torch.allclose(quantile(x, q), expected, rtol=1e-6, atol=1e-9)
    assert torch.equal(x, before)
    padded = torch.cat([torch.full((7,), -torch.inf, dtype=dtype), x])
    assert torch.equal(quantile(padded, q, among_largest=x.numel()), quantile(x, q))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32) | st.sampled_from([-torch.inf, torch.inf, 0.0]), min_size=1, max_size=40),
    st.integers(0, 40),
)
def test_a_device_finds_the_same_two_values_without_sorting(values, at):
    x = torch.tensor(values)
    ordered, low = x.sort().values, at % len(x)
    with pretended_device():
        there = x.to(DEVICE)
        found = _ranked(there, low)
        assert found.there == ordered[low]
        if low + 1 < len(x):
            assert _next(there, found, low + 1).there == ordered[low + 1]


def test_many_values_are_not_sorted_on_a_device(monkeypatch):
    monkeypatch.setattr(clusters, "_SORTED", 1000)
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    ops: set[str] = set()
    with pretended_device(lambda name, args, kwargs: ops.add(name)) as waits:
        there = x.to(DEVICE)
        waits.clear()
        found = [quantile(there, q, among_largest=count) for q in (0.0, 0.31, 0.5, 1.0) for count in (5000, 777)]
        assert not waits
    assert "sort" not in ops
    expected = [quantile(x, q, among_largest=count) for q in (0.0, 0.31, 0.5, 1.0) for count in (5000, 777)]
    assert [each.there.item() for each in found] == [each.item() for each in expected]


@pytest.mark.parametrize("piece", [1, 200])
def test_worked_on_in_small_pieces_the_same_entries_are_arbitrated(monkeypatch, piece):
    """As those of real layers are: rows of the head, rows that only begin there, and rows beyond it."""
    g = torch.Generator().manual_seed(0)
    lora, fft = (torch.randn(50, 40, generator=g) for _ in range(2))
    labels = torch.arange(24) // 3
    rows, cols = (torch.zeros(side, dtype=torch.bool).index_fill_(0, torch.arange(6, 12), True) for side in (50, 40))
    asked = lora, fft, Clusters(labels, 8), rows, cols, 0.5
    whole = arbitration.arbitrated_entries(*asked)
    monkeypatch.setattr(arbitration, "_CHUNK", piece)
    assert len(whole) > 50
    assert torch.equal(arbitration.arbitrated_entries(*asked), whole)


def test_dominant_clusters_count_once_each():
    five = Clusters(torch.tensor([0, 0, 0, 1, 2]), 3)
    marks = five.dominant(torch.tensor([3.0, 3.0, 3.0, 2.0, 1.0]), q=0.5)
    assert marks.tolist() == [True, True, True, True, False]
    assert five.mean(torch.tensor([3.0, 0.0, 0.0, 2.0, 1.0])).tolist() == pytest.approx([1, 2, 1], rel=1e-5)
