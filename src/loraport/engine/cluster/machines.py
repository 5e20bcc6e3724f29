"""Which machines of a Ray cluster take part in a job.

Which layer goes to which machine is chance, and machines of two kinds do not round alike. So those that take part are
of one kind: processors of one name and number of cores, or cards of one name, with one version of PyTorch. Each is
asked before the work begins, in a small task; what it says also shows whether it has this program, and whether it
sees the same files.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loraport.containers.references import file_identity
from loraport.engine.events import Listener, Remarked
from loraport.engine.options import RayData
from loraport.engine.rates import processor_name
from loraport.errors import FileError
from loraport.machine import cores
from loraport.version import __version__

NODE_ID = "ray.io/node-id"
"""The label by which Ray finds a machine."""

SEES_ALL_CARDS = {
    "env_vars": {f"RAY_EXPERIMENTAL_NOSET_{kind}_VISIBLE_DEVICES": "1" for kind in ("CUDA", "HIP")}
}  # of NVIDIA, of AMD
"""For tasks on cards: a process is used for many layers, and what CUDA shows it is settled by the first."""

_ANSWER_SECONDS = 120.0
_SOON_SECONDS = 45.0  # what starting a process takes on a machine that has much else to do
_MISSING = "No module named"

LeftOut = tuple[str, str]
"""A machine that takes no part: what it is called, and why."""


@dataclass(frozen=True)
class Node:
    """A machine that takes part.

    Attributes:
        id: by which Ray knows it.
        name: for people: host and address.
        cpus: what Ray gives out there.
        cards: likewise; 0 where the work is done on processors.
        memory: bytes that Ray gives out there.
        cores: of the processor.
        card_bytes: usable memory of each card.
        unseen: why it is sent what it reads; "" where it reads the files itself.
    """

    id: str
    name: str
    cpus: float
    cards: int
    memory: int
    cores: int
    card_bytes: int = 0
    unseen: str = ""


def name_of(node: Mapping[str, Any]) -> str:
    """A machine of `ray.nodes()`, for people."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def ask(
    ray: Any, alive: Sequence[Mapping[str, Any]], files: Mapping[str, str], work: object, on_event: Listener
) -> tuple[dict[str, dict[str, Any]], list[LeftOut]]:
    """What each machine says of itself, by its id; and which others say nothing.

    Args:
        ray: the module.
        alive: of `ray.nodes()`.
        files: with their `file_identity` here.
        work: that is to be done; None where it is not known yet.
        on_event: told whom it takes long to hear from.
    """
    question = ray.remote(look_around)
    given = {"files": dict(files), "folder": os.getcwd(), "work": ray.put(work)}
    asked = {}
    for node in alive:
        cards = node["Resources"].get("GPU", 0) > 0
        at = question.options(
            num_cpus=0,
            max_retries=1,
            label_selector={NODE_ID: node["NodeID"]},
            runtime_env=SEES_ALL_CARDS if cards else None,
        )
        task = at.remote(given | {"cards": cards})
        asked[task.future()] = task, node
    slow = wait(asked, _SOON_SECONDS).not_done
    if slow:
        names = ", ".join(sorted(name_of(asked[each][1]) for each in slow))
        on_event(Remarked(f"waiting up to {_ANSWER_SECONDS:.0f} s for machines of the Ray cluster to answer: {names}"))
    ready = wait(asked, _ANSWER_SECONDS - _SOON_SECONDS).done
    told: dict[str, dict[str, Any]] = {}
    silent: list[LeftOut] = []
    for answer, (task, node) in asked.items():
        if answer not in ready:
            ray.cancel(task, force=True)
            silent.append((name_of(node), f"it did not answer within {_ANSWER_SECONDS:.0f} s"))
            continue
        try:
            told[node["NodeID"]] = answer.result()
        except ray.exceptions.RayError as error:
            silent.append((name_of(node), _why_silent(error)))
    return told, silent


def _why_silent(error: Exception) -> str:
    said = _told_by(error)
    return f"loraport cannot be imported there ({said})" if _MISSING in said else said


def _told_by(error: Exception) -> str:
    """The line of an error of Ray's that says what is wrong, of which most have many."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    return next((line for line in lines if _MISSING in line), lines[-1])[:300]


def look_around(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the machine that this runs on is.

    Question and answer are plain values by name, since another version of this program may be on the other side.

    Args:
        asked: "files" with their `file_identity` elsewhere, "folder" that relative names begin in, whether to look for
            "cards", that is CUDA devices, and the "work" that is to be done, in the object store.
    """
    stand_in(asked["folder"])
    found: dict[str, Any] = {
        "loraport": __version__,
        "code": code(),
        "torch": version("torch"),
        "processor": processor_name(),
        "cores": cores(),
        "cards": [],
        "card_bytes": 0,
        "unlike": _unlike(asked["files"]),
        "unable": _unable(asked["work"]),
    }
    if asked["cards"]:
        from loraport.engine import accelerators

        found["cards"], found["card_bytes"] = accelerators.survey()
    return found


