"""The most energy for the bytes, against every choice that there is."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraport.core.allotment import allot, rank_for_energy

NUMBERS = st.lists(st.integers(0, 50), max_size=4).map(lambda found: sorted(found, reverse=True))


def _energy(values: dict[str, list[int]], ranks: dict[str, int]) -> int:
    return sum(sum(values[name][:rank]) for name, rank in ranks.items())


def _best(values: dict[str, list[int]], costs: dict[str, int], budget: int) -> int:
    """By trying everything."""
    choices = itertools.product(*(range(len(found) + 1) for found in values.values()))
    ranks = [dict(zip(values, choice, strict=True)) for choice in choices]
    return max(_energy(values, found) for found in ranks if sum(costs[n] * r for n, r in found.items()) <= budget)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(NUMBERS, st.integers(1, 9)), min_size=1, max_size=3), st.integers(0, 60))
def test_no_choice_is_better_by_more_than_a_term(layers, budget):
    values = {str(at): found for at, (found, _) in enumerate(layers)}
    costs = {str(at): cost for at, (_, cost) in enumerate(layers)}
    ranks = allot({name: torch.tensor(found, dtype=torch.float64) for name, found in values.items()}, costs, budget)
    assert sum(costs[name] * rank for name, rank in ranks.items()) <= budget
    left = [values[name][rank] for name, rank in ranks.items() if rank < len(values[name])]
    assert _energy(values, ranks) >= _best(values, costs, budget) - max(left, default=0)
    one = dict.fromkeys(costs, 1)
    ranks = allot({name: torch.tensor(found, dtype=torch.float64) for name, found in values.items()}, one, budget)
    assert _energy(values, ranks) == _best(values, one, budget)


@pytest.mark.parametrize(("share", "rank"), [(0.5, 1), (0.64, 1), (0.65, 2), (0.96, 2), (1.0, 3)])
def test_the_smallest_rank_that_holds_a_share(share, rank):
    assert rank_for_energy(torch.tensor([64.0, 32.0, 4.0, 0.0]), share) == rank
    assert rank_for_energy(torch.zeros(3), share) == 0
