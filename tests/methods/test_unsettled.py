"""What CASA says of its own sensitivity, against decisions that were made from a better decomposition."""

import pytest
import torch

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.methods.casa.params import CasaParams
from loraport.methods.casa.routing import DriftRouting, routed
from loraport.methods.casa.selection import Selection, select

N = 96
PARAMS = CasaParams()


def _layer(seed: int, spectrum: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, LowRank]:
    g = torch.Generator().manual_seed(seed)

    def random(a: int, b: int) -> torch.Tensor:
        return torch.randn(a, b, generator=g, dtype=torch.float64)

    U, V = torch.linalg.qr(random(N, N)).Q, torch.linalg.qr(random(N, N)).Q
    update = LowRank((random(N, 4) * 0.02).float(), (random(4, N) * 0.2).float())
    return ((U * spectrum) @ V.T).float(), (random(N, N) * 0.01).float(), update


def _select(basis: SpectralBasis, drift: torch.Tensor, update: LowRank, tau: float) -> Selection:
    k = basis.head(PARAMS.head_energy)
    routing = DriftRouting.of(basis, DenseOperator(drift), k, PARAMS.density)
    return select(routed(basis, update).dense(), routing, basis.S, k, PARAMS.model_copy(update={"tau": tau}))


def _in_float64(W: torch.Tensor) -> SpectralBasis:
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    return SpectralBasis(U.float(), S.float(), Vh.float(), "float64")


def _mask(found: Selection) -> torch.Tensor:
    return found.rows[:, None] | found.cols


def _changes(bases: tuple[SpectralBasis, SpectralBasis], drift: torch.Tensor, update: LowRank) -> tuple[float, float]:
    """Share of entries that are dominant by one basis only: as foretold from the first, and as found."""
    one, two = (_select(basis, drift, update, 0.5) for basis in bases)
    return one.unsettled.share, float((_mask(one) != _mask(two)).float().mean())


def test_a_spectrum_with_wide_gaps_is_settled():
    for seed in range(6):
        W, drift, update = _layer(seed, torch.linspace(3, 0.3, N, dtype=torch.float64))
        assert _changes((thin_svd(W), _in_float64(W)), drift, update) == (0.0, 0.0)


@pytest.mark.parametrize("unit", [1.0, 64.0])
def test_what_is_foretold_is_of_the_size_of_what_is_found(unit):
    """Singular values close enough for float32 to turn directions, and an update of the size of their gaps."""
    width = 3e-3
    pairs = []
    for seed in range(20):
        W, drift, update = _layer(seed, 1 + torch.linspace(width, 0, N, dtype=torch.float64))
        update = update.scaled(0.4 * width / update.norm())
        pairs.append(_changes((thin_svd(unit * W), _in_float64(unit * W)), unit * drift, update.scaled(unit)))
    foretold, found = (sum(values) / len(values) for values in zip(*pairs, strict=True))
    assert found > 0
    assert found / 10 < foretold < 10 * found


def test_equal_singular_values_leave_every_arbitrated_entry_open():
    W, drift, update = _layer(1, torch.ones(N, dtype=torch.float64))
    found = _select(thin_svd(W), drift, update, 0.5)
    assert len(found.hits) > 0
    assert found.unsettled.hits > 0.9
