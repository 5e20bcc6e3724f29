"""What RAFT and AMT-S read of two frames' features, against a table of all pairs that is read place by place."""

import numpy as np
import pytest
import torch

from loraport.metrics import correlation
from loraport.metrics.correlation import Correlation


def read_at(table, x, y):
    """A table at places between its own, 0 beyond them."""
    high, wide = table.shape
    total = 0.0
    for j in (int(np.floor(y)), int(np.floor(y)) + 1):
        for i in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= j < high and 0 <= i < wide:
                total += table[j, i] * (1 - abs(y - j)) * (1 - abs(x - i))
    return total


@pytest.mark.parametrize(("radius", "keep", "at_once"), [(3, False, 1 << 23), (3, False, 700), (4, True, 700)])
def test_it_is_of_all_pairs_made_smaller_and_read_around_the_target(monkeypatch, radius, keep, at_once):
    monkeypatch.setattr(correlation, "AT_ONCE", at_once)
    draw = np.random.default_rng(3)
    high, wide = 17, 22
    ours, theirs = draw.normal(size=(2, 2, 5, high, wide))
    read = Correlation(torch.from_numpy(ours), torch.from_numpy(theirs), radius, keep=keep)
    steps = range(-radius, radius + 1)
    for _ in range(2):  # a second reading is of the same products
        targets = np.mgrid[:high, :wide][::-1] + draw.normal(size=(2, 2, high, wide)) * 6
        found = read.around(torch.from_numpy(targets)).numpy()
        assert found.shape == (2, 4 * len(steps) ** 2, high, wide)
        for way, j, i in ((0, 0, 0), (0, 9, 13), (1, 16, 21), (1, 5, 2)):
            table = np.einsum("c,chw->hw", ours[way, :, j, i], theirs[way]) / np.sqrt(5)
            x, y = targets[way, :, j, i]
            expected = []
            for size in range(4):
                if size:
                    down, right = (side // 2 for side in table.shape)
                    table = table[: 2 * down, : 2 * right].reshape(down, 2, right, 2).mean((1, 3))
                expected += [read_at(table, x / 2**size + a, y / 2**size + b) for a in steps for b in steps]
            assert found[way, :, j, i] == pytest.approx(expected, abs=1e-9)
