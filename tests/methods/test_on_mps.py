"""Apple's GPU has no float64 and no decompositions: what needs them is done on the CPU, and comes back."""

import pytest
import torch

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.core.truncation import truncated_svd
from loraport.methods import registry
from loraport.methods.base import LayerInputs
from pretended_device import MPS, Pretended, pretended_mps

RANK = 4


def _random(m: int, n: int, seed: int) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def _inputs(m: int, n: int, device: str) -> LayerInputs:
    p = min(m, n)
    S, Vh = torch.linspace(2, 0.1, p), torch.linalg.qr(_random(n, p, 5)).Q.T
    bases = [SpectralBasis(torch.linalg.qr(_random(m, p, at)).Q, S, Vh).to(device) for at in (0, 1)]
    update = LowRank(_random(m, RANK, 3) * 0.02, _random(RANK, n, 4) * 0.02).to(device=device)
    source, target = (DenseOperator((_random(m, n, at) * 0.1).to(device)) for at in (6, 7))
    return LayerInputs("layer", update, *bases, DenseOperator(target.W - source.W), None, source, target)


def _here(x: torch.Tensor) -> torch.Tensor:
    return x.there if isinstance(x, Pretended) else x


@pytest.mark.parametrize("name", [*registry.names(), "released-code"])
def test_every_method_runs_there(name):
    method, params = registry.resolve(name)
    plain = method.transfer(_inputs(96, 64, "cpu"), params)
    with pretended_mps():
        found = method.transfer(_inputs(96, 64, "mps"), params)
        assert found.update.device == MPS
        cut = [truncated_svd(found.update, rank=rank, start=found.start).update.dense() for rank in (RANK, "full")]
        dense = found.update.dense()
    assert torch.allclose(_here(dense), plain.update.dense(), atol=1e-5)
    assert torch.allclose(_here(cut[1]), plain.update.dense(), atol=1e-4)


def test_decompositions_are_made_on_the_cpu():
    W = _random(200, 150, 0)
    with pretended_mps():
        found = thin_svd(W.to("mps"))
        assert (found.driver, found.U.device) == ("gram", MPS)
        with pytest.raises(NotImplementedError):
            torch.linalg.qr(W.to("mps"))
        with pytest.raises(AssertionError, match="float64"):
            W.to("mps").double()
    assert torch.equal(_here(found.S), thin_svd(W).S)
