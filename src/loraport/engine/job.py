"""One layer's work order: references and settings, no tensor and no device."""

from dataclasses import dataclass, field
from typing import Any

from loraport.adapters.update import LayerUpdate
from loraport.containers.references import TensorRef
from loraport.engine.rank import RankRule

WIDE_ELEMENTS = 40_000_000
"""Layers with more elements than this get all cores to themselves; smaller ones run one on each core.

The number of threads changes the rounding of matrix products, so it may depend on the layer and the
machine but never on the number of workers: that is what keeps every executor at the same bytes.
"""

SMALL_CHANGE = 16_000_000
"""Bytes that work on a layer takes besides its matrices: buffers of the reader and of the libraries."""


class Job:
    """What an executor knows of the work it hands out.

    Attributes:
        shape: (out, in) of the weight.
        peak_bytes: memory expected while it is in work, on whatever device.
    """

    shape: tuple[int, int]
    peak_bytes: int

    def bytes_on(self, device: str) -> int:
        """Memory of a device expected while it is in work there; a GPU may need less than `peak_bytes`."""
        return self.peak_bytes

    @property
    def title(self) -> str:
        """What the layer is called, for messages."""
        return str(getattr(self, "name", "a layer"))

    @property
    def refs(self) -> dict[str, TensorRef]:
        """Every tensor that the work on it reads, by its role."""
        return {}

    @property
    def wide(self) -> bool:
        """Whether the layer is large enough to be given all cores."""
        return self.shape[0] * self.shape[1] > WIDE_ELEMENTS


@dataclass(frozen=True)
class LayerJob(Job):
    """All that `engine.worker.Worker` needs to know about one layer.

    Attributes:
        name: canonical layer name.
        shape: (out, in) of the weight.
        method: name of the method for this layer.
        params: its settings, plain values.
        update: the LoRA's factors on disk, with the scale.
        source: the weight that the LoRA was trained on; None where the method does not need it.
        target: the weight that the output is for, likewise.
        target_updates: what distillation LoRAs add to the target's weight, or to the source's where there is no
            target, by the number of the LoRA; their strengths are in the scales.
        has_drift: False when the source is the target but for such LoRAs, which leave this layer alone.
        round_to: dtype that both weights are rounded to before differencing, when they are stored in
            different ones; otherwise the rounding of one file would pass for drift.
        rank: settled rule for the output rank.
        amount: 0 direct .. 1 the method in full.
        dtype: torch name of the output's dtype.
        cost: operations expected when nothing is cached, for the progress bar.
        peak_bytes: memory expected while the layer is in work.
        source_updates: what LoRAs add to the source's weight alone, as `target_updates`; they are no part of the
            target, not even of one that is made of the source.
        card_bytes: memory expected of a CUDA device; None where that is not known.
    """

    name: str
    shape: tuple[int, int]
    method: str
    params: dict[str, Any]
    update: LayerUpdate
    source: TensorRef | None
    target: TensorRef | None
    target_updates: dict[int, LayerUpdate]
    has_drift: bool
    round_to: str | None
    rank: RankRule
    amount: float
    dtype: str
    cost: float
    peak_bytes: int
    source_updates: dict[int, LayerUpdate] = field(default_factory=dict)
    card_bytes: int | None = None

    def bytes_on(self, device: str) -> int:
        """See `Job.bytes_on`. Apple's GPU has its memory in common with the CPU, which decomposes for it."""
        return self.peak_bytes if self.card_bytes is None or not device.startswith("cuda") else self.card_bytes

    @property
    def refs(self) -> dict[str, TensorRef]:
        """Weights, the LoRA, and what LoRAs add to the weights."""
        refs = {"source": self.source, "target": self.target, **self.update.refs}
        for side in ("source", "target"):
            for number, update in self.added(side).items():
                refs |= {f"{side}_lora.{number}.{role}": ref for role, ref in update.refs.items()}
        return {role: ref for role, ref in refs.items() if ref is not None}

    def added(self, side: str) -> dict[int, LayerUpdate]:
        """What LoRAs add to the weight of a side, "source" or "target"."""
        return self.source_updates if side == "source" else self.target_updates
