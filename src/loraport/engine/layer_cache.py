"""What of one layer is kept in the store for the next LoRA of the same pair, and under which keys.

The basis of a weight is known by the weight and what LoRAs add to it; what a method prepares, by both weights, the
method and its settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loraport.core.basis import SpectralBasis
from loraport.engine.job import LayerJob
from loraport.engine.keys import basis_key, basis_role, prepared_key
from loraport.methods.base import Params, TransferMethod
from loraport.store.store import Store


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
