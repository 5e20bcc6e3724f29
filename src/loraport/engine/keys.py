"""What a layer's work is known by in the store: its result, the bases of its weights, what a method makes of the pair.

The key of a result names everything that determines it, so running the same job again finds it: that is how an
interrupted run resumes, and why device, workers and paths are not in it. The basis of a weight is known by the weight
and what LoRAs add to it; what a method prepares, by both weights, the method and its settings.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from loraport.adapters.update import LayerUpdate
from loraport.core.algorithm import ALGORITHM
from loraport.engine.job import LayerJob
from loraport.methods import registry
from loraport.methods.base import Params, TransferMethod
from loraport.store.index import entry_key

ADDED = ("source_lora.", "target_lora.")  # roles of the tensors of LoRAs that are a part of a model
RESULT_VERSION = 5
"""Raised whenever the same job would give other bytes than before."""


def result_key(job: LayerJob, digests: Mapping[str, str]) -> str:
    """Under which key the finished layer is kept: all that decides it."""
    return entry_key(_identity(job, digests))


def seed_of(job: LayerJob, digests: Mapping[str, str]) -> int:
    """Of the random columns of an approximation: from what decides the layer, but not from `RESULT_VERSION`, so that
    raising it for one kind of layer changes no bit of the others."""
    return int(entry_key(_identity(job, digests) | {"version": 1})[:15], 16)


def _identity(job: LayerJob, digests: Mapping[str, str]) -> dict[str, Any]:
    method, params = registry.resolve(job.method, job.params)
    # Layers that share all tensors of a fused weight differ in their rows alone.
    rows: dict[str, Any] = {"rows": job.update.rows} if job.update.rows is not None else {}
    if job.source_updates:
        rows["source_lora"] = updates_by(job, "source", digests)
    if job.update.settings:
        rows["settings"] = dict(job.update.settings)
    return rows | {
        "version": RESULT_VERSION,
        "algorithm": ALGORITHM,
        "method": [method.name, method.version, params.model_dump(mode="json")],
        "digests": {role: digest for role, digest in digests.items() if not role.startswith(ADDED)},
        "scale": job.update.scale,
        "distill": updates_by(job, "target", digests) or None,
        "has_drift": job.has_drift,
        "round_to": job.round_to,
        "rank": asdict(job.rank),
        "amount": job.amount,
        "dtype": job.dtype,
    }


def basis_key(job: LayerJob, side: str, digests: Mapping[str, str]) -> str:
    """Under which key the basis of a side's weight is kept, with what LoRAs add to it."""
    added = {"added": updates_by(job, side, digests)} if job.added(side) else {}
    return entry_key(added | {"weight": digests[side], "round_to": job.round_to, "algorithm": ALGORITHM})


def basis_role(job: LayerJob, role: str) -> bool:
    """Whether the basis of that side is kept. A target that is made of the source has no digest of its own, and one
    that distillation LoRAs were added to is another for every strength."""
    return role == "source" or (job.target is not None and not job.target_updates)


def prepared_key(method: TransferMethod, params: Params, job: LayerJob, digests: Mapping[str, str]) -> str | None:
    """Under which key is kept what a method prepares for a pair of weights; None where it is not worth keeping."""
    detail = method.prepared_key(params)
    if detail is None or "target" not in digests:
        return None
    return entry_key(_of_the_pair(job, digests) | {"prepared": [method.name, method.version, detail]})


def matrices_key(method: TransferMethod, params: Params, job: LayerJob, digests: Mapping[str, str]) -> str:
    """What decides the matrices that a method sees of a layer beside the LoRA's update."""
    settings = [method.name, method.version, params.model_dump(mode="json")]
    return entry_key(_of_the_pair(job, digests) | {"matrices": settings})


def _of_the_pair(job: LayerJob, digests: Mapping[str, str]) -> dict[str, Any]:
    """What names a pair of weights, with what LoRAs add to them."""
    sides = {"added": "target", "source_added": "source"}
    return {name: updates_by(job, side, digests) for name, side in sides.items() if job.added(side)} | {
        "algorithm": ALGORITHM,
        "source": digests["source"],
        "target": digests.get("target"),
        "round_to": job.round_to,
    }


def updates_by(job: LayerJob, side: str, digests: Mapping[str, str]) -> list[Any]:
    """What names the updates that are added to a side: the same in whatever order they were given."""
    return [named for named, _ in ordered_updates(job, side, digests)]


def ordered_updates(job: LayerJob, side: str, digests: Mapping[str, str]) -> list[tuple[list[Any], LayerUpdate]]:
    """The updates that are added to a side, each with what names it, in an order that follows from the names."""
    named = []
    for number, update in job.added(side).items():
        roles = sorted((role, digests[f"{side}_lora.{number}.{role}"]) for role in update.refs)
        more = [dict(update.settings)] if update.settings else []
        named.append(([roles, update.scale, update.rows, *more], update))
    return sorted(named, key=lambda item: repr(item[0]))
