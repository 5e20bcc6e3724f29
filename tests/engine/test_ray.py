"""Layers on a Ray cluster: the same bytes as on one machine, whoever is killed meanwhile.

The cluster is a real one, of two machines as Ray counts them, whose processes are all on this one.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

import loraport
import pico
import ray_work
from loraport.engine.cluster import connection, task
from loraport.engine.cluster.connection import Cluster
from loraport.engine.cluster.machines import Node, choose
from loraport.engine.events import LayerDone, Remarked, Warned
from loraport.engine.executor import Limits, Slot
from loraport.engine.executors import make_executor
from loraport.engine.executors import ray as on_ray
from loraport.engine.job import WIDE_ELEMENTS
from loraport.engine.known_digests import KnownDigests
from loraport.engine.options import RunOptions
from loraport.engine.worker import Worker
from loraport.errors import FileError, NumericalError, UsageError
from loraport.store.digests import DigestMemo
from loraport.threads import cores
from loraport.version import __version__
from ray_work import Layer

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
WIDE = (WIDE_ELEMENTS, 2)
MACHINE = {"memory": 4 * 10**9, "object_store_memory": 80 * 2**20}
NOTICED_SOON = {  # that a machine is gone; half a minute by default
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
LAYERS = [Layer(f"layer {number}") for number in range(7)]


# What is asked of a cluster, without one.


def _node(number: int = 0, **settings) -> Node:
    given = {"cpus": 8.0, "cards": 0, "memory": 1000, "cores": 8, "card_bytes": 0} | settings
    return Node(f"id{number}", f"host{number}", **given)


def _cluster(*nodes: Node) -> Cluster:
    return Cluster(nodes or (_node(),), "id0")


def _needs(peak_bytes: int = 100, shape=(4, 4), *nodes: Node, **limits) -> tuple[float, float, int]:
    found = on_ray.resources_of(Layer("layer", shape, peak_bytes), _cluster(*nodes), Limits(**limits))
    return found.cpus, found.cards, found.memory


def test_a_layer_asks_for_a_core_and_its_memory_and_a_wide_one_for_all_cores():
    assert _needs(100) == (1, 0, 100)
    assert _needs(100, WIDE) == (8, 0, 100)


def test_a_layer_larger_than_a_machine_asks_for_all_its_memory_and_so_runs_alone():
    assert _needs(5000) == (1, 0, 1000)
    assert _needs(5000, (4, 4), _node(0), _node(1, memory=4000)) == (1, 0, 4000)


def test_a_limit_of_memory_or_layers_makes_each_layer_ask_for_more():
    assert _needs(100, memory=250) == (1, 0, 400)  # two of them fill the machine
    assert _needs(300, memory=250) == (1, 0, 1000)
    assert _needs(100, workers=2) == (4, 0, 100)
    assert _needs(100, workers=3) == (3, 0, 100)  # never more than three, since Ray gives out whole ones
    assert _needs(100, workers=16) == (0.5, 0, 100)


def test_two_layers_share_a_card_unless_they_are_large_or_wide():
    cards = _node(cpus=32.0, cards=4, card_bytes=800)
    assert _needs(100, (4, 4), cards) == (1, 0.5, 100)
    assert _needs(600, (4, 4), cards) == (1, 0.75, 600)
    assert _needs(5000, (4, 4), cards) == (1, 1.0, 1000)
    assert _needs(100, WIDE, cards) == (8, 1.0, 100)
    assert _needs(100, (4, 4), cards, workers=3) == (1, 0.3333, 100)
    assert _needs(100, (4, 4), cards, memory=160) == (1, 0.625, 100)
    assert _needs(100, (4, 4), replace(cards, cpus=4.0)) == (0.5, 0.5, 100)


def test_slots_are_counted_through_all_machines():
    assert on_ray.slots_of(_cluster(_node(cpus=2.0), _node(1, cpus=1.0)), Limits()) == [
        Slot("cpu", 1, 500), Slot("cpu", 1, 500), Slot("cpu", 1, 1000),
    ]  # fmt: skip
    cards = [_node(n, cards=1, card_bytes=600) for n in range(2)]
    assert on_ray.slots_of(_cluster(*cards), Limits()) == [
        Slot(f"cuda:{card}", 1, 300) for card in (0, 0, 1, 1)
    ]  # fmt: skip


def _alive(number: int, **resources) -> dict:
    return {
        "NodeID": f"id{number}",
        "NodeManagerHostname": f"host{number}",
        "NodeManagerAddress": f"10.0.0.{number}",
        "Resources": {"CPU": 4.0, "memory": 1000.0} | resources,
    }


def _answer(**settings) -> dict:
    given = {"loraport": __version__, "torch": "2.9", "processor": "fast", "cores": 4, "unlike": ""}
    return given | {"cards": [], "card_bytes": 0} | settings


def test_machines_of_one_kind_take_part_and_why_others_do_not_is_said():
    alive = [_alive(number) for number in range(6)]
    told = {
        "id0": _answer(cores=64),
        "id1": _answer(),
        "id2": _answer(),
        "id3": _answer(torch="2.8"),
        "id4": _answer(loraport="0.0.1"),
        "id5": _answer(unlike="/models/a.safetensors cannot be read"),
    }
    nodes, left_out = choose(alive, told, "auto")
    assert [node.id for node in nodes] == ["id1", "id2"]
    assert nodes[0] == Node("id1", "host1 (10.0.0.1)", 4.0, 0, 1000, 4)
    assert left_out.keys() == {f"host{number} (10.0.0.{number})" for number in (0, 3, 4, 5)}
    assert "64 cores" in left_out["host0 (10.0.0.0)"]
    assert "PyTorch 2.8" in left_out["host3 (10.0.0.3)"]
    assert "loraport 0.0.1" in left_out["host4 (10.0.0.4)"]
    assert "cannot be read" in left_out["host5 (10.0.0.5)"]


def test_cards_are_taken_where_there_are_any_and_a_machine_without_is_no_matter():
    alive = [_alive(0), _alive(1, GPU=2.0), _alive(2, GPU=8.0), _alive(3, GPU=1.0)]
    told = {
        "id0": _answer(),
        "id1": _answer(cards=["H200"] * 2, card_bytes=900),
        "id2": _answer(cards=["H200"] * 4 + ["old"] * 4),
        "id3": _answer(cards=["old"]),
    }
    nodes, left_out = choose(alive, told, "auto")
    assert [(node.id, node.cards, node.card_bytes) for node in nodes] == [("id1", 2, 900)]
    assert left_out.keys() == {"host2 (10.0.0.2)", "host3 (10.0.0.3)"}
    assert choose(alive, told, "cuda")[0] == nodes
    assert [node.cards for node in choose(alive, told, "cpu")[0]] == [0] * 4
    assert choose(alive[:1], told, "cuda") == ([], {"host0 (10.0.0.0)": left_out["host2 (10.0.0.2)"]})


def test_the_card_that_ray_gave_is_counted_among_those_that_cuda_shows(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert task.card_of("3") == "cuda:3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert task.card_of("3") == "cuda:1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa, GPU-bb")
    assert task.card_of("GPU-bb") == "cuda:1"


def test_what_is_missing_for_ray_is_said_with_what_mends_it(monkeypatch):
    monkeypatch.setattr(connection.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as caught:
        make_executor("ray", Limits())
    assert caught.value.fix == 'pip install "loraport[ray]"'


@needs_ray
@pytest.mark.parametrize("device", ["mps", "cuda:1", "cuda:0,cuda:1", "abacus"])
def test_devices_that_ray_does_not_give_out(device):
    with pytest.raises(UsageError, match=r"itself|unknown device"):
        make_executor("ray", Limits(device))


# The real thing.


@pytest.fixture(scope="session")
def cluster():
    """Two machines as Ray counts them, of two processors and one. Ray's sockets need a short path."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    if not sys.platform.startswith("linux"):
        pytest.skip("Ray's clusters of several machines are experimental elsewhere")
    from ray.cluster_utils import Cluster as LocalCluster

    folder = tempfile.mkdtemp(prefix="ray")
    path = os.pathsep.join([str(Path(ray_work.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as settings:
        for name, value in {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}.items():
            settings.setenv(name, value)
        head = {"num_cpus": 2, "include_dashboard": False, "_system_config": NOTICED_SOON, **MACHINE}
        made = LocalCluster(initialize_head=True, head_node_args=head)
        made.add_node(num_cpus=1, **MACHINE)
        # One connection for all tests, since Ray starts new processes for each, and each of these loads torch.
        ray.init(made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _run(jobs, work, **limits) -> list:
    return list(make_executor("ray", Limits(**limits)).run(jobs, work))


@pytest.mark.slow
def test_every_layer_is_done_once_with_the_threads_that_are_its_own(cluster):
    said = []
    wide = Layer("wide", WIDE)
    done = _run([wide, *LAYERS], ray_work.threads, on_event=said.append)
    assert sorted(done) == sorted([("wide", "cpu", cores()), *((layer.name, "cpu", 1) for layer in LAYERS)])
    assert [event.message for event in said if isinstance(event, Remarked)] == [
        f"Ray: the cluster at {cluster.address}; layers run on 3 CPUs of 2 machines, which read the files"
    ]
    assert len(make_executor("ray", Limits()).slots()) == 3


@pytest.mark.slow
def test_an_error_comes_home_as_itself(cluster):
    with pytest.raises(NumericalError, match="not finite") as caught:
        _run([LAYERS[0], Layer("bad"), *LAYERS[1:]], ray_work.fail)
    assert type(caught.value) is NumericalError
    assert (caught.value.where, caught.value.fix) == ("bad", "look")
    with pytest.raises(ZeroDivisionError, match="a fault") as fault:
        _run([Layer("worse")], ray_work.fail)
    assert "in fail" in str(fault.value.__cause__)  # where it came from


@pytest.mark.slow
def test_a_file_that_another_machine_cannot_read_is_said_with_the_machine(cluster, monkeypatch):
    with pytest.raises(FileError, match="cut short"):
        _run(LAYERS[:1], ray_work.lose)
    home = on_ray.Home
    monkeypatch.setattr(on_ray, "Home", lambda folder, node: home(folder, "another machine"))
    with pytest.raises(FileError, match="cut short") as caught:
        _run(LAYERS[:1], ray_work.lose)
    assert caught.value.where.startswith(f"w.safetensors, on {os.uname().nodename} (")
    assert caught.value.values == "3 of 4 bytes"
    assert "shared disk" in caught.value.fix


@pytest.mark.slow
def test_a_layer_whose_process_is_killed_is_done_again(cluster, tmp_path):
    work = ray_work.Dying(ray_work.threads, ("layer 1", "layer 4"), tmp_path)
    assert sorted(name for name, _, _ in _run(LAYERS, work)) == [layer.name for layer in LAYERS]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_a_layer_whose_process_is_killed_each_time_is_an_error_that_names_it_and_the_machine(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(on_ray, "RETRIES", 1)
    work = ray_work.Dying(ray_work.threads, ("layer 1",), tmp_path, deaths=99)
    with pytest.raises(FileError, match="killed each time") as caught:
        _run(LAYERS[:2], work)
    assert caught.value.where.startswith(f"layer 1, on {os.uname().nodename} (")
    assert "tried 2 times" in caught.value.values
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_a_layer_too_large_for_a_machine_runs_alone_there(cluster, tmp_path):
    small = [Layer(name) for name in ray_work.MEETING]
    giants = [Layer(f"giant {number}", peak_bytes=10**12) for number in range(2)]
    done = _run([*small, *giants, *LAYERS], ray_work.Together(tmp_path))
    seen = {name: others for name, others, _ in done}
    assert len(seen) == len(LAYERS) + 4
    assert all(others == [] for name, others in seen.items() if name.startswith("giant"))
    assert not any(other.startswith("giant") for others in seen.values() for other in others)
    assert max(most for _, _, most in done) <= 2  # the processors of the larger machine
    assert (tmp_path / "met").exists()  # while two small ones do not wait for each other


@pytest.mark.slow
def test_files_that_are_not_the_same_there_are_said_before_the_work(cluster, tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"w")
    work = ray_work.Reading(KnownDigests(DigestMemo(None), {file: "another state"}))
    with pytest.raises(FileError, match="no machine of the Ray cluster sees the files") as caught:
        _run(LAYERS[:1], work)
    assert str(file) in caught.value.values
    file.unlink()
    with pytest.raises(FileError) as missing:
        _run(LAYERS[:1], work)
    assert "cannot be read" in missing.value.values


@pytest.mark.slow
def test_relative_names_mean_what_they_mean_here(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _run(LAYERS[:1], ray_work.folder) == [str(tmp_path)]


@pytest.fixture
def files(tmp_path) -> pico.Pico:
    return pico.write(tmp_path / "pico")


def _transfer(files: pico.Pico, output: Path, executor: str, cache: Path | str = "off", **settings):
    options = RunOptions(executor=executor, cache=str(cache), log="off", overwrite=True, device="cpu")
    return loraport.transfer(
        files.lora, source=files.source, target=files.target, output=output, method="casa", options=options, **settings
    )


@pytest.mark.slow
def test_a_transfer_writes_the_same_bytes_with_processes_killed_meanwhile(cluster, files, tmp_path, monkeypatch):
    _transfer(files, tmp_path / "serial.safetensors", "serial")
    expected = (tmp_path / "serial.safetensors").read_bytes()
    made = tmp_path / "ray.safetensors"
    worker = Worker
    marks = tmp_path / "marks"
    marks.mkdir()
    victims = ("blocks.0.ffn.0", "blocks.1.self_attn.q")
    monkeypatch.setattr(
        "loraport.engine.run.Worker", lambda *given, **also: ray_work.Dying(worker(*given, **also), victims, marks)
    )
    events = []
    report = _transfer(files, made, "ray", tmp_path / "cache", on_event=events.append)
    assert made.read_bytes() == expected
    assert len(list(marks.iterdir())) == 2
    assert sum(isinstance(event, LayerDone) for event in events) == len(pico.LAYERS)
    assert not any(isinstance(event, Warned) for event in events)
    assert report.warnings == ()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(cluster, files, tmp_path):
    _transfer(files, tmp_path / "serial.safetensors", "serial")

    def interrupt(event) -> None:
        if isinstance(event, LayerDone) and event.finished == 5:
            raise KeyboardInterrupt

    made = tmp_path / "ray.safetensors"
    with pytest.raises(KeyboardInterrupt):
        _transfer(files, made, "ray", tmp_path / "cache", on_event=interrupt)
    assert not made.exists()
    report = _transfer(files, made, "ray", tmp_path / "cache")
    assert 5 <= report.summary.cached_layers < len(pico.LAYERS)
    assert made.read_bytes() == (tmp_path / "serial.safetensors").read_bytes()


def _many(files: pico.Pico, output: Path, options: RunOptions) -> list[bytes]:
    save_file(pico.lora(9, rank=6), files.folder / "other.safetensors")
    done = loraport.transfer_many(
        [files.lora, files.folder / "other.safetensors"],
        source=files.source, target=files.target, output=output, options=options,
    )  # fmt: skip
    assert [each.error for each in done.outcomes] == [None, None]
    return [path.read_bytes() for path in sorted(output.iterdir())]


def _resized(files: pico.Pico, output: Path, options: RunOptions) -> bytes:
    loraport.resize(files.lora, output, energy=0.9, options=options)  # two rounds through one executor
    return output.read_bytes()


def _extracted(files: pico.Pico, output: Path, options: RunOptions) -> bytes:
    loraport.extract(files.source, files.target, output, rank=3, options=options)
    return output.read_bytes()


def _analysed(files: pico.Pico, output: Path, options: RunOptions) -> list:
    found = loraport.analyze(files.source, files.target, files.lora, layers=r"^blocks\.1\.self", options=options)
    return [replace(layer, seconds=0.0) for layer in found.layers]


def _checked(files: pico.Pico, output: Path, options: RunOptions) -> object:
    found = loraport.check(files.lora, source=files.source, target=files.target, options=options)
    return found.verdict, found.figures


@pytest.mark.slow
@pytest.mark.parametrize("what", [_many, _resized, _extracted, _analysed, _checked])
def test_whatever_takes_an_executor_gives_the_same_on_a_cluster(cluster, files, tmp_path, what):
    made = {}
    for executor in ("serial", "ray"):
        options = RunOptions(executor=executor, cache="off", log="off", device="cpu")
        made[executor] = what(files, tmp_path / executor, options)
    assert made["ray"] == made["serial"]


# Machines that do not see the files.


@pytest.fixture
def blind(cluster, files):
    """A third machine, on which the folder of the files is not there."""
    path = os.pathsep.join([str(Path(ray_work.__file__).parent / "blind_machine"), os.environ["PYTHONPATH"]])
    node = cluster.add_node(num_cpus=1, **MACHINE, env_vars={"PYTHONPATH": path, "HIDDEN_FOLDER": str(files.folder)})
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Let layers leave marks; returns the folder of these, and a function that says what becomes of the blind one's."""
    marks = tmp_path / "marks"
    marks.mkdir()
    worker = Worker

    def watch(end: str) -> None:
        monkeypatch.setattr(
            "loraport.engine.run.Worker",
            lambda *given, **also: ray_work.Watched(worker(*given, **also), marks, end),
        )

    return marks, watch


def _owned() -> int:
    """Objects that this process keeps in the store, or is waiting for."""
    import ray

    return len(ray._private.worker.global_worker.core_worker.get_all_reference_counts())


@pytest.mark.slow
def test_a_machine_that_does_not_see_the_files_is_sent_them(cluster, blind, files, tmp_path, watched):
    _transfer(files, tmp_path / "serial.safetensors", "serial")
    expected = (tmp_path / "serial.safetensors").read_bytes()
    marks, watch = watched
    watch("killed")
    before, events, made = _owned(), [], tmp_path / "ray.safetensors"
    report = _transfer(files, made, "ray", tmp_path / "cache", on_event=events.append)
    assert made.read_bytes() == expected
    assert any(marks.glob("blind *"))
    assert any(marks.glob("seeing *"))
    assert report.warnings == ()
    first, second = [event.message for event in events if isinstance(event, Remarked)]
    assert first.endswith("layers run on 4 CPUs of 3 machines, of which 1 is sent what layers need")
    assert second.startswith("sent what they need: ")
    assert f", since {files.folder}" in second
    assert second.endswith("cannot be read (no such file)")
    assert _owned() <= before + 3, "the actor, the work, and nothing that was sent"
    # What was done anywhere is kept here, so that a machine with the cache alone has all of it.
    again = _transfer(files, made, "serial", tmp_path / "cache")
    assert again.summary.cached_layers == len(pico.LAYERS)
    # Where nothing is to be sent, it takes no part.
    events.clear()
    options = {"executor": "ray", "cache": "off", "log": "off", "overwrite": True, "device": "cpu"}
    loraport.transfer(
        files.lora, source=files.source, target=files.target, output=made, method="casa", on_event=events.append,
        options=RunOptions(**options, ray_data="paths"),
    )  # fmt: skip
    assert made.read_bytes() == expected
    (said,) = [event.message for event in events if isinstance(event, Warned)]
    assert "takes no part: " in said
    assert "cannot be read" in said


@pytest.mark.slow
def test_layers_of_a_machine_that_is_lost_are_done_by_others(cluster, blind, files, tmp_path, watched):
    _transfer(files, tmp_path / "serial.safetensors", "serial")
    marks, watch = watched
    watch("waits")
    events, made = [], tmp_path / "ray.safetensors"

    def lose() -> None:
        begun = time.monotonic()
        while not any(marks.glob("blind *")) and time.monotonic() < begun + 120:
            time.sleep(0.05)
        cluster.remove_node(blind, allow_graceful=False)

    losing = threading.Thread(target=lose)
    losing.start()
    report = _transfer(files, made, "ray", on_event=events.append)
    losing.join()
    assert made.read_bytes() == (tmp_path / "serial.safetensors").read_bytes()
    lost = {path.name.removeprefix("blind ") for path in marks.glob("blind *")}
    assert lost <= {path.name.removeprefix("seeing ") for path in marks.glob("seeing *")}
    assert sum(isinstance(event, LayerDone) for event in events) == len(pico.LAYERS)
    assert any("left the Ray cluster" in event.message for event in events if isinstance(event, Warned))
    assert report.summary.layers == len(pico.LAYERS)


@pytest.mark.slow
def test_what_is_sent_stays_within_the_object_store(cluster, files, tmp_path, monkeypatch):
    options = RunOptions(executor="serial", cache="off", log="off", device="cpu")
    expected = _many(files, tmp_path / "serial", options)
    monkeypatch.setattr(on_ray, "_SHARE", 0.5e-3)  # of 80 MB: about one layer of each kind
    lying, events = [], []
    begin = on_ray._Tasks._begin

    def watched(self, layer, parcel) -> None:
        under = [each for each in (*self._underway.values(), layer) if each.bytes]
        lying.append((self._lying, len(under), self._room))
        assert self._lying == sum(each.bytes for each in under)
        begin(self, layer, parcel)

    monkeypatch.setattr(on_ray._Tasks, "_begin", watched)
    loraport.transfer_many(
        [files.lora, files.folder / "other.safetensors"], source=files.source, target=files.target,
        output=tmp_path / "ray", options=options.model_copy(update={"executor": "ray", "ray_data": "store"}),
        on_event=events.append,
    )  # fmt: skip
    assert [path.read_bytes() for path in sorted((tmp_path / "ray").iterdir())] == expected
    assert len(lying) == len(pico.LAYERS)
    assert all(size <= room or count == 1 for size, count, room in lying)
    (said,) = [event.message for event in events if isinstance(event, Remarked)]
    assert said.endswith("3 CPUs of 2 machines, which are sent what layers need")
