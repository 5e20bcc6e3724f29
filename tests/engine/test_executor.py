"""Executors: same results whoever calls, bounded work in flight, errors come home."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import pico
from loraport.adapters.update import LayerUpdate
from loraport.engine import devices
from loraport.engine.executor import (
    Limits,
    Slot,
    dispatch,
    executor_for,
    for_tensors,
    in_flight,
    local_slots,
    phases,
)
from loraport.engine.executors import NAMES, make_executor
from loraport.engine.job import WIDE_ELEMENTS, LayerJob
from loraport.engine.many.plan import LayerBatch
from loraport.engine.on_device import with_the_cpu_behind
from loraport.engine.options import RunOptions
from loraport.engine.rank import RankRule
from loraport.errors import FileError, NumericalError, UsageError
from loraport.machine import cores

UPDATE = LayerUpdate("layer", "lora", {}, 1.0, "no alpha", 4, ("layer.lora_A.weight",), (4, 4))


def _job(name: str, shape=(4, 4), peak_bytes: int = 100) -> LayerJob:
    return LayerJob(
        name=name,
        shape=shape,
        method="direct",
        params={},
        update=UPDATE,
        source=None,
        target=None,
        target_updates={},
        has_drift=False,
        round_to=None,
        rank=RankRule("fixed", 4),
        amount=1.0,
        dtype="float32",
        cost=1.0,
        peak_bytes=peak_bytes,
    )


def _threads(job: LayerJob, slot: Slot) -> tuple[str, int]:
    assert slot.threads == torch.get_num_threads()
    return job.name, torch.get_num_threads()


def _die(job: LayerJob, slot: Slot) -> str:
    if job.name != "layer 0":
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # on Windows either ends it at once
    return job.name


def _ctrl_c(job: LayerJob, slot: Slot) -> str:
    signal.raise_signal(signal.SIGINT)
    return job.name


def _fail(job: LayerJob, slot: Slot) -> str:
    if job.name == "bad":
        raise NumericalError("not finite", where=job.name)
    return job.name


JOBS = [_job(f"layer {index}") for index in range(9)]


def _executor(name: str, workers: int | None = None):
    return make_executor(name, Limits(workers=workers))


@pytest.fixture(autouse=True)
def _three_threads_outside():
    """Another number than any executor settles on, so that one which leaves it alone is found out."""
    before = torch.get_num_threads()
    torch.set_num_threads(3 if cores() != 3 else 2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_every_job_is_done_once_with_one_thread(executor):
    done = list(_executor(executor, 3).run(JOBS, _threads))
    assert sorted(done) == sorted((job.name, 1) for job in JOBS)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("executor", ["serial", "thread", "process"])
def test_of_no_job_nothing_comes(executor, device, monkeypatch):
    """As of an extraction where only biases changed."""
    monkeypatch.setattr(devices, "pick_devices", lambda wanted: (device,))
    monkeypatch.setattr(devices, "usable_bytes", lambda device: 10_000)
    if executor != "process":
        monkeypatch.setattr(f"loraport.engine.executors.{executor}.warm_up", lambda device: None)
    assert list(_executor(executor, 2).run([], _threads)) == []


def test_process_workers_give_the_same():
    done = list(_executor("process", 2).run(JOBS[:3], _threads))
    assert sorted(done) == sorted((job.name, 1) for job in JOBS[:3])


@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_wide_layers_get_all_cores_and_the_setting_is_put_back(executor):
    before = torch.get_num_threads()
    wide = _job("wide", shape=(WIDE_ELEMENTS, 2))
    done = dict(_executor(executor).run([wide, *JOBS], _threads))
    assert done.pop("wide") == cores()
    assert set(done.values()) == {1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("executor", "workers"), [("serial", 1), ("thread", 2), ("process", 1)])
def test_an_error_comes_home_as_itself(executor, workers):
    jobs = [JOBS[0], _job("bad"), *JOBS[1:]]
    with pytest.raises(NumericalError, match="not finite") as caught:
        list(_executor(executor, workers).run(jobs, _fail))
    assert caught.value.where == "bad"


def test_memory_limits_the_number_of_workers():
    options = RunOptions(device="cpu", workers=4, max_memory=250)
    slots = executor_for(options).slots()
    assert in_flight(JOBS, slots) == 2
    assert in_flight([replace(JOBS[0], peak_bytes=1000), *JOBS], slots) == 1  # one always runs
    assert in_flight(JOBS, executor_for(RunOptions(device="cpu", executor="serial")).slots()) == 1


def test_the_names_are_the_files():
    assert NAMES == ("process", "ray", "serial", "thread")
    for name in ("process", "serial", "thread"):
        (first, *_) = _executor(name).slots()
        assert (first.device, first.threads) == ("cpu", 1)
    with pytest.raises(UsageError, match="no executor named") as caught:
        executor_for(RunOptions(executor="rays"))
    assert (caught.value.fix or "").startswith("did you mean 'ray'?")


def test_a_worker_that_is_killed_is_said():
    with pytest.raises(FileError, match="a worker process was killed") as caught:
        list(_executor("process", 1).run(JOBS[:2], _die))
    assert caught.value.where == "in progress: layer 1"  # and not what is finished


def test_a_worker_does_not_act_on_ctrl_c_where_signals_cannot_be_held(monkeypatch):
    monkeypatch.delattr(signal, "pthread_sigmask", raising=False)  # Windows has none
    assert list(_executor("process", 1).run(JOBS[:1], _ctrl_c)) == ["layer 0"]


class _Held:
    """Begins jobs when told to and records which ran at the same time."""

    def __init__(self):
        self.now: dict[str, list[LayerJob]] = {}
        self.seen: list[dict[str, list[int]]] = []
        self.lock = threading.Lock()

    def __call__(self, job: LayerJob, slot: Slot) -> str:
        with self.lock:
            self.now.setdefault(slot.device, []).append(job)
            self.seen.append({device: [job.peak_bytes for job in jobs] for device, jobs in self.now.items()})
        time.sleep(0.02)
        with self.lock:
            self.now[slot.device].remove(job)
        return job.name


def test_the_memory_of_each_device_bounds_what_is_in_flight_there():
    """Two devices of 250 and 120 bytes, four slots: layers of 100 bytes run two and one at a time, a giant alone."""
    slots = [Slot("cuda:0", 1, 125)] * 2 + [Slot("cuda:1", 1, 60)] * 2
    jobs = [_job(f"layer {index}") for index in range(12)] + [_job("giant", peak_bytes=1000)]
    held = _Held()
    with ThreadPoolExecutor(4) as pool:
        done = list(dispatch(jobs, slots, lambda job, slot: pool.submit(held, job, slot)))
    assert sorted(done) == sorted(job.name for job in jobs)
    for moment in held.seen:
        for device, room in (("cuda:0", 250), ("cuda:1", 120)):
            sizes = moment.get(device, [])
            assert sum(sizes) <= room or len(sizes) == 1
    assert max(len(moment.get("cuda:0", [])) for moment in held.seen) == 2
    assert {device for moment in held.seen for device in moment} == {"cuda:0", "cuda:1"}


def test_layers_are_admitted_to_a_gpu_by_what_they_take_there():
    """100 bytes of a processor's memory, 60 of a GPU's: two fit into 120 of the latter, one into 120 of the former."""
    jobs = [replace(job, card_bytes=60) for job in JOBS[:6]]
    for device, most in (("cuda:0", 2), ("cpu", 1), ("mps", 1)):
        slots, held = [Slot(device, 1, 60)] * 2, _Held()
        with ThreadPoolExecutor(2) as pool:
            list(dispatch(jobs, slots, lambda job, slot, pool=pool, held=held: pool.submit(held, job, slot)))
        assert max(len(moment[device]) for moment in held.seen) == most
        assert in_flight(jobs, slots) == most
    batch = LayerBatch(
        (4, 4), 130, {0: jobs[0], 1: replace(jobs[1], card_bytes=50)}, set()
    )  # what is finished lies on the host
    assert (batch.bytes_on("cuda:0"), batch.bytes_on("cpu")) == (60, 130)


def test_wide_layers_run_one_at_a_time_on_the_cpu():
    wide = _job("wide", shape=(WIDE_ELEMENTS, 2))
    slots = [Slot("cpu", 1, 50), Slot("cpu", 1, 50)]
    (narrow, at_once), (broad, alone) = phases([wide, JOBS[0]], slots)
    assert (narrow, broad) == ([JOBS[0]], [wide])
    assert at_once == slots
    assert alone == [Slot("cpu", 1, 100)]


@pytest.mark.parametrize("name", ["serial", "thread"])
@pytest.mark.parametrize(("device", "threads"), [("mps", cores()), ("cuda:0", 1)])
def test_on_a_device_wide_layers_run_beside_the_others_in_the_given_order(monkeypatch, name, device, threads):
    """Apple's GPU leaves decompositions to the CPU, CUDA small ones only."""
    monkeypatch.setattr(devices, "pick_devices", lambda wanted: (device,))
    monkeypatch.setattr(devices, "usable_bytes", lambda device: 10_000)
    monkeypatch.setattr(f"loraport.engine.executors.{name}.warm_up", lambda device: None)
    jobs = [JOBS[0], _job("wide", shape=(WIDE_ELEMENTS, 2)), JOBS[1]]
    ((some, _),) = phases(jobs, [Slot(device, 1, 50)] * 2)
    assert some == jobs
    assert list(_executor(name, 1).run(jobs, _threads)) == [("layer 0", 1), ("wide", threads), ("layer 1", 1)]


