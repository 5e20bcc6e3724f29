"""Layers on a Ray cluster: the same bytes as on one machine, whoever is killed meanwhile.

The cluster is a real one, of two machines as Ray counts them, whose processes are all on this one.
"""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import loraport
import pico
import ray_work
import whole_commands
from loraport.engine import executor as layer_executor
from loraport.engine.apart import Kept
from loraport.engine.cluster import connection, machines, task, underway
from loraport.engine.cluster.connection import Cluster
from loraport.engine.cluster.fetching import fetch_home
from loraport.engine.cluster.machines import Node, choose, code
from loraport.engine.cluster.resources import resources_of, slots_of
from loraport.engine.cluster.task import Begun, Offer
from loraport.engine.events import LayerDone, Remarked, Warned
from loraport.engine.executor import Limits, Slot
from loraport.engine.executors import make_executor
from loraport.engine.job import WIDE_ELEMENTS
from loraport.engine.known_digests import KnownDigests
from loraport.engine.options import RunOptions
from loraport.engine.worker import Worker
from loraport.errors import FileError, NumericalError, UsageError
from loraport.machine import cores
from loraport.store.digests import DigestMemo
from loraport.store.store import Store
from loraport.store.writing import Behind
from loraport.version import __version__
from ray_work import Layer
from whole_commands import COMMANDS, many, remembered, transferred

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
    found = resources_of(Layer("layer", shape, peak_bytes), _cluster(*nodes), Limits(**limits))
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
    assert _needs(100, (4, 4), _node(cpus=3.0), workers=2) == (2, 0, 100)  # Ray refuses one and a half
    assert _needs(100, workers=16) == (0.5, 0, 100)


def test_two_layers_share_a_card_unless_they_are_large(monkeypatch):
    monkeypatch.setattr(layer_executor, "BESIDE_TENSORS", 0)
    cards = _node(cpus=32.0, cards=4, card_bytes=800)
    assert _needs(100, (4, 4), cards) == (1, 0.5, 100)
    assert _needs(600, (4, 4), cards) == (1, 0.75, 600)
    assert _needs(5000, (4, 4), cards) == (1, 1.0, 1000)
    assert _needs(100, WIDE, cards) == (1, 0.5, 100)
    assert _needs(100, (4, 4), cards, workers=3) == (1, 0.3333, 100)
    assert _needs(100, (4, 4), cards, memory=160) == (1, 0.625, 100)
    assert _needs(100, (4, 4), replace(cards, cpus=4.0)) == (0.5, 0.5, 100)
    assert _needs(300, (4, 4), cards, replace(cards, card_bytes=400)) == (1, 0.75, 300)  # it fits on either


def test_layers_that_share_a_card_are_bound_to_its_memory_together(monkeypatch):
    """Each is told what its own tensors may take; torch binds one process by itself."""
    monkeypatch.setattr(layer_executor, "BESIDE_TENSORS", 50)  # of each of two processes
    cluster = _cluster(_node(cpus=32.0, cards=4, card_bytes=800))
    for size, bound in ((100, 200), (250, 250), (5000, 400)):
        assert resources_of(Layer("layer", (4, 4), size), cluster, Limits(memory=500)).card_bytes == bound
    assert resources_of(Layer("layer", (4, 4), 100), cluster, Limits()).card_bytes is None


