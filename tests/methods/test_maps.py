"""What CASA draws of a layer, by another route: dense matrices in the source's directions, block by block."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.methods import registry
from loraport.methods.base import LayerInputs
from loraport.methods.casa.routing import DriftRouting
from loraport.methods.maps import BANDS, MapValues, band_width, bands

SHAPES = [(48, 48), (12, 12), (50, 50), (70, 33), (33, 70)]
NAMES = ("casa", "restore-only", "arbitrate-only")


def _layer(m: int, n: int, rank: int = 3) -> LayerInputs:
    g = torch.Generator().manual_seed(m * 100 + n)

    def draw(a: int, b: int) -> Tensor:
        return torch.randn(a, b, generator=g, dtype=torch.float64)

    W = draw(m, n) @ torch.diag(torch.linspace(2, 0.1, n, dtype=torch.float64))
    return LayerInputs("layer", LowRank(draw(m, rank), draw(rank, n)), thin_svd(W), None, DenseOperator(draw(m, n)))


def _run(name: str, inputs: LayerInputs) -> tuple[dict[str, Tensor], Tensor]:
    """The maps, and what the method takes away from the update, in the source's directions."""
    method, params = registry.resolve(name)
    found, basis = method.transfer(inputs, params), inputs.require_basis()
    taken = inputs.update.dense() - found.update.dense()
    return {key: torch.tensor(each.values) for key, each in found.maps.items()}, basis.U.T @ taken @ basis.Vh.T


def _means(X: Tensor) -> Tensor:
    """Over the blocks between bands of a square matrix."""
    pieces = X.double().split(band_width(len(X)))
    return torch.stack([torch.stack([b.mean() for b in piece.split(band_width(len(X)), dim=1)]) for piece in pieces])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [3, 20])
def test_the_maps_are_means_over_blocks_between_bands(shape, rank):
    inputs = _layer(*shape, rank)
    basis, (m, n) = inputs.require_basis(), shape
    found = {name: _run(name, inputs) for name in NAMES}
    maps, _ = found["casa"]
    for key, at, change in (("drift", 0, inputs.require_drift()), ("update", 1, inputs.update)):
        C = basis.U.T @ change.dense() @ basis.Vh.T
        even = change.norm() / math.sqrt(m * n)
        assert torch.allclose(maps[key], (_means(C.square()).sqrt() / even).float(), atol=1e-5)
        width = band_width(len(C))
        for key, columns in (("sends", C), ("receives", C.T)):
            norms = [piece.square().mean().sqrt() / even for piece in columns.split(width, dim=1)]
            assert torch.allclose(maps[key][at], torch.stack(norms).float(), atol=1e-5)
    for key, name in (("restored", "restore-only"), ("arbitrated", "arbitrate-only")):
        own, taken = found[name]
        assert torch.allclose(own[key], _means(taken.abs() > 1e-9).float(), atol=1e-5)
        assert torch.allclose(maps[key], own[key])
        assert float(own[key].max()) > 0


def test_what_is_not_done_has_no_map():
    inputs = _layer(24, 24)
    assert "arbitrated" not in _run("restore-only", inputs)[0]
    assert "restored" not in _run("arbitrate-only", inputs)[0]
    assert _run("casa", replace(inputs, drift=DenseOperator(torch.zeros(24, 24, dtype=torch.float64))))[0] == {}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_kept_routing_of_an_earlier_version_gives_the_same_maps(shape):
    inputs = _layer(*shape)
    method, params = registry.resolve("casa")
    kept = method.prepare(inputs, params)
    older = {key: tensor for key, tensor in kept.items() if key != "bands"}
    assert older.keys() < kept.keys()
    assert torch.equal(DriftRouting.from_tensors(older).bands, kept["bands"])
    fresh, again = (method.transfer(replace(inputs, prepared=each), params).maps for each in (None, older))
    assert fresh == again


def test_an_update_of_any_rank_has_the_same_map():
    """By its factors, and by the matrix where these are no smaller."""
    inputs = _layer(48, 48)
    more = replace(inputs, update=inputs.update.padded(40))
    few, many = (torch.tensor(_run("casa", each)[0]["update"].tolist()) for each in (inputs, more))
    assert torch.allclose(few, many)


def test_gains_by_singular_pair_make_the_new_update():
    eye = DenseOperator(torch.eye(40, 24))
    inputs = replace(_layer(40, 24, rank=8), source=eye, target=eye)
    method, params = registry.resolve("matched-gain")
    found = method.transfer(inputs, params)
    (gains,) = found.maps["pairs"].values
    U, S, Vh = inputs.update.svd()
    assert torch.allclose(found.update.dense(), U @ torch.diag(S * torch.tensor(gains, dtype=S.dtype)) @ Vh)
    assert max(gains) > 1


@pytest.mark.parametrize("count", [*range(1, 40), 1536, 5120, 13824, 13825])
def test_bands_hold_every_direction(count):
    width = band_width(count)
    assert bands(count) <= BANDS
    assert width * (bands(count) - 1) < count <= width * bands(count)
    assert -(-count // bands(count)) == width  # as a page finds it again


def test_turning_a_map_twice_gives_it_back():
    map_ = MapValues(((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), (20, 30))
    assert MapValues(((1.0, 4.0), (2.0, 5.0), (3.0, 6.0)), (30, 20)) == map_.T
    assert map_ == map_.T.T
