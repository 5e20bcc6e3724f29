"""Layers brought ahead and entries written behind: the same bytes, every weight read once, nothing lost or torn.

The slots call themselves `cpu:0`, so that they count as a device beside the host.
"""

import pickle
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import loraport
import pico
from loraport.engine import devices, on_device, reading
from loraport.engine.accelerators import bound, pinned, to_host
from loraport.engine.ahead import Ahead, room_beside
from loraport.engine.events import LayerDone
from loraport.engine.executor import threads_for
from loraport.engine.job import Job
from loraport.engine.on_device import with_the_cpu_behind
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe
from loraport.engine.run import run
from loraport.errors import FileError, NumericalError
from loraport.store.store import Store


@pytest.fixture
def files(tmp_path) -> pico.Pico:
    return pico.write(tmp_path / "pico")


@pytest.fixture
def device(monkeypatch) -> None:
    monkeypatch.setattr(devices, "pick_devices", lambda wanted: ("cpu:0",))


def _one(job: Job) -> int:
    return 1


def _plan(files: pico.Pico, **settings):
    named = {"lora": str(files.lora), "source": str(files.source), "target": str(files.target), "method": "casa"}
    return make_plan(Recipe.build(named | settings))


def _options(cache: Path | str, **settings) -> RunOptions:
    return RunOptions(**({"cache": str(cache), "log": "off", "overwrite": True} | settings))


@pytest.mark.parametrize("method", ["casa", "matched-gain", "direct"])
def test_the_same_bytes_and_every_weight_read_once(files, tmp_path, monkeypatch, method):
    out, cache = tmp_path / "out.safetensors", tmp_path / "cache"
    run(_plan(files, method=method), out, _options("off"))
    alone = out.read_bytes()

    monkeypatch.setattr(devices, "pick_devices", lambda wanted: ("cpu:0",))
    seen: Counter[tuple[str, str]] = Counter()
    threads, real = set(), reading.read_with_sums

    def spied(ref, *more, **flags):
        seen[ref.file.name, ref.key] += 1
        threads.add(threading.current_thread().name.rpartition("_")[0])
        return real(ref, *more, **flags)

    monkeypatch.setattr(reading, "read_with_sums", spied)
    run(_plan(files, method=method), out, _options(cache))
    assert out.read_bytes() == alone
    assert set(seen.values()) <= {1}
    assert ("loraport-ahead" in threads) == (method != "direct")
    shutil.rmtree(cache / "result")  # as another LoRA would, find what was kept of the pair
    run(_plan(files, method=method), out, _options(cache))
    assert out.read_bytes() == alone
    again = run(_plan(files, method=method), out, _options(cache))
    assert out.read_bytes() == alone
    assert all(layer.cached for layer in again.layers)


@pytest.mark.parametrize("executor", ["serial", pytest.param("process", marks=pytest.mark.slow)])
def test_every_executor_leaves_all_entries_whole(files, tmp_path, monkeypatch, executor):
    kinds = {}
    for name in ("cpu", "cpu:0"):
        monkeypatch.setattr(devices, "pick_devices", lambda wanted, name=name: (name,))
        cache = tmp_path / name.replace(":", "")
        run(_plan(files), tmp_path / "out.safetensors", _options(cache, executor=executor, workers=1))
        assert Store(cache).verify() == []
        kinds[name] = Counter((info.kind, info.key) for info in Store(cache).entries())
    assert kinds["cpu"] == kinds["cpu:0"]


def test_many_loras_with_one_that_fails(files, tmp_path, monkeypatch):
    """Its layers are brought and then not done, which must not stop the others."""
    folder = tmp_path / "loras"
    folder.mkdir()
    bad = pico.lora(12)
    bad["diffusion_model.blocks.0.self_attn.q.lora_A.weight"][0, 0] = float("nan")
    save_file(bad, folder / "a.safetensors")
    for n in (1, 2):
        save_file(pico.lora(n), folder / f"{n}.safetensors")
    loras, made = [folder / name for name in ("a.safetensors", "1.safetensors", "2.safetensors")], {}
    for name in ("cpu", "cpu:0"):
        monkeypatch.setattr(devices, "pick_devices", lambda wanted, name=name: (name,))
        output = tmp_path / name.replace(":", "")
        report = loraport.transfer_many(
            loras, source=files.source, target=files.target, output=output, options=_options("off", workers=2)
        )
        assert [Path(each.lora).name for each in report.failed] == ["a.safetensors"]
        made[name] = {path.name: path.read_bytes() for path in output.glob("*.safetensors")}
    assert made["cpu"] == made["cpu:0"]
    assert len(made["cpu"]) == 2


