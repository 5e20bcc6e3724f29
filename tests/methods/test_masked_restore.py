"""Where masked-restore undoes drift, against projections written out, and what its search for the amount costs."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.methods import registry
from loraport.methods.base import LayerInputs
from loraport.methods.baselines import masked_restore_steps as steps


def _inputs(m: int, n: int) -> LayerInputs:
    g = torch.Generator().manual_seed(0)

    def random(a: int, b: int) -> torch.Tensor:
        return torch.randn(a, b, generator=g, dtype=torch.float64) / math.sqrt(max(m, n))

    W, D = random(m, n), DenseOperator(0.1 * random(m, n))
    return LayerInputs("x", LowRank(random(m, 3), random(3, n)), thin_svd(W), None, D)


@pytest.mark.parametrize("shape", [(30, 30), (44, 20), (20, 44)], ids=str)
def test_the_energy_of_a_part_is_known_without_forming_it(shape):
    inputs = _inputs(*shape)
    basis, D = inputs.require_basis(), inputs.require_drift().dense()
    g = torch.Generator().manual_seed(1)
    energies = steps._Energies.of(basis, D)
    for share in (0.0, 0.3, 1.0):
        rows, cols = (torch.rand(min(shape), generator=g) < share for _ in range(2))
        rest = steps._restored(D, basis, rows, cols)
        assert energies.spared(rows, cols) == pytest.approx(float(D.square().sum() - rest.square().sum()), abs=1e-12)


@pytest.mark.parametrize("mask", ["random-mask", "reversed-mask"])
@pytest.mark.parametrize("shape", [(30, 30), (44, 20), (20, 44)], ids=str)
def test_a_finer_search_costs_no_products_of_the_layers_size(shape, mask, monkeypatch):
    inputs, (method, params) = _inputs(*shape), registry.resolve(mask)
    counts = []
    for halvings in (8, 40):
        monkeypatch.setattr(steps, "HALVINGS", halvings)
        with FlopCounterMode(display=False) as counter:
            stats = method.transfer(inputs, params).stats
        counts.append(counter.get_total_flops())
        assert stats["drift_undone"] == pytest.approx(stats["drift_undone_by_casa"], abs=0.1)
    assert counts[1] - counts[0] <= 32 * 2 * min(shape) ** 2 + 8 * math.prod(shape) * min(shape) * 0.2