def stand_in(folder: str) -> None:
    """Let relative names mean what they mean where the work comes from."""
    with contextlib.suppress(OSError):  # it is not there, which matters only to relative names
        os.chdir(folder)


@cache
def code() -> str:
    """A digest of this program as it is installed: two of one version may be from different days."""
    folder = Path(__file__).parents[2]
    found = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.suffix in (".py", ".yaml")):
        found.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def _unable(work: Any) -> str:
    """Why this machine cannot do the work; "" if it can. What the work needs is imported with it."""
    import ray

    try:
        ray.get(work)
    except Exception as error:  # whatever is wrong with the machine
        return _told_by(error)
    return ""


def _unlike(files: Mapping[str, str]) -> str:
    """The first file that is not here as it is elsewhere, and why; "" if all are."""
    for file, state in files.items():
        try:
            here = file_identity(file)
        except FileError as error:
            return f"{file} cannot be read ({error.values or error.what})"
        if here != state:
            return f"{file} is another file there ({here}, and {state} here)"
    return ""


def choose(
    alive: Sequence[Mapping[str, Any]], told: Mapping[str, Mapping[str, Any]], wanted: str, data: RayData = "paths"
) -> tuple[list[Node], list[LeftOut]]:
    """The machines that take part: of those that can, the kind that can do most.

    Args:
        alive: of `ray.nodes()`.
        told: what they say, by their ids; those that say nothing are not looked at.
        wanted: auto, cpu or cuda.
        data: whether those that do not see the files take part all the same, and whether all are taken for such.

    Returns:
        The machines, and the others.
    """
    able = {node["NodeID"]: node for node in alive if node["NodeID"] in told}
    left_out: list[LeftOut] = []
    for key in list(able):
        reason = _why_unable(told[key], data)
        if reason:
            left_out.append((name_of(able.pop(key)), reason))
    with_cards = {key for key, node in able.items() if _cards(node, told[key])}
    on_cards = wanted == "cuda" or (wanted == "auto" and bool(with_cards))
    kinds: dict[tuple[str, ...], list[Node]] = {}
    for key, node in able.items():
        answer, resources = told[key], node["Resources"]
        if on_cards and key not in with_cards:
            if resources.get("GPU", 0) > 0 or wanted == "cuda":
                left_out.append((name_of(node), "it offers no GPUs of one kind that PyTorch finds"))
            continue
        made = Node(
            key,
            name_of(node),
            float(resources["CPU"]),
            _cards(node, answer) if on_cards else 0,
            int(resources.get("memory", 0)),
            int(answer["cores"]),
            int(answer["card_bytes"]) if on_cards else 0,
            "--ray-data store" if data == "store" else str(answer["unlike"]),
        )
        kinds.setdefault(_kind(answer, on_cards=on_cards), []).append(made)
    if not kinds:
        return [], left_out
    chosen = max(kinds, key=lambda kind: (sum(node.cards or node.cpus for node in kinds[kind]), kind))
    for kind, others in kinds.items():
        if kind != chosen:
            for other in others:
                reason = (
                    f"it is of another kind and would round differently ({', '.join(kind)}; not {', '.join(chosen)})"
                )
                left_out.append((other.name, reason))
    return kinds[chosen], left_out


def _why_unable(answer: Mapping[str, Any], data: RayData) -> str:
    if answer["loraport"] != __version__:
        return f"it has loraport {answer['loraport']}, not {__version__}"
    if answer["code"] != code():
        return f"its loraport {__version__} is not the same as here: the code differs"
    if answer["unable"]:
        return f"it cannot do the work ({answer['unable']})"
    return str(answer["unlike"]) if data == "paths" else ""


def _cards(node: Mapping[str, Any], answer: Mapping[str, Any]) -> int:
    """How many CUDA devices a machine gives out; 0 if they are not alike, since Ray says which of them a task gets."""
    alike = len(set(answer["cards"])) == 1
    return min(int(node["Resources"].get("GPU", 0)), len(answer["cards"])) if alike else 0


def _kind(answer: Mapping[str, Any], *, on_cards: bool) -> tuple[str, ...]:
    torch = f"PyTorch {answer['torch']}"
    if on_cards:
        return answer["cards"][0], torch
    return answer["processor"], f"{answer['cores']} cores", torch