def test_an_interrupted_run_keeps_what_it_finished(files, tmp_path, device):
    cache, out = tmp_path / "cache", tmp_path / "out.safetensors"
    finished = []

    def stop(event: object) -> None:
        if isinstance(event, LayerDone):
            finished.append(event.layer.name)
            if event.finished == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(_plan(files), out, _options(cache), stop)
    assert not out.exists()
    assert list(cache.rglob("*.partial")) == []
    assert Store(cache).verify() == []
    report = run(_plan(files), out, _options(cache))
    assert {layer.name for layer in report.layers if layer.cached} >= set(finished)


def test_a_full_disk_behind_is_said_and_the_file_is_made(files, tmp_path, device, monkeypatch):
    worked = threading.Event()

    def full(self: Store, size: int) -> None:
        assert worked.wait(60)
        time.sleep(0.05)  # the run is at its end by then, and waits
        raise FileError("not enough room for the cache", values="none")

    def listen(event: object) -> None:
        if isinstance(event, LayerDone) and event.finished == event.layers:
            worked.set()

    monkeypatch.setattr(Store, "_check_room", full)
    report = run(_plan(files), tmp_path / "out.safetensors", _options(tmp_path / "cache"), listen)
    assert len([text for text in report.warnings if "takes no more entries" in text]) == 1


@dataclass(frozen=True)
class _Sized(Job):
    name: str
    shape: tuple[int, int] = (4, 4)
    peak_bytes: int = 10


class _Bringer:
    def __init__(self) -> None:
        self.lock, self.now, self.most, self.brought = threading.Lock(), 0, 0, []

    def __call__(self, job: _Sized) -> str:
        with self.lock:
            self.now += job.peak_bytes
            self.most = max(self.most, self.now)
            self.brought.append(job.name)
        if job.name == "bad":
            raise NumericalError("odd", where=job.name)
        return job.name


def test_no_more_lies_ready_than_there_is_room():
    jobs = [_Sized(str(n)) for n in range(12)]
    bring = _Bringer()
    with Ahead(jobs, bring, lambda job: job.peak_bytes, room=30, threads=3, threads_of=_one) as ahead:
        for job in jobs:
            assert ahead.take(job, bring) == job.name
            with bring.lock:
                bring.now -= job.peak_bytes
        assert ahead._used == 0
    assert sorted(bring.brought) == sorted(job.name for job in jobs)
    assert bring.most <= 40  # and what is being taken
    assert bring.brought[0] in ("0", "1", "2")


def test_the_host_gives_a_share_of_its_memory_and_never_much(monkeypatch):
    for free, room in ((10**9, 150_000_000), (10**12, 2 * 2**30)):
        monkeypatch.setattr(devices, "usable_bytes", lambda device, free=free: free)
        assert room_beside() == room


def test_an_error_comes_to_whoever_asks_for_the_job_and_no_other():
    jobs = [_Sized("a"), _Sized("bad"), _Sized("c")]
    bring = _Bringer()
    with Ahead(jobs, bring, lambda job: job.peak_bytes, room=100, threads=1, threads_of=_one) as ahead:
        assert ahead.take(jobs[0], bring) == "a"
        with pytest.raises(NumericalError, match="odd"):
            ahead.take(jobs[1], bring)
        assert ahead.take(jobs[2], bring) == "c"
        stranger = _Sized("d")
        assert ahead.take(stranger, bring) == "d"


def test_a_job_that_nobody_takes_leaves_its_room():
    jobs = [_Sized(name, peak_bytes=100) for name in "abc"]
    bring = _Bringer()
    with Ahead(jobs, bring, lambda job: job.peak_bytes, room=10, threads=1, threads_of=_one) as ahead:
        ahead.take(jobs[0], bring)  # the next one is on its way
        ahead.leave(jobs[1])
        assert ahead.take(jobs[2], lambda job: "late") in ("c", "late")


def test_what_is_left_is_not_brought_behind_ones_back():
    """What it held then, nobody let go of: every layer of a LoRA that had failed stayed in memory."""
    jobs, begun, go = [_Sized(name) for name in "abc"], threading.Event(), threading.Event()
    brought = []

    def bring(job: Job) -> None:
        if job is jobs[1]:
            begun.set()
            assert go.wait(60)
        brought.append(job.name)

    with Ahead(jobs, bring, lambda job: job.peak_bytes, room=100, threads=1, threads_of=_one) as ahead:
        ahead.take(jobs[0], bring)
        assert begun.wait(60)
        ahead.leave(jobs[2])  # waits behind the second
        threading.Timer(0.05, go.set).start()
        ahead.leave(jobs[1])  # is on its way
        assert brought[-1] == "b"
    assert "c" not in brought


