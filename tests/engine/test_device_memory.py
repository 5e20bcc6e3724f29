"""What a layer takes of a device's memory: as docs/cost.md says, and what finds no room goes to the CPU.

Tensors of a pretended device are counted; what its libraries take for themselves is not.
"""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bench_layer
import loraport.containers.tensors
import loraport.core.operator
from loraport.engine import on_device
from loraport.engine.ahead import Ahead
from loraport.engine.executor import Slot
from loraport.engine.job import LayerJob
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe
from loraport.engine.run import run
from loraport.engine.run_cache import open_cache
from loraport.engine.worker import LayerResult, Worker
from loraport.errors import NumericalError
from loraport.methods import registry
from loraport.methods.casa import arbitration, clusters
from pretended_device import DEVICE, Memory, pretended_cuda, pretended_device, pretended_mps
from steps import bytes_on_a_card

RANK = 8


@pytest.fixture(autouse=True)
def small_strips(monkeypatch):
    """In proportion to the layers, as on a card."""
    for module, name in (
        (loraport.containers.tensors, "_STRIP_ON_A_DEVICE"),
        (loraport.core.operator, "_STRIP_ON_A_DEVICE"),
        (arbitration, "_CHUNK_ON_A_DEVICE"),
        (clusters, "_STRIP"),
        (clusters, "_SORTED"),
    ):
        monkeypatch.setattr(module, name, 1 << 14)


def _job(folder: Path, m: int, n: int, **settings: str) -> tuple[LayerJob, Worker]:
    """A layer with the spectrum of Wan's, on disk, and a worker without a cache."""
    W, drift, update = bench_layer.make_layer(m, n, RANK, 0)
    other = {"other.weight": torch.ones(8, 8)}
    save_file({"layer.weight": W.bfloat16()} | other, folder / "source.safetensors")
    save_file({"layer.weight": (W + drift).bfloat16()} | other, folder / "target.safetensors")
    factors = {"transformer.layer.lora_A.weight": update.A, "transformer.layer.lora_B.weight": update.B}
    save_file({key: factor.contiguous() for key, factor in factors.items()}, folder / "lora.safetensors")
    settings = {"method": "casa", "architecture": "any", "dtype": "float32"} | settings
    plan = make_plan(Recipe.build(_files(folder) | settings))
    store, reader = open_cache(plan.identities, RunOptions(cache="off"), lambda message: None)
    return plan.jobs[0], Worker(store, reader)


def _files(folder: Path) -> dict[str, str]:
    return {role: str(folder / f"{role}.safetensors") for role in ("lora", "source", "target")}


def _on_the_device(job: LayerJob, worker: Worker, memory: Memory) -> LayerResult:
    with pretended_device(memory=memory):
        return worker._run(job, worker.bring(job), DEVICE)


@pytest.mark.parametrize("shape", [(448, 448), (448, 1344), (2688, 448)], ids=str)
def test_a_first_lora_takes_two_matrices_and_six_squares(shape, tmp_path):
    job, worker = _job(tmp_path, *shape)
    memory = Memory()
    found = _on_the_device(job, worker, memory)
    assert memory.now == 0
    said, thin = bytes_on_a_card(shape), 4 * 8 * (RANK + 8) * sum(shape)
    assert 0.75 * said < memory.peak < said + thin, memory.where
    assert memory.peak < job.card_bytes
    assert memory.peak < job.peak_bytes
    alone = worker(job, Slot("cpu", 1, 10**9))
    assert found.report.stats["clusters"] == alone.report.stats["clusters"]
    assert torch.allclose(found.update.dense(), alone.update.dense(), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "large", "squares"), [({"method": "matched-gain"}, 12, 0), ({"rank": "energy=0.9"}, 20, 28)], ids=str
)
def test_other_methods_and_ranks_take_what_the_page_says(settings, large, squares, tmp_path):
    m, n = 1024, 320
    page = (Path(__file__).parents[2] / "docs" / "cost.md").read_text("utf-8")
    assert f"`{large}·p·l{f' + {squares}·p²' if squares else ''}` |" in page
    job, worker = _job(tmp_path, m, n, **settings)
    memory = Memory()
    _on_the_device(job, worker, memory)
    said = large * m * n + squares * n * n
    assert 0.85 * said < memory.peak < said + 4 * 8 * (RANK + 8) * (m + n), memory.where


