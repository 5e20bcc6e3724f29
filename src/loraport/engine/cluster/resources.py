"""What a layer asks of a machine of a Ray cluster, from its own figures, and how many layers a machine has room for."""

import math
from dataclasses import dataclass, replace

from loraport.engine.cluster.connection import Cluster
from loraport.engine.cluster.machines import Node
from loraport.engine.executor import APART_ON_ACCELERATOR, J, Limits, Slot, for_tensors

_FINEST = 10_000  # Ray counts in ten-thousandths


def slots_of(cluster: Cluster, limits: Limits) -> list[Slot]:
    """Places for layers of ordinary size. Cards are numbered through all machines."""
    found: list[Slot] = []
    for node in cluster.nodes:
        if cluster.on_cards:
            count, room = _on_a_card(limits), _allowed_there(node, limits)
            first = len({slot.device for slot in found})
            found += [Slot(f"cuda:{first + at // count}", 1, room // count) for at in range(node.cards * count)]
        else:
            count, room = limits.workers or max(int(node.cpus), 1), _allowed(node.memory, limits)
            found += [Slot("cpu", 1, room // count)] * count
    return found


@dataclass(frozen=True)
class Resources:
    """What a layer takes of a machine, by which Ray finds one for it.

    Attributes:
        cpus: of those that Ray gives out.
        cards: likewise, or a part of one.
        memory: bytes of the machine.
        card_bytes: of its part of a card that its tensors may take; None where the user set no bound.
    """

    cpus: float
    cards: float
    memory: int
    card_bytes: int | None = None


def resources_of(job: J, cluster: Cluster, limits: Limits) -> Resources:
    """What to ask for, so that as many layers share a machine as `limits` and its memory allow, and no more.

    Args:
        job: the layer.
        cluster: its machines.
        limits: what the user allows.
    """
    largest = max(node.memory for node in cluster.nodes)
    cpus = min(node.cpus for node in cluster.nodes)
    if not cluster.on_cards:
        scale = largest / _allowed(largest, limits)  # a smaller limit fills the machine sooner
        memory = min(math.ceil(job.peak_bytes * scale), largest)
        count = 1 if job.wide else limits.workers or max(int(cpus), 1)
        return Resources(_share(cpus, count), 0, memory)
    cards = max(node.cards for node in cluster.nodes)
    room = min(_allowed_there(node, limits) for node in cluster.nodes)
    count = _on_a_card(limits)
    part = min(max(_floor(1 / count), math.ceil(_FINEST * job.bytes_on("cuda") / max(room, 1)) / _FINEST), 1.0)
    own = min(cpus / cards / count, 1.0)
    bound = None if limits.memory is None else int(part * room)
    return Resources(float(int(own)) if own >= 1 else _floor(own), part, min(job.peak_bytes, largest), bound)


def _allowed(memory: int, limits: Limits) -> int:
    return max(memory if limits.memory is None else min(memory, limits.memory), 1)


def _on_a_card(limits: Limits) -> int:
    return limits.workers or APART_ON_ACCELERATOR


def _allowed_there(node: Node, limits: Limits) -> int:
    """Bytes of a card that tensors may take."""
    most = None if limits.memory is None else for_tensors(limits.memory, _on_a_card(limits))
    return _allowed(node.card_bytes, replace(limits, memory=most))


def _share(whole: float, count: int) -> float:
    """One of `count` parts of a machine; of more than one Ray gives out whole ones alone."""
    part = whole / count
    return float(math.ceil(part)) if part >= 1 else _floor(part)


def _floor(part: float) -> float:
    return max(math.floor(part * _FINEST), 1) / _FINEST
