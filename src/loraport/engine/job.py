"""One layer's work order: references and settings, no tensor and no device."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from loraport.adapters.adapter import LayerUpdate
from loraport.containers.tensors import TensorRef
from loraport.engine.recipe import RankRule
from loraport.threads import threads_of_torch

WIDE_ELEMENTS = 40_000_000
"""Layers with more elements than this get all cores to themselves; smaller ones run one on each core.

The number of threads changes the rounding of matrix products, so it may depend on the layer and the
machine but never on the number of workers: that is what keeps every executor at the same bytes.
"""


@dataclass(frozen=True)
class LayerJob:
    """All that `worker.run_job` needs to know about one layer.

    Attributes:
        name: canonical layer name. shape: (out, in) of the weight.
        method, params: name and settings (plain values) of the method for this layer.
        update: the LoRA's factors on disk, with the scale.
        source, target: the two weights; None where the method does not need them.
        distill: the update of the distillation LoRA when that defines the target, with its strength.
        has_drift: False when a distillation LoRA leaves this layer alone.
        round_to: dtype that both weights are rounded to before differencing, when they are stored in
            different ones; otherwise the rounding of one file would pass for drift.
        rank: settled rule for the output rank. amount: 0 direct .. 1 the method in full.
        dtype: torch name of the output's dtype.
        cost: operations expected. peak_bytes: memory expected.
    """

    name: str
    shape: tuple[int, int]
    method: str
    params: dict[str, Any]
    update: LayerUpdate
    source: TensorRef | None
    target: TensorRef | None
    distill: tuple[LayerUpdate, float] | None
    has_drift: bool
    round_to: str | None
    rank: RankRule
    amount: float
    dtype: str
    cost: float
    peak_bytes: int

    @property
    def wide(self) -> bool:
        """Whether the layer is large enough to be given all cores."""
        return self.shape[0] * self.shape[1] > WIDE_ELEMENTS


def basis_cost(m: int, n: int) -> float:
    """Operations of a thin SVD by the Gram matrix, in those of a matrix product (which run 4 times as fast)."""
    p = min(m, n)
    return 6.0 * m * n * p + 9.0 * p**3


def transfer_cost(m: int, n: int, rank: int) -> float:
    """Operations of routing the drift and of the low-rank output."""
    p = min(m, n)
    return 3.0 * m * n * p + 12.0 * m * n * (rank + 8)


def working_bytes(m: int, n: int, with_basis: bool) -> int:
    """Memory of one layer in flight: weights, drift, basis, strips and factors in float32."""
    p = min(m, n)
    return 4 * ((4 * m * n + 3 * p * (m + n)) if with_basis else 2 * m * n) + 16_000_000


def operations_per_second() -> float:
    """Speed of this machine for one job, from a small matrix product (a few milliseconds)."""
    with threads_of_torch(1):
        square = torch.ones(512, 512)
        square @ square
        began = time.perf_counter()
        for _ in range(4):
            square @ square
        return 4 * 2 * 512**3 / max(time.perf_counter() - began, 1e-6)
