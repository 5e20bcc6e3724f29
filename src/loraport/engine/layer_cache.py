"""What of one layer is kept in the store for the next LoRA of the same pair, and under which keys.

The basis of a weight is known by the weight and what LoRAs add to it; what a method prepares, by both weights, the
method and its settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loraport.adapters.update import LayerUpdate
from loraport.core.basis import SpectralBasis
from loraport.core.thin_svd import ALGORITHM
from loraport.engine.job import LayerJob
from loraport.methods.base import Params, TransferMethod
from loraport.store.store import Store, entry_key


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


@dataclass(frozen=True)
class Prepared:
    """What a method made of a pair of weights, opaque to everybody else, and the norm of their difference."""

    tensors: Mapping[str, Tensor]
    drift_norm: float


@dataclass(frozen=True)
class LayerCache:
    """The store, as one layer sees it.

    Args:
        job: the layer.
        digests: of the tensors that the job names, by role.
        store: looked up first.
        device: where what is found goes.
        keep: whether anything is put there.
    """

    job: LayerJob
    digests: dict[str, str]
    store: Store
    device: torch.device
    keep: bool

    def basis(self, role: str) -> SpectralBasis | None:
        """The basis of the weight of that side, None where it is not there."""
        if not basis_role(self.job, role):
            return None
        m, n = self.job.shape
        p = min(m, n)
        kept = self.store.get("basis", self._basis_key(role), expect={"U": (m, p), "S": (p,), "Vh": (p, n)})
        if kept is None:
            return None
        return SpectralBasis(kept["U"], kept["S"], kept["Vh"], driver=kept.meta["driver"]).to(self.device)

    def keep_basis(self, role: str, basis: SpectralBasis) -> SpectralBasis:
        """Keep it if it is worth its room, and hand it back."""
        if self.keep and basis_role(self.job, role):
            tensors = {"U": basis.U, "S": basis.S, "Vh": basis.Vh}
            self.store.put("basis", self._basis_key(role), tensors, {"driver": basis.driver})
        return basis

    def prepared(self, method: TransferMethod, params: Params) -> tuple[str | None, Prepared | None]:
        """The key of what the method prepares, None where it is not worth keeping, and what is there under it."""
        key = prepared_key(method, params, self.job, self.digests)
        if key is None:
            return None, None
        kept = self.store.get("prepared", key)
        if kept is None or "drift_norm" not in kept.meta:
            return key, None
        tensors = {name: tensor.to(self.device) for name, tensor in kept.items()}
        return key, Prepared(tensors, float(kept.meta["drift_norm"]))

    def keep_prepared(self, key: str, prepared: Prepared) -> None:
        """Keep it under a key of `prepared` if it is worth its room."""
        if self.keep:
            self.store.put("prepared", key, prepared.tensors, {"drift_norm": repr(prepared.drift_norm)})

    def _basis_key(self, role: str) -> str:
        return basis_key(self.job, role, self.digests)