def _held_by(job: LayerJob, slot: Slot) -> tuple[int, float, float]:
    began = time.monotonic()
    time.sleep(0.02)
    return slot.most or 0, began, time.monotonic()


def test_processes_that_share_a_gpu_are_bound_to_its_memory_together(monkeypatch):
    """Each is told what its own tensors may take; torch binds one process by itself."""
    monkeypatch.setattr(devices, "pick_devices", lambda wanted: ("cuda:0",))
    monkeypatch.setattr(devices, "usable_bytes", lambda device: 10_000)
    monkeypatch.setattr("loraport.engine.executor.BESIDE_TENSORS", 100)
    jobs = [replace(JOBS[0], name=f"{size}", card_bytes=size) for size in (100, 500, 450, 100, 100, 2000)]
    executor = make_executor("process", Limits("cuda:0", workers=2, memory=1000))
    held = list(executor.run(jobs, _held_by))
    assert max(most for most, _, _ in held) == 800
    for _, moment, _ in held:
        assert 0 < sum(most for most, began, ended in held if began <= moment < ended) <= 800


def test_apples_gpu_is_used_by_one_thread(monkeypatch):
    """Two at once end the program."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for workers in (None, 4):
        assert [slot.device for slot in local_slots(Limits("mps", workers))] == ["mps"]


def test_layers_in_flight_on_a_gpu_go_by_its_own_memory(monkeypatch):
    """A machine with two GPUs of one kind and a third of another, as far as torch is asked about them."""
    names = ["H200", "H200", "old card"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names[index])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100_000_000_000, 140_000_000_000))
    assert devices.pick_devices("auto") == devices.pick_devices("cuda") == ("cuda:0", "cuda:1")
    assert devices.pick_devices("cuda:2") == ("cuda:2",)
    assert devices.pick_devices("cuda:1,cuda:0") == devices.pick_devices(" cuda:01, cuda:0 ") == ("cuda:1", "cuda:0")
    with pytest.raises(UsageError, match="different kinds") as mixed:
        devices.pick_devices("cuda:0,cuda:2,cuda:1")
    assert mixed.value.values == "cuda:0 is H200, cuda:2 is old card, cuda:1 is H200"
    assert mixed.value.fix == "--device cuda:0,cuda:1"
    with pytest.raises(UsageError, match="no such CUDA device") as missing:
        devices.pick_devices("cuda:1,cuda:7")
    assert missing.value.values == "cuda:7; the last one is cuda:2"
    with pytest.raises(UsageError, match="no such CUDA device"):
        devices.pick_devices("cuda:3")
    slots = local_slots(Limits("cuda:0,cuda:1"))
    assert slots == [Slot(device, 1, 21_250_000_000) for device in ("cuda:0", "cuda:1") for _ in range(4)]
    assert [slot.bytes for slot in local_slots(Limits("cuda:0", memory=10_000))] == [1_250] * 4
    assert len(local_slots(Limits("cuda:0", workers=5))) == 5


def test_libraries_of_every_gpu_are_made_ready_by_one_thread_before_the_workers(monkeypatch):
    """torch crashes when several threads ask for the first decomposition on CUDA at once."""
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H200")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000_000, 1_000_000))
    monkeypatch.setattr(
        "loraport.engine.executors.thread.warm_up",
        lambda device: told.append((device, threading.current_thread().name)),
    )
    here = threading.current_thread().name
    executor = make_executor("thread", Limits("cuda:0,cuda:1"))
    devices_used = set()

    def work(job: LayerJob, slot: Slot) -> str:
        assert told == [("cuda:0", here), ("cuda:1", here)]
        devices_used.add(slot.device)
        return job.name

    assert sorted(executor.run(JOBS, work)) == sorted(job.name for job in JOBS)
    assert devices_used <= {"cuda:0", "cuda:1"}


def test_each_gpu_that_is_named_gives_slots_of_its_own_memory(monkeypatch):
    free = {"cuda:0": 100_000, "cuda:1": 40_000}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H200")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 140_000))
    for given in ("cuda:0,cuda:1", ["cuda:0", "cuda:1"], ("cuda:0", "cuda:1")):
        options = RunOptions(device=given, executor="process")
        assert options.device == "cuda:0,cuda:1"
        assert executor_for(options).slots() == [
            *[Slot("cuda:0", 1, 42_500)] * 2, *[Slot("cuda:1", 1, 17_000)] * 2,
        ]  # fmt: skip
    monkeypatch.setattr("loraport.engine.executor.BESIDE_TENSORS", 10_000)
    slots = local_slots(Limits("cuda:0,cuda:1", memory=60_000))
    assert {(slot.bytes, slot.most) for slot in slots} == {(12_500, 50_000), (8_500, 50_000)}


def test_what_a_gpu_is_allowed_includes_what_cuda_takes_there():
    """A 14B model on 6 GB: two of its largest layers at once, in one process."""
    assert for_tensors(6 * 10**9) == 4_000_000_000
    assert for_tensors(7 * 10**9, 2) == 3_500_000_000  # half at least
    assert for_tensors(2 * 10**9) == 1_000_000_000


@pytest.mark.parametrize(
    "wanted", ["abacus", "cpu:1", "cuda:x", "cuda:", "mps:0", "", "cuda:0,", "cuda:0,gpu", "cuda:²"]
)
def test_devices_that_do_not_exist(wanted):
    with pytest.raises(UsageError, match="unknown device"):
        devices.pick_devices(wanted)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("cuda:0,cuda:0", "cuda:0 is named twice"),
        ("cuda:1,cuda:01", "cuda:1 is named twice"),
        ("cpu,cuda:0", "cpu cannot share the work"),
        ("cuda:0,mps", "mps cannot share the work"),
        ("cuda,cuda:1", "cuda cannot share the work"),
        ("auto,cuda:1", "auto cannot share the work"),
    ],
)
def test_devices_that_cannot_be_named_together(wanted, says):
    with pytest.raises(UsageError, match=says):
        devices.pick_devices(wanted)


def test_the_cpu_takes_over_where_a_device_is_full_and_nowhere_else():
    tried, freed, threads = [], [], []

    def work(device: torch.device) -> str:
        tried.append(device.type)
        if device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        threads.append(torch.get_num_threads())
        return "made"

    torch.set_num_threads(1)
    assert with_the_cpu_behind(work, "mps", lambda: freed.append(True), threads=2) == ("made", True)
    assert (threads, torch.get_num_threads()) == ([2], 1)
    assert (tried, freed) == (["mps", "mps", "cpu"], [True, True])
    assert with_the_cpu_behind(work, "cpu") == ("made", False)

    def broken(device: torch.device) -> str:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        with_the_cpu_behind(broken, "mps")


UNGUARDED = """
import sys
import loraport
from loraport.engine.options import RunOptions

loraport.transfer(
    sys.argv[1], source=sys.argv[2], target=sys.argv[3], output=sys.argv[4], method="direct",
    options=RunOptions(executor="process", workers=1, cache="off", device="cpu"),
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["file", "stdin"])
def test_a_script_that_workers_would_run_again_is_told_what_to_do(way, tmp_path):
    files = pico.write(tmp_path)
    script, output = tmp_path / "script.py", tmp_path / "out.safetensors"
    script.write_text(UNGUARDED, encoding="utf-8")
    arguments = [str(script) if way == "file" else "-", *map(str, (files.lora, files.source, files.target, output))]
    done = subprocess.run([sys.executable, *arguments], input=UNGUARDED, capture_output=True, text=True, timeout=250)
    assert done.returncode == 1
    (*_, said, found, fix) = done.stderr.splitlines()
    assert said == "loraport.errors.UsageError: worker processes ended before they began"
    assert "runs your script again" in found
    assert '`if __name__ == "__main__":`' in fix
    assert "bootstrapping" not in done.stderr
    assert not output.exists()
    lines = [json.loads(line) for line in output.with_suffix(".run.jsonl").read_text("utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["started", "failed"], "that of this process, not of a worker's"
