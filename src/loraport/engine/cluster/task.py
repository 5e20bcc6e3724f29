"""A layer's task on a machine of a Ray cluster: what runs there."""

import concurrent.futures
import contextlib
import os
import signal
from dataclasses import dataclass, replace
from typing import Any

from loraport.engine.apart import Done, done_apart
from loraport.engine.cluster.machines import stand_in
from loraport.engine.executor import J, Result, Slot, Work
from loraport.engine.known_digests import Pages
from loraport.errors import FileError

SAID_SECONDS = 10.0
"""Until where a layer is begun is known; the layer does not depend on it."""

_UNKNOWN = (TimeoutError, concurrent.futures.TimeoutError)  # one and the same from Python 3.11 on


@dataclass(frozen=True)
class Home:
    """Where the work comes from: the working folder, and the id of the node."""

    folder: str
    node: str


class Begun:
    """Remembers where each layer was begun, which nobody else can say of a process that was killed. An actor."""

    def __init__(self) -> None:
        self._places: dict[int, list[str]] = {}

    def at(self, number: int, place: str) -> None:
        """A layer was begun there."""
        self._places.setdefault(number, []).append(place)

    def of(self, number: int) -> list[str]:
        """All places where it was begun, a killed try each but the last."""
        return self._places.get(number, [])


def places_of(begun: Any, number: int) -> list[str]:
    """Where a layer was begun, or nothing where that is not known in time.

    Args:
        begun: a `Begun`, which may have been killed as well.
        number: of the layer.
    """
    import ray

    with contextlib.suppress(*_UNKNOWN, ray.exceptions.RayError):
        places: list[str] = begun.of.remote(number).future().result(SAID_SECONDS)
        return places
    return []


@dataclass(frozen=True)
class Offer:
    """An entry for the store at home that lies in the object store of the machine that made it.

    Attributes:
        kept: where it lies, a reference of Ray's to a `Kept`. It is gone with the process that made it.
        bytes: of its tensors.
    """

    kept: Any
    bytes: int


def in_task(
    work: Work[J, Result], job: J, slot: Slot, told: Pages, number: int, home: Home, begun: Any, parcel: Any
) -> tuple[Done[Result], list[Offer]]:
    """Do one job. This runs on whatever machine Ray chose.

    Args:
        work: what is done.
        job: the job.
        slot: on which device, before Ray says which.
        told: what is known of the tensors that the job reads.
        number: of the job.
        home: where the work comes from.
        begun: the actor that is told.
        parcel: what the job reads, a `sending.Parcel`; None where it reads the files.

    Returns:
        What comes home, and decompositions that may be fetched.
    """
    import ray

    with contextlib.suppress(ValueError):  # not the main thread, which is the one that would be interrupted
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    context = ray.get_runtime_context()
    place = f"{os.uname().nodename if hasattr(os, 'uname') else 'a machine'} ({ray.util.get_node_ip_address()})"
    # By `future`: while a task waits in `ray.get`, Ray gives its CPU and memory to another.
    with contextlib.suppress(*_UNKNOWN, ray.exceptions.RayError):
        begun.at.remote(number, place).future().result(SAID_SECONDS)
    stand_in(home.folder)
    if slot.device == "cuda":
        slot = replace(slot, device=card_of(context.get_accelerator_ids()["GPU"][0]))
    if parcel is not None:
        from loraport.engine.cluster.sending import RESULT, unpack

        done = unpack(work, job, slot, told, parcel)
        offers: list[Offer] = []
        with contextlib.suppress(ray.exceptions.RayError):  # there is no room for more, which is no fault of the layer
            for each in done.kept:
                if each.kind != RESULT:
                    offers.append(Offer(ray.put(each), each.bytes))
        return replace(done, kept=tuple(each for each in done.kept if each.kind == RESULT)), offers
    done = done_apart(work, job, slot, told)
    error = done.error
    if not isinstance(error, FileError) or context.get_node_id() == home.node:
        return done, []
    where = f"{error.where}, on {place}" if error.where else place
    fix = "every machine of the Ray cluster must see the same files under the same names, on a shared disk"
    fix = f"{error.fix}; {fix}" if error.fix else fix
    return replace(done, error=FileError(error.what, where=where, values=error.values, fix=fix)), []


def card_of(given: str) -> str:
    """torch's name of the card that Ray gave, which counts those that CUDA, or AMD's HIP, shows."""
    told = os.environ.get("HIP_VISIBLE_DEVICES") or os.environ.get("CUDA_VISIBLE_DEVICES", "")
    shown = [name.strip() for name in told.split(",") if name.strip()]
    return f"cuda:{shown.index(given) if given in shown else int(given)}"
