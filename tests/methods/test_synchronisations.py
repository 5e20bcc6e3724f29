"""CASA, its decomposition and the cut on an accelerator: the same numbers, and the program waits for it a few times."""

import pytest
import torch

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.core.truncation import truncated_svd
from loraport.methods import registry
from loraport.methods.base import LayerInputs
from pretended_device import DEVICE, Pretended, pretended_device

N, RANK = 160, 8


def _random(m: int, n: int, seed: int) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def _layer(m: int, n: int) -> tuple[SpectralBasis, DenseOperator, LowRank]:
    p = min(m, n)
    U, V = torch.linalg.qr(_random(m, p, 0)).Q, torch.linalg.qr(_random(n, p, 1)).Q
    S = torch.linspace(2, 0.1, p)
    update = LowRank(_random(m, RANK, 3) * 0.02, _random(RANK, n, 4) * 0.02)
    return SpectralBasis(U, S, V.T), DenseOperator(_random(m, n, 2) * 0.002), update


def _here(x: torch.Tensor) -> torch.Tensor:
    return x.there if isinstance(x, Pretended) else x


@pytest.mark.parametrize(("shape", "most"), [((N, N), 23), ((2 * N, N), 29), ((N, 2 * N), 29)])
@pytest.mark.parametrize("preset", ["casa", "released-code"])
def test_casa_waits_a_few_times_a_layer(shape, most, preset):
    """However many strips, clusters or arbitrated entries there are; the components take a round more in odd cases."""
    basis, drift, update = _layer(*shape)
    method, params = registry.resolve(preset)
    plain = method.transfer(LayerInputs("layer", update, basis, None, drift), params)
    with pretended_device() as waits:
        inputs = LayerInputs(
            "layer", update.to(device=DEVICE), basis.to(DEVICE), None, DenseOperator(drift.W.to(DEVICE))
        )
        waits.clear()
        found = method.transfer(inputs, params)
        assert sum(waits.values()) <= most, waits
        dense = found.update.dense()
    assert torch.allclose(_here(dense), plain.update.dense(), atol=1e-6)
    assert found.stats == pytest.approx(plain.stats)
    for key, values in plain.maps.items():
        assert torch.allclose(torch.tensor(found.maps[key].values), torch.tensor(values.values), atol=1e-4), key


@pytest.mark.parametrize(("n", "most"), [(400, 6), (100, 10)])
def test_the_cut_waits_once_in_several_steps(n, most):
    """Where the Krylov space has it, and where the exact decomposition takes over."""
    M, start = _random(n, n, 5), LowRank(_random(n, RANK, 6), _random(RANK, n, 7))
    plain = truncated_svd(DenseOperator(M), rank=RANK, start=start)
    with pretended_device() as waits:
        op, begin = DenseOperator(M.to(DEVICE)), start.to(device=DEVICE)
        waits.clear()
        found = truncated_svd(op, rank=RANK, start=begin)
        assert sum(waits.values()) <= most, waits
        dense = found.update.dense()
    assert torch.allclose(_here(dense), plain.update.dense(), atol=1e-5)
    assert found.energy_kept == pytest.approx(plain.energy_kept)


@pytest.mark.parametrize("spectrum", [torch.linspace(1, 0.5, N), torch.logspace(0, -2.5, N)])
def test_the_decomposition_waits_once_for_each_look_at_the_singular_values(spectrum):
    basis, _, _ = _layer(2 * N, N)
    W = (basis.U * spectrum) @ basis.Vh
    plain = thin_svd(W)
    with pretended_device() as waits:
        there = W.to(DEVICE)
        waits.clear()
        found = thin_svd(there)
        assert sum(waits.values()) <= 7, waits
    assert found.driver == plain.driver == "gram"
    assert torch.allclose(_here(found.S), plain.S, atol=1e-5)