def test_slots_are_counted_through_all_machines():
    assert slots_of(_cluster(_node(cpus=2.0), _node(1, cpus=1.0)), Limits()) == [
        Slot("cpu", 1, 500), Slot("cpu", 1, 500), Slot("cpu", 1, 1000),
    ]  # fmt: skip
    cards = [_node(n, cards=1, card_bytes=600) for n in range(2)]
    assert slots_of(_cluster(*cards), Limits()) == [
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
    given = {"loraport": __version__, "code": code(), "torch": "2.9", "processor": "fast", "cores": 4}
    given |= {"unlike": "", "unable": ""}
    return given | {"cards": [], "card_bytes": 0} | settings


def test_machines_of_one_kind_take_part_and_why_others_do_not_is_said():
    alive = [_alive(number) for number in range(8)]
    told = {
        "id0": _answer(cores=64),
        "id1": _answer(),
        "id2": _answer(),
        "id3": _answer(torch="2.8"),
        "id4": _answer(loraport="0.0.1"),
        "id5": _answer(unlike="/models/a.safetensors cannot be read"),
        "id6": _answer(code="of yesterday"),
        "id7": _answer(unable="No module named 'xxhash'"),
    }
    nodes, others = choose(alive, told, "auto")
    left_out = dict(others)
    assert [node.id for node in nodes] == ["id1", "id2"]
    assert nodes[0] == Node("id1", "host1 (10.0.0.1)", 4.0, 0, 1000, 4)
    assert left_out.keys() == {f"host{number} (10.0.0.{number})" for number in (0, 3, 4, 5, 6, 7)}
    assert "64 cores" in left_out["host0 (10.0.0.0)"]
    assert "PyTorch 2.8" in left_out["host3 (10.0.0.3)"]
    assert "loraport 0.0.1" in left_out["host4 (10.0.0.4)"]
    assert "cannot be read" in left_out["host5 (10.0.0.5)"]
    assert "the code differs" in left_out["host6 (10.0.0.6)"]
    assert "xxhash" in left_out["host7 (10.0.0.7)"]


def test_cards_are_taken_where_there_are_any_and_a_machine_without_is_no_matter():
    alive = [_alive(0), _alive(1, GPU=2.0), _alive(2, GPU=8.0), _alive(3, GPU=1.0)]
    told = {
        "id0": _answer(),
        "id1": _answer(cards=["H200"] * 2, card_bytes=900),
        "id2": _answer(cards=["H200"] * 4 + ["old"] * 4),
        "id3": _answer(cards=["old"]),
    }
    nodes, others = choose(alive, told, "auto")
    left_out = dict(others)
    assert [(node.id, node.cards, node.card_bytes) for node in nodes] == [("id1", 2, 900)]
    assert left_out.keys() == {"host2 (10.0.0.2)", "host3 (10.0.0.3)"}
    assert choose(alive, told, "cuda")[0] == nodes
    assert [node.cards for node in choose(alive, told, "cpu")[0]] == [0] * 4
    assert choose(alive[:1], told, "cuda") == ([], [("host0 (10.0.0.0)", left_out["host2 (10.0.0.2)"])])


def test_the_card_that_ray_gave_is_counted_among_those_that_cuda_shows(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert task.card_of("3") == "cuda:3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert task.card_of("3") == "cuda:1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa, GPU-bb")
    assert task.card_of("GPU-bb") == "cuda:1"
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "4,6")
    assert task.card_of("6") == "cuda:1"


@needs_ray
def test_ray_is_told_to_leave_all_cards_in_sight_by_its_own_names():
    """Else a process that is used for one layer after the other sees the card of the first alone."""
    from ray._private.accelerators import AMDGPUAcceleratorManager, NvidiaGPUAcceleratorManager, amd_gpu, nvidia_gpu

    names = {amd_gpu.NOSET_HIP_VISIBLE_DEVICES_ENV_VAR, nvidia_gpu.NOSET_CUDA_VISIBLE_DEVICES_ENV_VAR}
    assert machines.SEES_ALL_CARDS["env_vars"].keys() == names
    kinds = (AMDGPUAcceleratorManager, NvidiaGPUAcceleratorManager)
    assert {kind.get_resource_name() for kind in kinds} == {"GPU"}


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


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1", "not the address of a Ray cluster"),
        ("head:port", "not the address of a Ray cluster"),
        ("http://head:6379", "not the address of a Ray cluster"),
        ("ray://head:10001", "has to run on a machine of the Ray cluster"),
    ],
)
def test_addresses_that_no_machine_of_a_cluster_has(address, says):
    with pytest.raises(UsageError, match=says) as caught:
        connection.check_address(address)
    assert caught.value.where == f"RAY_ADDRESS={address}"
    for fine in (None, "auto", "local", "head:6379", "[::1]:6379"):
        connection.check_address(fine)


