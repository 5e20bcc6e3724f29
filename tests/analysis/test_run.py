"""An analysis of files: against the same figures from whole matrices, again from the cache, and by the command."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import loraport
import pico
from loraport.analysis.layer import LayerTensors, Stored, analyse, project
from loraport.analysis.plan import PARAMS, make_analysis_plan
from loraport.analysis.results import LayerAnalysis, PairAnalysis
from loraport.cli.main import app
from loraport.containers.dtypes import rounding_floor
from loraport.core.lowrank import LowRank
from loraport.core.operators import DenseOperator
from loraport.core.thin_svd import thin_svd
from loraport.engine.options import RunOptions
from loraport.errors import UsageError
from loraport.methods.casa.routing import DriftRouting

SOME = r"^blocks\.0\.(self_attn\.q|ffn\.[02])$"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> pico.Pico:
    """A pair in bf16, and a LoRA."""
    made = pico.write(tmp_path_factory.mktemp("pair"))
    for path in (made.source, made.target):
        save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    return made


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> RunOptions:
    return RunOptions(cache=str(tmp_path_factory.mktemp("cache")), workers=1)


@pytest.fixture(scope="module")
def found(files: pico.Pico, options: RunOptions) -> PairAnalysis:
    return loraport.analyze(files.source, files.target, files.lora, layers=SOME, options=options)


def test_a_layer_of_zeros_in_both_models_has_figures_that_are_numbers(tmp_path, options):
    """Models are published with layers that begin at zero; a LoRA may change one of these."""
    made = pico.write(tmp_path)
    zero = ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.0.ffn.2")
    for path in (made.source, made.target):
        save_file(load_file(path) | {f"{name}.weight": torch.zeros(pico.LAYERS[name]) for name in zero}, path)
    found = loraport.analyze(made.source, made.target, made.lora, layers=SOME, options=options)
    found.write(tmp_path / "pair.json")  # refuses what is no number
    assert {layer.name for layer in found.layers} == set(zero)
    assert {layer.weight_norm for layer in found.layers} == {0.0}


def test_loras_of_which_one_is_named_like_the_beginning_of_another_keep_their_digests(files, options, tmp_path):
    names = ("ink", "ink v2")
    paths = [tmp_path / f"{name}.safetensors" for name in names]
    for seed, path in enumerate(paths):
        save_file(pico.lora(seed), path)

    def digests(loras):
        found = loraport.analyze(
            files.source, files.target, loras, layers=r"^blocks\.0\.self_attn\.q$", options=options
        )
        return {each.role: each.digest for each in found.inputs}

    together, alone = digests(paths), digests(paths[:1])
    assert together["LoRA ink"] == alone["LoRA ink"]
    assert together["source"] == alone["source"]
    assert len(set(together.values())) == 4


def test_models_that_are_no_versions_of_each_other_are_doubted(files, options, tmp_path):
    save_file(pico.weights(99), tmp_path / "other.safetensors")
    found = loraport.analyze(files.source, tmp_path / "other.safetensors", layers=SOME, options=options)
    assert any("do not look like versions of one model" in text for text in found.warnings)


def test_no_two_loras_have_one_label(files, tmp_path):
    paths = [tmp_path / folder / f"{name}.safetensors" for folder, name in (("a", "ink"), ("b", "ink"), ("c", "ink 1"))]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(files.lora.read_bytes())

    def labels(*some):
        settings = {"source": str(files.source), "target": str(files.target)}
        return [each.label for each in make_analysis_plan([str(path) for path in some], settings).loras]

    assert labels(*paths[:2]) == ["ink 1", "ink 2"]
    assert len(set(labels(*paths))) == 3


def _from_whole_matrices(files: pico.Pico, name: str) -> LayerAnalysis:
    source, target, lora = (load_file(path) for path in (files.source, files.target, files.lora))
    W = source[f"{name}.weight"].float()
    D = target[f"{name}.weight"].float() - W
    key = f"diffusion_model.{name}.lora_"
    update = LowRank(lora[f"{key}B.weight"], lora[f"{key}A.weight"])
    upright = thin_svd(W if len(W) >= W.shape[1] else W.T)
    drift = DenseOperator(D if len(W) >= W.shape[1] else D.T)
    routing = DriftRouting.of(upright, drift, upright.head(0.9), "head")
    basis = upright if len(W) >= W.shape[1] else upright.T
    stored = Stored("BF16", rounding_floor("BF16", float(W.square().mean().sqrt())))
    shape = (W.shape[0], W.shape[1])
    tensors = LayerTensors(name, shape, basis, routing, DenseOperator(D), {"style": update}, stored)
    return analyse(project(tensors, PARAMS, seed=1))


def test_the_job_finds_what_whole_matrices_say(files, found):
    assert [layer.kind for layer in found.layers] == ["ffn.0", "ffn.2", "self_attn.q"]
    for layer in found.layers:
        other = _from_whole_matrices(files, layer.name)
        for figure in ("rigidity", "relative", "head_concentration", "largest"):
            mine, theirs = getattr(layer.drift, figure), getattr(other.drift, figure)
            assert mine.value == pytest.approx(theirs.value, rel=1e-3), figure
            assert mine.gaussian == pytest.approx(theirs.gaussian, rel=0.5), figure  # another draw, of a narrow layer
        assert layer.drift.rotation.measured == pytest.approx(other.drift.rotation.measured, rel=1e-2, abs=1e-3)
        assert layer.loras[0].meeting.cosine.value == pytest.approx(other.loras[0].meeting.cosine.value, abs=1e-5)
        assert layer.loras[0].routing.clusters == other.loras[0].routing.clusters
        assert layer.drift.rigidity.rounding == pytest.approx(other.drift.rigidity.rounding, rel=0.5)


def test_what_went_in_is_told_with_sizes(files, found):
    told = {each.role: (Path(each.file), each.bytes) for each in found.inputs}
    label, named = found.loras[0].label, {"source": files.source, "target": files.target}
    assert told == {role: (path, path.stat().st_size) for role, path in (named | {f"LoRA {label}": files.lora}).items()}


def test_the_same_again_comes_from_the_cache(files, options, found):
    events: list[object] = []
    again = loraport.analyze(
        files.source, files.target, files.lora, layers=SOME, options=options, on_event=events.append
    )
    assert all(layer.cached for layer in again.layers)
    plain = [dataclasses.replace(layer, seconds=0.0, cached=False) for layer in found.layers]
    assert [dataclasses.replace(layer, seconds=0.0, cached=False) for layer in again.layers] == plain
    assert len(events) == 3


def test_threads_without_a_cache_give_the_same(files, found):
    other = loraport.analyze(
        files.source, files.target, files.lora, layers=SOME, options=RunOptions(cache="off", executor="thread")
    )
    for one, two in zip(found.layers, other.layers, strict=True):
        assert dataclasses.replace(one, seconds=0.0, cached=False) == dataclasses.replace(two, seconds=0.0)


def test_of_a_pair_alone_all_linear_layers_are_looked_at(files):
    found = loraport.analyze(files.source, files.target, layers=r"^blocks\.1\.", options=RunOptions(cache="off"))
    assert len(found.layers) == len(pico.LINEARS)
    assert all(layer.loras == () and layer.block == 1 for layer in found.layers)
    assert found.loras == ()


def test_a_target_made_by_a_lora_has_no_rounding_and_its_rank(files):
    found = loraport.analyze(
        files.source, target_lora=files.lora, layers="blocks.0.self_attn.q", options=RunOptions(cache="off")
    )
    drift = found.layers[0].drift
    assert drift.relative.rounding is None
    kept = dict(zip(drift.energy.ranks, drift.energy.kept, strict=True))
    assert kept[4] == pytest.approx(1.0, abs=1e-4)
    assert kept[2] < 0.9


def test_equal_models_are_said_to_be(files):
    found = loraport.analyze(
        files.source, files.source, files.lora, layers=r"^blocks\.0\.ffn\.0$", options=RunOptions(cache="off")
    )
    assert any("are equal in every layer" in text for text in found.warnings)
    assert found.layers[0].drift.relative.value == 0.0


def test_layers_that_match_nothing(files):
    with pytest.raises(UsageError, match="no layer matches"):
        loraport.analyze(files.source, files.target, layers="nonsense")


def test_the_command(files, options, tmp_path):
    def invoke(*words: object):
        given = ["analyze", *map(str, words), "--cache", str(options.cache), "--workers", "1"]
        return CliRunner().invoke(app, given, prog_name="loraport")

    output = tmp_path / "analysis.json"
    pair = (files.lora, "--source", files.source, "--target", files.target, "--layers", SOME)
    done = invoke(*pair, "-o", output, "-v")
    assert done.exit_code == 0, done.output
    assert "head concentration" in done.stdout
    read = PairAnalysis.from_json(json.loads(output.read_text(encoding="utf-8")))
    assert [layer.name for layer in read.layers] == ["blocks.0.ffn.0", "blocks.0.ffn.2", "blocks.0.self_attn.q"]
    assert invoke(*pair, "-o", output).exit_code == 5  # it exists
    page = tmp_path / "analysis.html"
    assert invoke(*pair, "-o", page).exit_code == 0  # the figures, from the cache
    assert "blocks.0.ffn.2" in page.read_text(encoding="utf-8")
    assert invoke(*pair).exit_code == 2
    assert invoke(*pair, "-o", tmp_path / "analysis.txt").exit_code == 2
    assert invoke(*pair, "-o", files.lora.with_suffix(".json")).exit_code == 0


def test_figures_do_not_touch_the_inputs(files):
    """Half of the work is done in place."""
    before = load_file(files.source)
    loraport.analyze(files.source, files.target, files.lora, layers=SOME, options=RunOptions(cache="off"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(files.source).items())