def test_what_is_brought_has_as_many_threads_as_where_it_is_computed():
    """How many there are may decide how a sum is rounded."""
    jobs = [_Sized("narrow"), _Sized("wide", shape=(10**5, 10**5)), _Sized("narrow again")]
    threads_of = partial(threads_for, device="mps", cores=3)
    with Ahead(jobs, lambda job: torch.get_num_threads(), lambda job: 1, 100, 1, threads_of) as ahead:
        ahead.take(jobs[0], str)
        wait([ahead._pool.submit(int)])  # by then the others lie ready
        assert [ahead.take(job, str) for job in jobs[1:]] == [3, 1]


def test_at_the_end_nothing_is_brought_any_more():
    jobs, begun, brought = [_Sized(name) for name in "abcd"], threading.Event(), []

    def bring(job: Job) -> None:
        begun.set()
        brought.append(job.name)

    with Ahead(jobs, bring, lambda job: job.peak_bytes, room=100, threads=1, threads_of=_one) as ahead:
        ahead.take(jobs[0], bring)
        assert begun.wait(60)
    count = len(brought)
    assert not [each for each in threading.enumerate() if each.name.startswith("loraport-ahead")]
    assert len(brought) == count


def test_in_another_process_nothing_is_brought():
    assert pickle.loads(pickle.dumps(Ahead([], str, lambda job: 0, 1, 1, _one))) is None


def test_a_bound_on_memory_is_one_of_the_tensors_of_a_gpu(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7_000_000_000, 8_000_000_000))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: set_to.append(share))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.9, raising=False)
    bound("cpu", 1000)
    bound("cuda:0", None)
    bound("cuda:0", 6_000_000_000)
    bound("cuda:0", 10**12)
    bound("cuda:0", None)  # as it was, for whoever uses the GPU next
    bound("cuda:0", None)
    assert set_to == [0.75, 0.9, 0.9]


@pytest.mark.parametrize("executor", ["serial", "thread"])
def test_max_memory_bounds_the_device_and_is_lifted_afterwards(files, tmp_path, device, monkeypatch, executor):
    """Of every command that computes layers there; what else a transfer gives back comes last."""
    told = []
    for module in ("executor.devices", f"executors.{executor}", "overlap"):
        monkeypatch.setattr(f"loraport.engine.{module}.bound", lambda *given: told.append(given))
    monkeypatch.setattr("loraport.engine.overlap.release_memory", lambda device: told.append(f"{device} freed"))
    monkeypatch.setattr("loraport.engine.overlap.release_pinned", lambda: told.append("host freed"))
    options = _options("off", executor=executor, max_memory=10**9, workers=1)
    run(_plan(files, method="direct"), tmp_path / "out.safetensors", options)
    first, end = told.index(("cpu:0", 10**9)), told.index(("cpu:0", None))
    assert first < end
    assert told[end:] == [("cpu:0", None), ("cpu:0", None), "cpu:0 freed", "host freed"]
    told.clear()
    loraport.resize(files.lora, tmp_path / "small.safetensors", rank=2, options=options)
    assert (told[0], told[-1]) == (("cpu:0", 10**9), ("cpu:0", None))


def test_where_no_memory_can_be_pinned_there_is_ordinary_memory():
    assert pinned(7).shape == (7,)
    there = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(to_host({"t": there})["t"], there)


def test_what_finds_no_room_beside_others_is_tried_again_by_itself():
    """The first layer is at work when the second runs out of memory; the third may not begin before both are done."""
    begun, failed, going_on, log = threading.Event(), threading.Event(), threading.Event(), []

    def first(at: torch.device) -> str:
        begun.set()
        assert going_on.wait(10)
        log.append("first")
        return "first"

    def second(at: torch.device) -> str:
        if not failed.is_set():
            assert begun.wait(10)
            failed.set()
            raise torch.OutOfMemoryError("no room")
        log.append(f"second on {at}")
        return "second"

    def third(at: torch.device) -> str:
        log.append("third")
        return "third"

    with ThreadPoolExecutor(3) as pool:
        made = [pool.submit(with_the_cpu_behind, work, "cpu:0") for work in (first, second)]
        assert failed.wait(10)
        while not on_device._turns["cpu:0"]._by_itself:  # the second does not wait yet
            threading.Event().wait(0.001)
        made.append(pool.submit(with_the_cpu_behind, third, "cpu:0"))
        going_on.set()
    assert [each.result() for each in made] == [("first", False), ("second", False), ("third", False)]
    assert log == ["first", "second on cpu:0", "third"]
