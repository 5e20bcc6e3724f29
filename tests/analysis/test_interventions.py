"""The two interventions: against their closed forms, on files, and what cannot be written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor
from typer.testing import CliRunner

import pico
from loraport.analysis.intervening import amplify_head, remove_drift
from loraport.analysis.interventions import nondominant_drift, strongest_head_blocks
from loraport.cli.main import app
from loraport.containers.safetensors import read_header
from loraport.core.basis import SpectralBasis
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.engine.options import RunOptions
from loraport.errors import FileError, UnsupportedError, UsageError
from loraport.methods.casa.routing import DriftRouting

OFF = RunOptions(cache="off")
SOME = r"^blocks\.0\.(self_attn\.q|ffn\.[02])$"


def layer(m: int, n: int) -> tuple[SpectralBasis, Tensor, DriftRouting]:
    generator = Generator().manual_seed(m)
    W, D = (torch.randn(m, n, generator=generator, dtype=torch.float64) for _ in range(2))
    basis = thin_svd(W)
    return basis, 0.1 * D, DriftRouting.of(basis, DenseOperator(0.1 * D), basis.head(0.9), "head")


@pytest.mark.parametrize("shape", [(12, 12), (20, 12)])
@pytest.mark.parametrize("q", [0.0, 0.5, 0.9])
def test_what_is_removed_is_the_drift_between_nondominant_directions(shape, q):
    basis, D, routing = layer(*shape)
    found = nondominant_drift(basis, routing, DenseOperator(D), q)
    full = torch.linalg.svd((basis.U * basis.S) @ basis.Vh, full_matrices=True)
    C, k = full.U.T @ D @ full.Vh.T, len(routing.receivers)
    rows, cols = torch.zeros(shape[0], dtype=torch.bool), torch.zeros(shape[1], dtype=torch.bool)
    for marks, density in ((rows, C[:k, :k].norm(dim=1)), (cols, C[:k, :k].norm(dim=0))):
        marks[:k] = density >= torch.quantile(density, q)
    expected = full.U @ (C * (~rows)[:, None] * ~cols) @ full.Vh
    torch.testing.assert_close(found, expected)
    assert float(found.norm()) < float(D.norm())


def test_the_strongest_entries_of_the_head():
    basis, _, routing = layer(20, 12)
    k = len(routing.receivers)
    found = basis.U.T @ strongest_head_blocks(basis, routing, 0.05) @ basis.Vh.T
    C = routing.C[:k, :k]
    largest = C.abs().reshape(-1).sort(descending=True).values[: int(0.05 * (k * k - 1)) + 1]
    kept = found[:k, :k].abs().reshape(-1).sort(descending=True).values
    torch.testing.assert_close(kept[: len(largest)], largest)
    assert int((found.abs() > 1e-9).sum()) == len(largest)


def test_all_of_the_head_is_the_drift_within_it():
    basis, _, routing = layer(12, 12)
    k = len(routing.receivers)
    found = strongest_head_blocks(basis, routing, 1.0)
    torch.testing.assert_close(
        basis.U.T @ found @ basis.Vh.T[:, :k], torch.nn.functional.pad(routing.C[:k, :k], (0, 0, 0, 12 - k))
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pico.Pico:
    return pico.write(tmp_path_factory.mktemp("pair"))


def test_remove_drift_writes_the_closed_form_and_leaves_the_rest(files, tmp_path):
    output = tmp_path / "without.safetensors"
    done = remove_drift(files.source, files.target, output, quantile=0.5, layers=SOME, options=OFF)
    assert done.tensors == 3
    source, target, found = (load_file(path) for path in (files.source, files.target, output))
    assert found.keys() == target.keys()
    for name in target:
        if name.removesuffix(".weight") not in {f"blocks.0.{each}" for each in ("self_attn.q", "ffn.0", "ffn.2")}:
            assert torch.equal(found[name], target[name]), name
            continue
        W, D = source[name].double(), target[name].double() - source[name].double()
        wide = len(W) < W.shape[1]
        W, D = (W.T, D.T) if wide else (W, D)
        basis = thin_svd(W)
        routing = DriftRouting.of(basis, DenseOperator(D), basis.head(0.9), "head")
        removed = nondominant_drift(basis, routing, DenseOperator(D), 0.5)
        expected = target[name].double() - (removed.T if wide else removed)
        torch.testing.assert_close(found[name].double(), expected, atol=1e-4, rtol=0)
    record = json.loads(read_header(output).metadata["loraport.merged"])
    assert record == [{"intervention": "remove-drift", "quantile": 0.5, "layers": SOME}]


def test_amplify_by_one_changes_nothing_and_by_two_moves_along_the_drift(files, tmp_path):
    same = amplify_head(files.source, files.target, tmp_path / "same.safetensors", factor=1.0, layers=SOME, options=OFF)
    target = load_file(files.target)
    assert all(torch.equal(tensor, target[name]) for name, tensor in load_file(same.output).items())
    more = amplify_head(files.source, files.target, tmp_path / "more.safetensors", factor=3.0, layers=SOME, options=OFF)
    name = "blocks.0.self_attn.q.weight"
    change = load_file(more.output)[name] - target[name]
    drift = target[name] - load_file(files.source)[name]
    # of what stands in 5 % of the entries twice as much is added, and it is at right angles to the rest
    assert float((change * drift).sum()) == pytest.approx(float(change.square().sum()) / 2, rel=1e-3)


def test_what_is_refused(files, tmp_path):
    with pytest.raises(UsageError, match="share"):
        remove_drift(files.source, files.target, tmp_path / "no.safetensors", quantile=2.0)
    with pytest.raises(UsageError, match="finite"):
        amplify_head(files.source, files.target, tmp_path / "no.safetensors", factor=float("nan"))
    small = tmp_path / "fp8.safetensors"
    save_file(
        {
            name: x.to(torch.float8_e4m3fn) if name.endswith("q.weight") else x
            for name, x in load_file(files.target).items()
        },
        small,
    )
    with pytest.raises(UnsupportedError, match="quantised"):
        remove_drift(files.source, small, tmp_path / "no.safetensors", layers=SOME, options=OFF)
    assert not (tmp_path / "no.safetensors").exists()
    source = tmp_path / "source.safetensors"
    shutil.copy(files.source, source)
    with pytest.raises(FileError, match="would replace the source"):
        remove_drift(source, files.target, source, layers=SOME, options=OFF.model_copy(update={"overwrite": True}))
    assert source.read_bytes() == files.source.read_bytes()


def test_the_commands(files, tmp_path):
    def invoke(*words: object):
        return CliRunner().invoke(app, ["intervene", *map(str, words)], prog_name="loraport")

    pair = ("-s", files.source, "-t", files.target, "--layers", SOME, "--cache", "off")
    one = tmp_path / "one.safetensors"
    done = invoke("remove-drift", *pair, "--quantile", "0.9", "-o", one)
    assert done.exit_code == 0, done.output
    assert "changed 3 tensors" in done.stdout
    assert invoke("remove-drift", *pair, "-o", one).exit_code == 5
    other = invoke("amplify-head", *pair, "--share", "0.1", "-o", tmp_path / "two.safetensors", "--json")
    assert json.loads(other.stdout)["tensors"] == 3
    assert invoke("amplify-head", *pair, "-o", files.target, "--overwrite").exit_code == 5