def test_sigterm_that_ray_takes_while_a_cluster_starts_is_heard_by_whoever_had_it():
    def start() -> None:
        with connection._signals_as_they_are():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray does
            signal.raise_signal(signal.SIGTERM)

    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(SystemExit):
            start()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_whoever_is_not_the_head_of_a_cluster_is_known_at_once():
    """Ray would try for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"

        def say(words: bytes) -> None:
            there, _ = other.accept()
            with there:
                there.recv(99)
                there.sendall(words)

        for words, fits in ((b"HTTP/1.1 400 Bad Request", False), (bytes((0, 0, 24, 4, 0, 0, 0, 0, 0)), True)):
            answering = threading.Thread(target=say, args=(words,))
            answering.start()
            if fits:
                connection.knock(address)
            else:
                with pytest.raises(ConnectionError, match="is not the head"):
                    connection.knock(address)
            answering.join()
        with pytest.raises(ConnectionError, match="nobody answers"):
            connection.knock(address, 0.05)  # it listens, and that is all
    with pytest.raises(ConnectionError, match="nobody listens"):
        connection.knock(address)


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


def _said(events: list, kind: type) -> list[str]:
    """Messages; that machines are slow to answer may be one of them at any time."""
    messages = [event.message for event in events if isinstance(event, kind)]
    return [message for message in messages if not message.startswith("waiting up to ")]


def _run(jobs, work, **limits) -> list:
    return list(make_executor("ray", Limits(**limits)).run(jobs, work))


@pytest.mark.slow
def test_every_layer_is_done_once_with_the_threads_that_are_its_own(cluster):
    said = []
    wide = Layer("wide", WIDE)
    done = _run([wide, *LAYERS], ray_work.threads, on_event=said.append)
    assert sorted(done) == sorted([("wide", "cpu", cores()), *((layer.name, "cpu", 1) for layer in LAYERS)])
    assert _said(said, Remarked) == [
        f"Ray: the cluster at {cluster.address}; layers run on 3 CPUs of 2 machines, reading the files"
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
    home = underway.Home
    monkeypatch.setattr(underway, "Home", lambda folder, node: home(folder, "another machine"))
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
    monkeypatch.setattr(underway, "RETRIES", 1)
    work = ray_work.Dying(ray_work.threads, ("layer 1",), tmp_path, deaths=99)
    with pytest.raises(FileError, match="killed each time") as caught:
        _run(LAYERS[:2], work)
    assert caught.value.where.startswith(f"layer 1, on {os.uname().nodename} (")
    assert "tried 2 times" in caught.value.values
    assert len(list(tmp_path.iterdir())) == 2


class _Forgetful(Begun):
    """An actor that does not survive the question."""

    def of(self, number: int) -> list[str]:
        os._exit(1)


@pytest.mark.slow
def test_the_error_is_the_same_when_what_remembers_the_machines_is_killed_too(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(underway, "RETRIES", 0)
    monkeypatch.setattr(underway, "Begun", _Forgetful)
    work = ray_work.Dying(ray_work.threads, ("layer 1",), tmp_path, deaths=99)
    with pytest.raises(FileError, match="killed each time") as caught:
        _run(LAYERS[:2], work)
    assert caught.value.where == "layer 1, on a machine of the Ray cluster"
    assert "tried 1 time;" in caught.value.values


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
    made = whole_commands.write(tmp_path / "pico")
    time.sleep(0.06)  # so that digests are remembered: of files that have just changed they are not
    return made


def _transfer(
    files: pico.Pico, output: Path, executor: str, cache: Path | str = "off", ray_data: str = "auto", **settings: Any
):
    options = RunOptions(
        executor=executor, cache=str(cache), log="off", overwrite=True, device="cpu", ray_data=ray_data
    )
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


@pytest.mark.slow
@pytest.mark.parametrize("what", COMMANDS)
def test_whatever_takes_an_executor_gives_the_same_on_a_cluster_and_knows_the_same_of_the_files(
    cluster, files, tmp_path, what
):
    made, known, kept = {}, {}, {}
    for executor, data in (("serial", "auto"), ("ray", "paths"), ("ray", "store")):
        cache = tmp_path / f"cache {executor} {data}"
        options = RunOptions(executor=executor, ray_data=data, cache=str(cache), log="off", device="cpu")
        made[data] = what(files, tmp_path / f"{executor} {data}", options)
        known[data] = remembered(cache)
        kept[data] = {path.relative_to(cache): path.read_bytes() for path in cache.glob("[bp]*/*/*.safetensors")}
    if what is transferred:
        made = {data: (content, inputs) for data, (content, _, inputs) in made.items()}
    assert made["paths"] == made["auto"]
    assert made["store"] == made["auto"]
    assert kept["paths"] == kept["store"] == kept["auto"], "bases, and what methods prepare"
    assert known["paths"] == known["auto"]
    for file, digests in known["auto"].items():
        assert digests.items() <= known["store"][file].items()


WITHOUT = """
import sys
from importlib.abc import MetaPathFinder


