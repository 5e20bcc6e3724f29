"""The synthetic models are what they claim to be: Wan by their keys, spectrum and drift as asked for."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loraport.adapters.parse import open_adapter
from loraport.models.checkpoint import open_checkpoint

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULES = ("synthetic", "matrices")


@pytest.fixture(scope="module")
def synthetic():
    sys.path.insert(0, str(FOLDER))
    import synthetic

    yield synthetic
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_a_pair_is_a_wan_with_its_loras(synthetic, tmp_path, naming):
    pair = synthetic.write_pair(tmp_path, "pico", 2, naming=naming, rank=8)
    source, target = open_checkpoint(pair.source), open_checkpoint(pair.target)
    assert (source.naming, source.unknown, target.unknown) == (naming, (), ())
    adapter = open_adapter(pair.loras[0], source)
    assert set(adapter.layers) == set(synthetic.layers(synthetic.SIZES["pico"], 2))
    first, second = (load_file(path) for path in pair.loras)
    assert not any(torch.equal(first[key], second[key]) for key in first)


def test_spectrum_and_drift_are_as_asked(synthetic):
    import matrices

    for m, n in ((160, 96), (96, 160), (96, 96)):
        source, target = matrices.weight_pair(m, n, 0.07, synthetic.seeded("weight", m, n))
        values = torch.linalg.svdvals(source)
        assert float(values[0]) == pytest.approx(8.0, rel=0.01)
        assert float(values[-1]) == pytest.approx(0.04, rel=0.01)
        assert float((target - source).norm() / source.norm()) == pytest.approx(0.07, rel=1e-4)


def test_a_layer_depends_on_its_name_only(synthetic, tmp_path):
    one = load_file(synthetic.write_pair(tmp_path / "one", "pico", 1).source)
    two = load_file(synthetic.write_pair(tmp_path / "two", "pico", 2).source)
    assert all(torch.equal(two[key], one[key]) for key in one)


def test_a_whole_model_has_every_layer_of_wan_and_no_two_alike(synthetic, tmp_path):
    pair = synthetic.write_pair(tmp_path, "pico", 3, whole=True, distinct=2)
    assert not open_checkpoint(pair.source).missing
    weights = load_file(pair.source)
    first, third = (weights[f"blocks.{block}.self_attn.q.weight"] for block in (0, 2))
    assert torch.equal(first.roll(1, 0), third)
    assert not torch.equal(first, third)
