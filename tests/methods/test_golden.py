"""The frozen layers of the published procedure, reproduced."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.methods import registry
from loraport.methods.base import LayerInputs
from loraport.methods.casa.routing import DriftRouting, routed
from loraport.methods.casa.selection import select

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ["square_small", "square_strict", "square_one_cluster", "tall", "wide"]


def load(name: str, dtype: torch.dtype):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        meta = file.metadata()
    t = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    settings = {
        "tau": meta["rotation_threshold"],
        "q_dom": meta["q_threshold"],
        "q_act": meta["arbitrate_q"],
    }
    inputs = LayerInputs(
        name=name,
        update=LowRank(t["B"], t["A"]),
        basis=SpectralBasis(t["U"], t["S"], t["Vh"]),
        drift=DenseOperator((tensors["W_target"] - tensors["W_source"]).to(dtype)),
    )
    return t, meta, settings, inputs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_released_code_matches_the_frozen_update(name, dtype, tolerance):
    tensors, meta, settings, inputs = load(name, dtype)
    method, params = registry.resolve("released-code", settings)
    output = method.transfer(inputs, params)
    expected = tensors["delta_expected"]
    assert (output.update.dense() - expected).norm() / expected.norm() < tolerance
    assert output.update.norm() == pytest.approx(float(expected.norm()), rel=tolerance)
    assert output.stats["head"] == int(meta["head"])
    assert output.stats["clusters"] == int(meta["clusters"])


@pytest.mark.parametrize("name", NAMES)
def test_labels_and_masks_are_the_frozen_ones(name):
    tensors, _, settings, inputs = load(name, torch.float64)
    _, params = registry.resolve("released-code", settings)
    basis, update = inputs.basis, inputs.update
    k = tensors["labels"].numel()
    routing = DriftRouting.of(basis, inputs.drift, k, "head")
    selection = select(routed(basis, update).dense(), routing, basis.S, k, params)
    assert torch.equal(selection.clusters.labels, tensors["labels"])
    assert torch.equal(selection.rows[:, None] | selection.cols[None, :], tensors["dominant"])
    hits = torch.zeros(tensors["arbitrated"].numel(), dtype=torch.bool)
    hits[selection.hits] = True
    assert torch.equal(hits.view_as(tensors["arbitrated"]), tensors["arbitrated"])


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("square")])
def test_default_rules_agree_on_square_layers_and_with_a_basis_of_our_own(name):
    tensors, _, settings, inputs = load(name, torch.float64)
    method, params = registry.resolve("casa", settings)
    own = replace(inputs, basis=thin_svd(tensors["W_source"]))
    expected = tensors["delta_expected"]
    assert (method.transfer(own, params).update.dense() - expected).norm() / expected.norm() < 1e-9