@pytest.mark.parametrize("rank", ["same", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", [*registry.names(), "released-code"])
def test_no_method_takes_more_of_a_card_than_a_plan_reckons_with(method, rank, tmp_path):
    job, worker = _job(tmp_path, 768, 192, method=method, rank=rank)
    memory = Memory()
    _on_the_device(job, worker, memory)
    assert memory.peak < job.bytes_on("cuda:0"), memory.where


def test_a_layer_that_finds_no_room_is_computed_on_the_cpu(tmp_path, monkeypatch):
    job, worker = _job(tmp_path, 96, 64)
    alone = worker(job, Slot("cpu", 1, 10**9))
    memory = Memory(room=4 * 96 * 64 * 2)
    monkeypatch.setattr(on_device, "_turns", {})
    with pretended_device(memory=memory):
        found = worker(job, Slot("meta", 1, 10**9))
    assert "ran out of memory" in found.warnings[0]
    assert memory.peak > 4 * 96 * 64
    assert memory.now == 0
    assert torch.equal(found.update.B, alone.update.B)


def test_a_whole_run_on_a_card(tmp_path, monkeypatch):
    """By its name, so that what is done for CUDA alone is done: a first LoRA, a further one, one without room."""
    _job(tmp_path, 256, 160)
    plan = make_plan(Recipe.build(_files(tmp_path) | {"method": "casa", "architecture": "any", "dtype": "float32"}))
    out, cache = tmp_path / "out.safetensors", tmp_path / "cache"
    options = RunOptions(cache=str(cache), log="off", executor="serial", overwrite=True, device="cuda:0")
    run(plan, out, options.model_copy(update={"device": "cpu", "cache": "off"}))
    alone, found = load_file(out), []
    monkeypatch.setattr(on_device, "_turns", {})
    for memory, more in ((Memory(), {}), (Memory(), {"max_memory": 10**9}), (Memory(room=400_000), {"cache": "off"})):
        with pretended_cuda(monkeypatch, memory) as asked:
            report = run(plan, out, options.model_copy(update=more))
        (layer,), said = report.layers, any("ran out of memory" in text for text in report.warnings)
        found.append((layer.device, layer.stats["svd_driver"], asked["synchronize"] > 1, said))
        bounds = ["max_memory" in more, asked["set_per_process_memory_fraction"] == 2]
        assert bounds[0] == bounds[1]
        assert memory.now == 0
        assert asked["empty_cache"] >= 1  # the program around it may want the memory next
        assert asked["empty_host_cache"] == hasattr(torch.accelerator, "empty_host_cache")
        for key, factor in load_file(out).items():
            assert torch.allclose(factor, alone[key], atol=1e-5)
        shutil.rmtree(cache / "result", ignore_errors=True)
    assert found == [("cuda:0", "gram", True, False), ("cuda:0", "gram", False, False), ("cpu", "gram", False, True)]


def test_a_whole_run_on_apples_gpu(tmp_path, monkeypatch):
    _job(tmp_path, 160, 256)
    plan = make_plan(Recipe.build(_files(tmp_path) | {"method": "casa", "architecture": "any", "dtype": "float32"}))
    out = tmp_path / "out.safetensors"
    options = RunOptions(cache="off", log="off", executor="serial", overwrite=True)
    run(plan, out, options)
    alone = load_file(out)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pretended_mps():
        report = run(plan, out, options.model_copy(update={"device": "mps", "cache": str(tmp_path / "cache")}))
    assert [layer.device for layer in report.layers] == ["mps"]
    for key, factor in load_file(out).items():
        assert torch.allclose(factor, alone[key], atol=1e-5)


def test_one_process_of_several_keeps_nothing_of_a_device_for_later(tmp_path, monkeypatch):
    job, worker = _job(tmp_path, 96, 64)
    released: list[str] = []
    monkeypatch.setattr("loraport.engine.worker.release_memory", released.append)
    other = pickle.loads(pickle.dumps(worker))
    with pretended_device():
        other(job, Slot("meta", 1, 10**9))
    assert released == ["meta"]
    with pretended_device(), Ahead([job], worker.bring, lambda job: 1, 10, 1, lambda job: 1) as ahead:
        replace(worker, ahead=ahead)(job, Slot("meta", 1, 10**9))
    assert released == ["meta"]


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("method", ["casa", "matched-gain"])
def test_what_is_not_finite_is_said_by_its_place(side, method, tmp_path):
    _job(tmp_path, 96, 64)
    for role in ("source", "target"):
        weight = torch.ones(96, 64)
        weight[77, 5] = torch.nan if role == side else 1.0
        save_file({"layer.weight": weight, "other.weight": torch.ones(8, 8)}, tmp_path / f"{role}.safetensors")
    plan = make_plan(Recipe.build(_files(tmp_path) | {"method": method, "architecture": "any"}))
    for device in (DEVICE, torch.device("cpu")):
        store, reader = open_cache(plan.identities, RunOptions(cache="off"), lambda message: None)
        worker = Worker(store, reader)
        with pretended_device(), pytest.raises(NumericalError, match=r"\[77, 5\]") as raised:
            worker._run(plan.jobs[0], worker.bring(plan.jobs[0]), device)
        assert str(tmp_path / f"{side}.safetensors") in str(raised.value)
