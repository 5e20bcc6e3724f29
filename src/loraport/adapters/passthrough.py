"""What of a LoRA no method transfers: changes of biases, norms, convolutions and bare parameters, and other models'."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from loraport.adapters.grammar import grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.update import LayerUpdate, source_missing
from loraport.containers.references import TensorRef
from loraport.errors import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Passthrough:
    """A tensor that is passed on unchanged: a bias, norm or modulation delta, or another model's part.

    Args:
        keys: the raw keys (one).
        param: canonical name of the parameter it changes; the raw key for another model's part.
        kind: "diff", "diff_b", "diff_m", "w_norm", "b_norm", "lora_bias", "text_encoder".
        ref: where it lies.
        scale: what it counts for in its file (the bias of a scaled LoRA is scaled too).

    Attributes:
        as_stored: whether it lies in the file under one key, just as it is passed on; else it is computed.
    """

    as_stored: ClassVar[bool] = True

    keys: tuple[str, ...]
    param: str
    kind: str
    ref: TensorRef
    scale: float = 1.0

    @property
    def module(self) -> str:
        """Canonical module path of the parameter."""
        name, _, last = self.param.rpartition(".")
        return name if last in {"weight", "bias"} else self.param

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the change; None where only the model tells it."""
        return self.ref.shape

    @property
    def source(self) -> tuple[TensorRef | None, ...]:
        """The source's own parameter, where the change is made of it: None where it is missing, () where it is not."""
        return ()

    @property
    def proportional(self) -> bool:
        """Whether the change is proportional to this tensor; of another model's factors one of each pair counts."""
        if self.kind != "text_encoder":
            return True
        suffix = grammar().split_suffix(self.param)
        linear = {part for kind in KINDS.values() for part in kind.linear}
        return suffix is not None and suffix.part in linear | set(grammar().changes)

    def load(self) -> "Tensor":
        """The change in numbers, scale inside: `loading.passed_on.load_change`, which see."""
        from loraport.adapters.loading import load_change  # brings torch along

        return load_change(self)


@dataclass(frozen=True)
class PassthroughUpdate(Passthrough):
    """An update of something that is no linear layer: passed on as a change of the whole weight.

    The method needs a linear layer. Some trainers put factors on convolutions all the same; multiplied out they are
    as large as the weight, which is small there, and mean the same to every reader.

    Args:
        update: the update, its weight taken as a matrix.
        weight_shape: shape of the weight; None where the factors are matrices and no model was given to tell it.
    """

    as_stored: ClassVar[bool] = False
    update: LayerUpdate = field(kw_only=True)
    weight_shape: tuple[int, ...] | None = field(kw_only=True)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the change; None where only the model tells it."""
        return self.weight_shape

    @property
    def source(self) -> tuple[TensorRef | None, ...]:
        """As its update."""
        return (None,) if self.update.needs_source else tuple(ref for ref, _ in self.update.weight)

    def shape_unknown(self) -> UnsupportedError:
        """What to say where only a model would tell the shape."""
        return UnsupportedError(
            f"the LoRA changes {self.module}, which is not a linear layer, and does not say what shape it has",
            where=str(self.ref.file),
            values=f"{self.keys[0]} {list(self.ref.shape)}",
            fix=f"name the model with --model, or leave the layer out with --drop {self.module}",
        )


@dataclass(frozen=True)
class PassthroughBias(Passthrough):
    """The change of a bias that is multiplied along with the rows of its weight. `ref` is the source's bias.

    Args:
        factor: what it is multiplied with, an entry for each of its own.
    """

    as_stored: ClassVar[bool] = False
    factor: TensorRef = field(kw_only=True)

    @property
    def source(self) -> tuple[TensorRef | None, ...]:
        """See `Passthrough.source`."""
        return (self.ref,)


@dataclass(frozen=True)
class PassthroughValue(Passthrough):
    """A parameter that the file has whole: what is passed on is that less the source's own. `ref` is the file's.

    Args:
        own: the source's; None where no source was given.
    """

    as_stored: ClassVar[bool] = False
    own: TensorRef | None = None

    @property
    def source(self) -> tuple[TensorRef | None, ...]:
        """See `Passthrough.source`."""
        return (self.own,)


def check_source(item: Passthrough) -> None:
    """Raise UnsupportedError for a change that is made of the source's own parameter where no source was given."""
    if None in item.source:
        raise source_missing("a parameter that is saved whole", item.param, item.ref, item.keys[0])


def can_be_scaled(item: Passthrough) -> bool:
    """Whether a part of another model's update belongs to a kind of which one part scales it."""
    suffix = grammar().split_suffix(item.param) if item.kind == "text_encoder" else None
    if suffix is None:
        return True
    kinds = [kind for kind in KINDS.values() if suffix.part in (*kind.essential, *kind.optional)]
    return all(kind.linear for kind in kinds)