class Without(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "xxhash":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Without())
"""


@pytest.mark.slow
def test_a_machine_without_a_package_or_with_another_program_takes_no_part(cluster, files, tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT)
    for name, change in {"older": ("version.py", '__version__ = "0.0.1"\n'), "changed": ("wording.py", "\n")}.items():
        shutil.copytree(Path(loraport.__file__).parent, tmp_path / name / "loraport")
        with open(tmp_path / name / "loraport" / change[0], "a") as file:
            file.write(change[1])
    nodes = []
    for name in ("without", "older", "changed"):
        path = os.pathsep.join([str(tmp_path / name), os.environ["PYTHONPATH"]])
        nodes.append(cluster.add_node(num_cpus=1, **MACHINE, env_vars={"PYTHONPATH": path}))
    events = []
    try:
        _transfer(files, tmp_path / "out.safetensors", "ray", on_event=events.append)
    finally:
        for node in nodes:
            cluster.remove_node(node)
    first, *_ = _said(events, Remarked)
    assert "layers run on 3 CPUs of 2 machines" in first
    said = "\n".join(event.message for event in events if isinstance(event, Warned))
    assert "it cannot do the work (" in said
    assert "No module named 'xxhash'" in said
    assert f"it has loraport 0.0.1, not {__version__}" in said
    assert "the code differs" in said


STUCK = """
import os
import sys
import time

