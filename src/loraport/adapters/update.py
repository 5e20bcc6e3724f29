"""One layer's update, as it lies in a LoRA file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import OnSource
from loraport.containers.references import TensorRef
from loraport.errors import NumericalError, UnsupportedError
from loraport.models.architecture import LayerName
from loraport.models.placement import Rows

if TYPE_CHECKING:
    from torch import Tensor

    from loraport.core.lowrank import LowRank

WeightPieces = tuple[tuple[TensorRef, Rows], ...]
"""The layers that make up a weight as it lies in the LoRA's file, and their rows in it."""


@dataclass(frozen=True)
class LayerUpdate:
    """The update of one linear layer, as it lies in the file. No tensor data; cheap to pickle.

    Args:
        name: canonical module path.
        kind: name of its kind, a key of `adapters.kinds.KINDS`.
        parts: role -> tensor; the roles name the kind too, so roles, tensors and scale determine the update.
        scale: factor on what the parts give: alpha / rank, or what else the file says.
        scale_source: where the scale comes from, for people.
        rank: the largest rank the update can have; for a whole matrix the smaller side.
        keys: the raw keys that make it up.
        shape: (m, n).
        rows: the layer's rows of what the parts give, where they stand for a weight of several layers and cannot be
            taken apart themselves; None for all of them.
        whole: the shape of that weight; None where `rows` is.
        weight: the source's weight, for kinds that are a function of it; () where no source was given, or none is
            needed.
        settings: numbers that the kind is given besides its parts.
    """

    name: LayerName
    kind: str
    parts: Mapping[str, TensorRef]
    scale: float
    scale_source: str
    rank: int
    keys: tuple[str, ...]
    shape: tuple[int, int]
    rows: Rows | None = None
    whole: tuple[int, int] | None = None
    weight: WeightPieces = ()
    settings: Mapping[str, float] = field(default_factory=dict)

    @property
    def refs(self) -> dict[str, TensorRef]:
        """Every tensor that the update is made of, by role: its parts, and the source's weight where that counts."""
        return {**self.parts, **{f"weight.{n}": ref for n, (ref, _) in enumerate(self.weight)}}

    @property
    def as_stored(self) -> bool:
        """Whether its factors, or its matrix, lie in the file as such."""
        return set(self.parts) in ({"A", "B"}, {"diff"})

    @property
    def needs_source(self) -> bool:
        """Whether the update is a function of the source's weight, which was not given."""
        return isinstance(KINDS[self.kind], OnSource) and not self.weight

    def load(self, read: "Callable[[TensorRef], Tensor] | None" = None) -> "LowRank":
        """The update in float32 with the scale folded in: `loading.layers.load_update`, which see.

        Args:
            read: how the source's weight is read, if it is needed; None for from its file.
        """
        from loraport.adapters.loading import load_update  # brings torch along

        return load_update(self, read)

    def source_missing(self) -> UnsupportedError:
        """What to say where the update is a function of the source's weight and there is none."""
        return source_missing(KINDS[self.kind].title, self.name, next(iter(self.parts.values())), self.keys[0])

    def is_zero(self) -> bool:
        """Whether the parts show that the update is zero. Reads them up to the first that does."""
        try:
            return KINDS[self.kind].is_zero(self.parts)
        except NumericalError:
            return False  # wrong, and said where it is used, but not zero

    @property
    def factored(self) -> bool:
        """Whether it is better kept as two factors of its rank than as a whole matrix."""
        return KINDS[self.kind].factored(self.shape, self.rank)

    @property
    def size(self) -> str:
        """Its rank, or what it is instead, for people."""
        return KINDS[self.kind].size(self.shape, self.rank)


def source_missing(what: str, name: str, ref: TensorRef, key: str) -> UnsupportedError:
    """What to say where a change is made of the source's own weight and there is no source.

    Args:
        what: the kind of change, for people.
        name: the layer or parameter.
        ref: a tensor of the file.
        key: its key.
    """
    return UnsupportedError(
        f"{what} changes {name} by a function of the model it was trained on, which is not given",
        where=str(ref.file),
        values=key,
        fix="name that model with --model SOURCE, or transfer the file with --source SOURCE, which cuts it to a "
        "rank (for the source itself, add --target SOURCE --method direct)",
    )
