"""A LoRA file, taken apart: updates of linear layers, and what is passed on unchanged."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from loraport.adapters.consumers import Content, content_of
from loraport.adapters.dialect import SAME_AS_INPUT, Dialect
from loraport.adapters.kinds.base import SMALL_RANK
from loraport.adapters.passthrough import Passthrough, can_be_scaled
from loraport.adapters.pattern import nothing_dropped
from loraport.adapters.scale import check_factor
from loraport.adapters.training import Training, read_training
from loraport.adapters.update import LayerUpdate
from loraport.errors import UnsupportedError
from loraport.models.architecture import Architecture, LayerName
from loraport.models.family import Family


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA file, taken apart. `layers`, `passthrough` and `dropped` together hold every key of the file.

    A key stands in one of them, once; the key of a fused weight stands in each of the layers that share it, that of
    two matrices for all layers (VeRA) in all of them, and that of a vector for weight and bias (IA3) with both.

    Args:
        path: the file.
        dialect: how it spells its keys; the commonest where it mixes.
        architecture: the model it was made for, as far as its shapes tell.
        layers: canonical layer -> update, in the model's order.
        passthrough: what is passed on unchanged.
        dropped: raw keys left out: by request, of other LoRAs in the file, or because they change nothing.
        metadata: the header's text.
        dtype: of most factors, safetensors spelling ("BF16").
        keys: all raw keys.
        warnings: sentences for the user.
        expert: the expert of Wan2.2 that it is for, "high" or "low", where its keys say so.
        nest: the names that lead to its tensors in a torch file.
        others: families that it may as well be for, going by its names and sizes; none where a model was given.
        spared: whether a pattern of what to drop was found in nothing of it.
    """

    path: Path
    dialect: Dialect
    architecture: Architecture
    layers: dict[LayerName, LayerUpdate] = field(repr=False)
    passthrough: tuple[Passthrough, ...] = field(repr=False)
    dropped: tuple[str, ...]
    metadata: dict[str, str]
    dtype: str
    keys: tuple[str, ...] = field(repr=False)
    warnings: tuple[str, ...] = ()
    expert: str | None = None
    nest: tuple[str, ...] = ()
    others: tuple[Family, ...] = ()
    spared: bool = False

    @cached_property  # asked for every layer
    def fused(self) -> frozenset[LayerName]:
        """Layers that share the weight, and so the keys, with others in the file. The ranks of all add up there."""
        uses = Counter(key for layer in self.layers.values() for key in layer.keys)
        return frozenset(name for name, layer in self.layers.items() if uses[layer.keys[0]] > 1)

    @cached_property  # asked for every program
    def content(self) -> Content:
        """What of the file decides which programs take it, and how much of it."""
        ranks = {name: layer.rank for name, layer in self.layers.items() if layer.factored}
        return content_of(SAME_AS_INPUT, ranks, self.passthrough, self.architecture, self.dialect)

    @property
    def max_rank(self) -> int:
        """The largest rank among the factored layers. Without any, the largest there is, up to SMALL_RANK."""
        layers = self.layers.values()
        factored = [layer.rank for layer in layers if layer.factored]
        return max(factored, default=min(SMALL_RANK, max((layer.rank for layer in layers), default=0)))

    @property
    def training(self) -> Training:
        """What its header says of how it was trained."""
        return read_training(self.path, self.metadata)

    def check_weights(self) -> None:
        """Raise UnsupportedError where an update is a function of the source's weight and there is none."""
        without = next((layer for layer in self.layers.values() if layer.needs_source), None)
        if without is not None:
            raise without.source_missing()

    def scaled(self, strength: float) -> "LoraAdapter":
        """The whole LoRA times a factor: every update, and every change that is passed on.

        All of them are added to a parameter, so all are linear in the factor. Of another model's LoRA (a text
        encoder) one factor of each pair is scaled, which scales the product.

        Args:
            strength: a finite number above zero.

        Raises:
            UsageError: any other number.
            UnsupportedError: a text encoder with an update that is not proportional to any one of its tensors.
        """
        if check_factor(strength, "strength") == 1.0:
            return self
        stuck = next((item for item in self.passthrough if not can_be_scaled(item)), None)
        if stuck is not None:
            raise UnsupportedError(
                "a strength cannot be applied to this kind of text encoder update, which is passed on unchanged",
                where=str(self.path),
                values=stuck.keys[0],
                fix=f"leave the text encoder out with --drop ^{stuck.keys[0].partition('.')[0]}, or the strength",
            )
        layers = {name: replace(layer, scale=layer.scale * strength) for name, layer in self.layers.items()}
        passthrough = tuple(
            replace(item, scale=item.scale * strength) if item.proportional else item for item in self.passthrough
        )
        return replace(self, layers=layers, passthrough=passthrough)


def check_dropped(drop: str | None, loras: Iterable[LoraAdapter]) -> None:
    """Raise UsageError where a pattern of what to drop was found in none of the LoRAs that it was said of."""
    loras = list(loras)
    if drop is not None and all(lora.spared for lora in loras):
        raise nothing_dropped(drop, str(loras[0].path), next(iter(loras[0].layers), loras[0].keys[0]))