if any(name.endswith("default_worker.py") for name in sys.orig_argv):
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
"""


@pytest.mark.slow
def test_a_machine_that_does_not_answer_is_waited_for_aloud_and_then_left_out(cluster, tmp_path, monkeypatch):
    assert len(_run(LAYERS[:4], ray_work.folder)) == 4  # so that the others have processes that answer soon
    monkeypatch.setattr(machines, "_ANSWER_SECONDS", 25.0)
    monkeypatch.setattr(machines, "_SOON_SECONDS", 5.0)
    (tmp_path / "sitecustomize.py").write_text(STUCK)
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    node = cluster.add_node(num_cpus=1, **MACHINE, env_vars={"PYTHONPATH": path})
    said = []
    try:
        done = _run(LAYERS[:2], ray_work.folder, on_event=said.append)
    finally:
        cluster.remove_node(node)
    assert len(done) == 2
    waiting, first = [event.message for event in said if isinstance(event, Remarked)]
    assert waiting.startswith("waiting up to 25 s for machines of the Ray cluster to answer: ")
    assert "of 2 machines" in first
    (warning,) = _said(said, Warned)
    assert warning.endswith("takes no part: it did not answer within 25 s")


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
    first, second = _said(events, Remarked)
    assert first.endswith("layers run on 4 CPUs of 3 machines, 1 of 3 sent what layers need")
    assert second.startswith("sent what they need: ")
    assert f", since {files.folder}" in second
    assert second.endswith("cannot be read (no such file)")
    assert _owned() <= before + 3, "the actor, the work, and nothing that was sent"
    # What was done anywhere is kept here, so that a machine with the cache alone has all of it.
    again = _transfer(files, made, "serial", tmp_path / "cache")
    assert again.summary.cached_layers == len(pico.LAYERS)
    # Where nothing is to be sent, it takes no part.
    events.clear()
    _transfer(files, made, "ray", "off", "paths", on_event=events.append)
    assert made.read_bytes() == expected
    (said,) = _said(events, Warned)
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
    expected = many(files, tmp_path / "serial", options)
    monkeypatch.setattr(underway, "_SHARE", 0.5e-3)  # of 80 MB: about one layer of each kind
    lying, events = [], []
    begin = underway.Underway._begin

    def watched(self, layer, parcel) -> None:
        under = [each for each in (*self._underway.values(), layer) if each.bytes]
        lying.append((self._lying, len(under), self._room))
        assert self._lying == sum(each.bytes for each in under)
        begin(self, layer, parcel)

    monkeypatch.setattr(underway.Underway, "_begin", watched)
    loraport.transfer_many(
        [files.lora, files.folder / "other.safetensors"], source=files.source, target=files.target,
        output=tmp_path / "ray", options=options.model_copy(update={"executor": "ray", "ray_data": "store"}),
        on_event=events.append,
    )  # fmt: skip
    assert [path.read_bytes() for path in sorted((tmp_path / "ray").iterdir())] == expected
    assert len(lying) == len(pico.LAYERS)
    assert all(size <= room or count == 1 for size, count, room in lying)
    (said,) = _said(events, Remarked)
    assert said.endswith("3 CPUs of 2 machines, 2 of 2 sent what layers need")


@pytest.mark.slow
def test_what_was_in_work_when_a_run_is_interrupted_comes_home(cluster, files, tmp_path, watched):
    marks, watch = watched
    watch("")

    def interrupt(event) -> None:
        if isinstance(event, LayerDone):
            raise KeyboardInterrupt

    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        _transfer(files, tmp_path / "out", "ray", cache, "store", on_event=interrupt)
    begun = len(list(marks.iterdir()))
    assert len(list((cache / "result").rglob("*.safetensors"))) == begun > 1


@pytest.mark.slow
def test_what_was_sent_and_is_lost_is_sent_again(cluster, files, tmp_path, monkeypatch):
    """The object store puts it on the disk, since others need room, and somebody cleans up there."""
    import numpy
    import ray

    monkeypatch.setattr(underway, "_LOOK_SECONDS", 2.0)
    monkeypatch.setattr(underway, "_KNOCK_SECONDS", 1.0)
    monkeypatch.setattr(underway, "_FETCH_SECONDS", 5.0)
    monkeypatch.setattr(underway, "_READERS", 1)
    pack, put, lost, others = underway.pack, underway.Underway._put, [], []

    def heavy(work, job):
        parcel = pack(work, job)
        if not lost:
            parcel.sent.stored[tmp_path / "ballast", (), "", None] = numpy.zeros(30 * 2**20, dtype=numpy.uint8)
        return parcel

    def lose(self, job):
        first, ref = not lost, put(self, job)
        if first:
            lost.append(job.title)
            others.extend(ray.put(numpy.full(30 * 2**20, n, dtype=numpy.uint8)) for n in range(4))
            spilled: list[Path] = []
            begun = time.monotonic()
            while not spilled and time.monotonic() < begun + 60:
                time.sleep(0.5)
                spilled = list(Path(os.environ["RAY_TMPDIR"]).rglob("ray_spilled_objects*/*"))
            time.sleep(2)
            for path in Path(os.environ["RAY_TMPDIR"]).rglob("ray_spilled_objects*/*"):
                path.unlink()
            others.clear()
        return ref

    monkeypatch.setattr(underway, "pack", heavy)
    monkeypatch.setattr(underway.Underway, "_put", lose)
    _transfer(files, tmp_path / "serial.safetensors", "serial")
    made, events = tmp_path / "ray.safetensors", []
    _transfer(files, made, "ray", "off", "store", on_event=events.append)
    assert made.read_bytes() == (tmp_path / "serial.safetensors").read_bytes()
    (said,) = _said(events, Warned)
    assert said.startswith(f"{lost[0]} was lost")


@pytest.mark.slow
def test_a_machine_without_room_for_what_it_offers_finishes_its_layers(cluster, files, tmp_path, monkeypatch):
    _transfer(files, tmp_path / "serial.safetensors", "serial")
    worker, cache, made = Worker, tmp_path / "cache", tmp_path / "ray.safetensors"
    monkeypatch.setattr("loraport.engine.run.Worker", lambda *given, **also: ray_work.Crowded(worker(*given, **also)))
    _transfer(files, made, "ray", cache, ray_data="store")
    assert made.read_bytes() == (tmp_path / "serial.safetensors").read_bytes()
    assert {path.parent.parent.name for path in cache.rglob("*.safetensors")} == {"result"}


class _Lying:
    """An actor, whose objects are gone with its machine."""

    def put(self, number: int) -> list:
        import ray

        return [ray.put(Kept("basis", f"{number:064}", {"S": torch.ones(250_000)}, {}))]


class _Held(Store):
    """A store that takes its time."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.may = threading.Event()

    def put(self, *given: Any) -> bool:
        assert self.may.wait(120)
        return super().put(*given)


