"""The baseline of the benchmarks computes what the published procedure computes; otherwise its times mean nothing."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

pytest.importorskip("scipy")
TESTS = Path(__file__).parents[1]
GOLDEN = sorted((TESTS / "golden").glob("*.safetensors"))


@pytest.fixture(scope="module")
def dense():
    path = TESTS.parent / "benchmarks" / "published_dense.py"
    spec = importlib.util.spec_from_file_location("published_dense", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_baseline_reproduces_the_golden_layers(dense, path):
    layer = load_file(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    U, S, Vh = layer["U"], layer["S"], layer["Vh"]
    C_lora = (U.T @ layer["B"]) @ (layer["A"] @ Vh.T)
    C_fft = dense.drift_routing(U, S, Vh, layer["W_target"])
    made = dense.decide(
        C_lora,
        C_fft,
        S,
        tau=float(header["rotation_threshold"]),
        q_dom=float(header["q_threshold"]),
        q_act=float(header["arbitrate_q"]),
    )
    delta = U @ made.routing @ Vh
    expected = layer["delta_expected"]
    assert float((delta - expected).norm() / expected.norm()) < 1e-9
    assert torch.equal(made.labels, layer["labels"].long())
    assert torch.equal(made.dominant, layer["dominant"].bool())
    assert torch.equal(made.arbitrated, layer["arbitrated"].bool())


def test_the_golden_layers_are_there():
    assert len(GOLDEN) >= 5
