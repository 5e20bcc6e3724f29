"""A Ray cluster as an executor sees it: found, or started for the run; and what is said of it."""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.engine.cluster.machines import LeftOut, Node, ask, choose
from loraport.engine.devices import named_devices, pick_devices, usable_bytes
from loraport.engine.events import Remarked, Warned
from loraport.engine.executor import Limits
from loraport.engine.options import RayData
from loraport.errors import FileError, UsageError, first_line
from loraport.machine import cores
from loraport.version import __version__
from loraport.wording import count

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a task without a card leaves the cards as they are; later Rays do so
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # lines of Ray's own on standard output: all of them
    "RAY_task_oom_retries": "3",  # of a task that Ray ends because memory runs out; for ever by default
    "RAY_idle_worker_killing_time_threshold_ms": "60000",  # a new process loads PyTorch again; a second by default
}
_KNOCK_SECONDS = 10.0
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # its preface, and no settings
_RESULTS_BYTES = 500_000_000  # of the object store of a cluster of our own, which holds factors on their way home


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        nodes: that take part, at least one, all of one kind.
        here: the id of the node that this process is on.
        store_bytes: of the object store of that node.
    """

    nodes: tuple[Node, ...]
    here: str
    store_bytes: int = 0

    @property
    def on_cards(self) -> bool:
        """Whether the work is done on CUDA devices."""
        return self.nodes[0].cards > 0

    @property
    def cores(self) -> int:
        """Of the processor of each machine."""
        return min(node.cores for node in self.nodes)


def check_usable(wanted: str) -> None:
    """Raise UsageError if Ray is not installed, or a device is wanted that Ray does not give out."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("Ray is not installed", values="--executor ray", fix='pip install "loraport[ray]"')
    names = named_devices(wanted)
    if names[0] not in ("auto", "cpu", "cuda"):
        raise UsageError(
            "Ray assigns the devices of the cluster itself", values=wanted, fix="use --device auto, cpu or cuda"
        )