@pytest.mark.slow
def test_of_decompositions_on_their_way_home_no_more_wait_than_there_is_room_for(cluster, tmp_path):
    import ray

    store = _Held(tmp_path)
    fetching = Behind(room=2_500_000)

    def offer(number: int) -> Offer:
        kept = Kept("basis", f"{number:064}", {"S": torch.full((250_000,), float(number))}, {})
        return Offer(ray.put(kept), kept.bytes)

    machine = cluster.add_node(num_cpus=1, **MACHINE, resources={"mortal": 1})
    mortal = ray.remote(_Lying).options(num_cpus=0, resources={"mortal": 1}).remote()
    (lost,) = mortal.put.remote(0).future().result(120)
    cluster.remove_node(machine, allow_graceful=False)
    offers = [offer(1), Offer(lost, 10**6), *map(offer, range(2, 9))]
    fetch_home(ray, offers, store, fetching)  # the store holds the first
    store.may.set()
    fetching.finish()
    assert [int(entry.key) for entry in store.entries()] == [1], "beside it only the one that is lost fits"
    larger = Behind(room=1)
    fetch_home(ray, [offer(9)], store, larger)
    larger.finish()
    assert sorted(int(entry.key) for entry in store.entries()) == [1, 9]
    assert float(store.get("basis", f"{9:064}")["S"][0]) == 9.0


HEADLESS = """
import os, signal, sys, threading

from ray.cluster_utils import Cluster

import ray_work
from loraport.engine.cluster import underway
from loraport.engine.executor import Limits
from loraport.engine.executors import make_executor
from loraport.errors import FileError

underway._KNOCK_SECONDS, underway._SILENT_SECONDS = 1.0, 2.0
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
os.environ["RAY_ADDRESS"] = cluster.address
(head,) = cluster.head_node.all_processes["gcs_server"]
done = []
try:
    executor = make_executor("ray", Limits(on_event=lambda event: print(event.message)))
    for each in executor.run([ray_work.Layer(str(n)) for n in range(99)], ray_work.Slow(0.5)):
        done.append(each)
        if len(done) == 1:
            head.process.send_signal(signal.SIGKILL)
except FileError as error:
    print(error.message)
print("went on")
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_cluster_whose_head_is_lost_is_said_before_ray_ends_the_program():
    pytest.importorskip("ray", reason="Ray is not installed")
    folder = tempfile.mkdtemp(prefix="ray")
    path = os.pathsep.join([str(Path(ray_work.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = os.environ | {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}
    ran = subprocess.run([sys.executable, "-c", HEADLESS], env=settings, capture_output=True, text=True, timeout=250)
    shutil.rmtree(folder, ignore_errors=True)
    assert ran.returncode == 0, ran.stderr
    joined, told, *_ = (line for line in ran.stdout.splitlines() if not line.startswith("waiting up to "))
    assert re.fullmatch(r"Ray: joined the cluster at \S+:\d+, of 1 machine", joined)
    assert "layers run on 2 CPUs of" in told
    assert "the connection to the Ray cluster was lost\n  where: its head at " in ran.stdout
    assert "run the same command again" in ran.stdout
    assert ran.stdout.endswith("went on\n")