@contextlib.contextmanager
def connected(limits: Limits, *, start: bool) -> Iterator[bool | None]:
    """A connection to the cluster that is there, or to one that is started on this machine and ends with the block.

    A connection that the program has already is used, and left as it is.

    Args:
        limits: what the user allows.
        start: whether to start a cluster if there is none.

    Yields:
        Whether a cluster was started; None where there is none and none was to be started.

    Raises:
        UsageError: a cluster that was named does not answer.
    """
    ours = "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
    for name, value in _SETTINGS.items() if ours else ():
        os.environ.setdefault(name, value)  # before it is loaded
    import ray

    try:
        yield _connect(ray, limits, start=start) if ours else False
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, limits: Limits, *, start: bool) -> bool | None:
    """Connect; returns whether a cluster was started for it, or None if there is none and none was to be started."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if not start and address == "local":
        return None
    check_address(address)
    with _signals_as_they_are():
        try:
            knock(address)
            if not start:
                ray.init("auto", **quiet)
                return _joined(ray, limits, address)
            try:
                ray.init(**quiet, **_own(limits))
                return True
            except ValueError as error:  # what a new cluster is to be like is refused where there is one
                if "existing cluster" not in str(error):
                    raise
            ray.init(**quiet)
            return _joined(ray, limits, address)
        except ConnectionError as error:
            if not start and not address:
                return None
            raise UsageError(
                "the Ray cluster does not answer",
                where=address or "the address that `ray start` left on this machine",
                values=first_line(error),
                fix="start it (ray start), forget it (ray stop, unset RAY_ADDRESS), or use a cluster for this run "
                "only (RAY_ADDRESS=local)",
            ) from error
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                "Ray could not be used",
                where=address,
                values=" ".join(str(error).split())[:500],
                fix="use the cluster's versions of Ray and Python, or --executor process",
            ) from error


def _joined(ray: Any, limits: Limits, address: str | None) -> bool:
    """Say which cluster this is, before anything is sent there; returns that none was started."""
    machines = count(sum(node["Alive"] for node in ray.nodes()), "machine")
    found = ", found on this machine (RAY_ADDRESS=HOST:PORT names another, RAY_ADDRESS=local is one for this run alone)"
    where = ray.get_runtime_context().gcs_address
    limits.on_event(Remarked(f"Ray: joined the cluster at {where}, of {machines}{'' if address else found}"))
    return False


def check_address(address: str | None) -> None:
    """Raise UsageError if an address is none that a machine of a cluster has."""
    if not address or address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise UsageError(
            "the command has to run on a machine of the Ray cluster",
            where=f"RAY_ADDRESS={address}",
            values="this address is for programs that run elsewhere; their files cannot be sent to the cluster",
            fix="run ray start --address=HEAD:6379 on this machine, then use RAY_ADDRESS=HEAD:6379",
        )
    if not host or "/" in host or not port.isdecimal():
        raise UsageError(
            "this is not the address of a Ray cluster",
            where=f"RAY_ADDRESS={address}",
            fix="use HOST:PORT as `ray start` prints it (port 6379 unless you chose another), auto, or local",
        )


def knock(address: str | None, seconds: float = _KNOCK_SECONDS) -> None:
    """Raise ConnectionError if the head of a cluster does not answer at host:port, which Ray finds out after minutes.

    It speaks gRPC, whose first message is that of HTTP/2, from either side.
    """
    host, _, port = (address or "").rpartition(":")
    if not host:
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as there:
            if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
                return
            there.sendall(_HTTP2)
            answer = there.recv(9)
    except TimeoutError as error:
        raise ConnectionError("nobody answers there") from error
    except OSError as error:
        raise ConnectionError(f"nobody listens there ({error.strerror or error})") from error
    if answer[3:4] != b"\4":  # settings
        raise ConnectionError("what answers there is not the head of a Ray cluster; is it the port of something else?")


def _own(limits: Limits) -> dict[str, Any]:
    """The cluster for one run on this machine."""
    cards = sum(device.startswith("cuda") for device in pick_devices(limits.device))
    return {
        "num_cpus": cores() if cards else limits.workers or cores(),
        "num_gpus": cards,
        "_memory": usable_bytes("cpu"),
        "object_store_memory": _RESULTS_BYTES,
        "include_dashboard": False,
    }


@contextlib.contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """Ray takes SIGTERM for itself and ends the program by it; whoever had it before hears it, and gets it back."""
    names = [name for name in ("SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        names = []
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}

    def give_back() -> None:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)

    try:
        yield
    except SystemExit:  # Ray's answer to it, after it has ended its processes
        give_back()
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        give_back()


def survey(
    limits: Limits, files: Mapping[Path, str], data: RayData = "paths", work: object = None
) -> tuple[Cluster, list[LeftOut]]:
    """Ask every machine of the cluster that this process is connected to what it is, and choose those that take part.

    Args:
        limits: what the user allows.
        files: that the work reads, each with its `file_identity`.
        data: as for `choose`.
        work: that is to be done; None where it is not known yet.

    Returns:
        The cluster, and the machines that take no part.

    Raises:
        UsageError: no machine can do the work.
        FileError: none sees the files.
    """
    import ray

    here, known = ray.get_runtime_context().get_node_id(), ray.nodes()
    alive = [node for node in known if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    states = {str(file): state for file, state in files.items()}
    told, silent = ask(ray, alive, states, work, limits.on_event)
    nodes, left_out = choose(alive, told, limits.device, data)
    left_out = silent + left_out
    if nodes:
        room = next((node["Resources"].get("object_store_memory", 0) for node in known if node["NodeID"] == here), 0)
        return Cluster(tuple(nodes), here, int(room)), left_out
    reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out)
    if data == "paths" and any(answer["unlike"] for answer in told.values()):
        raise FileError(
            "no machine of the Ray cluster sees the files as they are here",
            values=reasons,
            fix="put them on one shared disk, where every machine has them under the same name, or let this "
            "command send what they need (--ray-data auto)",
        )
    raise UsageError(
        "no machine of the Ray cluster can do the work",
        values=reasons or "none of its machines has a CPU to offer",
        fix=f"run pip install loraport=={__version__} on them, with a PyTorch that finds the device, or use "
        "--device cpu",
    )


def announce(cluster: Cluster, left_out: Sequence[LeftOut], limits: Limits, *, started: bool) -> None:
    """Say where the work is done, and which machines take no part.

    Args:
        cluster: that was chosen.
        left_out: the others.
        limits: who is told.
        started: whether the cluster was started for this run.
    """
    import ray

    address = ray.get_runtime_context().gcs_address
    where = "a cluster on this machine, for this run" if started else f"the cluster at {address}"
    cards, cpus = sum(node.cards for node in cluster.nodes), sum(node.cpus for node in cluster.nodes)
    what = count(cards, "GPU") if cards else f"{cpus:g} CPU{'' if cpus == 1 else 's'}"
    machines = count(len(cluster.nodes), "machine") if len(cluster.nodes) > 1 else cluster.nodes[0].name
    sent = [node for node in cluster.nodes if node.unseen]
    data = f"{len(sent)} of {len(cluster.nodes)} sent what layers need" if sent else "reading the files"
    limits.on_event(Remarked(f"Ray: {where}; layers run on {what} of {machines}, {data}"))
    if limits.data != "store":
        for reason in dict.fromkeys(node.unseen for node in sent):
            names = ", ".join(node.name for node in sent if node.unseen == reason)
            limits.on_event(Remarked(f"sent what they need: {names}, since {reason}"))
    for name, reason in left_out:
        limits.on_event(Warned(f"{name} of the Ray cluster takes no part: {reason}"))
