"""What a LoRA file holds, taken apart: updates of linear layers, and what is passed on unchanged."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.adapters.dialect import Dialect
from loraport.adapters.grammar import grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import SMALL_RANK, OnSource
from loraport.adapters.scale import check_factor
from loraport.adapters.training import Training, read_training
from loraport.containers.tensors import TensorRef, read_float, read_tensor
from loraport.core.lowrank import LowRank
from loraport.errors import NumericalError, UnsupportedError
from loraport.models.architecture import Architecture, LayerName
from loraport.models.family import Family
from loraport.models.placement import Rows, join

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

    def load(self, read: Callable[[TensorRef], Tensor] = read_float) -> LowRank:
        """The update in float32 with the scale folded in.

        Args:
            read: how the source's weight is read, if it is needed. What it gives is not written to.

        Raises:
            NumericalError: NaN or infinity.
            UnsupportedError: it is a function of the source's weight, and no source was given.
        """
        update = self._unscaled(read)
        return update if self.scale == 1.0 else update.scaled(self.scale)

    def stored(self) -> tuple[Shaped[Tensor, "m r *one"], Shaped[Tensor, "r n *one"]] | Shaped[Tensor, "..."]:
        """Two factors (up, down) or one matrix, without the scale and without any rounding: see `AdapterKind.stored`.

        Raises:
            NumericalError: NaN or infinity.
            UnsupportedError: it is a function of the source's weight, and no source was given.
        """
        if isinstance(KINDS[self.kind], OnSource):
            update = self._unscaled(read_float)
            return (update.B, update.A) if self.factored else update.dense()
        found = KINDS[self.kind].stored(self.parts, self.whole or self.shape)
        if self.rows is None:
            return found
        if isinstance(found, Tensor):
            return _take(found, self.rows)
        return _take(found[0], self.rows), found[1]

    def _unscaled(self, read: Callable[[TensorRef], Tensor]) -> LowRank:
        kind = KINDS[self.kind]
        if isinstance(kind, OnSource):
            update = kind.update(self.parts, self._source(read), self.settings)
        else:
            update = kind.load(self.parts, self.whole or self.shape)
        return update if self.rows is None else LowRank(_take(update.B, self.rows), update.A)

    def _source(self, read: Callable[[TensorRef], Tensor]) -> Float32[Tensor, "m *rest"]:
        """The source's weight, its layers put together where the file's weight holds several."""
        if not self.weight:
            raise self.source_missing()
        pieces = [(rows, read(ref)) for ref, rows in self.weight]
        total = sum(len(tensor) for _, tensor in pieces)
        return pieces[0][1] if pieces[0][0] == ((0, total),) else join(pieces, total)

    def source_missing(self) -> UnsupportedError:
        """What to say where the update is a function of the source's weight and there is none."""
        return UnsupportedError(
            f"{KINDS[self.kind].title} changes {self.name} by a function of the weight that it was trained on, and no "
            "such model is given",
            where=str(next(iter(self.parts.values())).file),
            values=self.keys[0],
            fix="name that model with --model SOURCE; or transfer the file with --source SOURCE, which cuts it to a "
            "rank, and does so for the source itself with --target SOURCE --method direct",
        )

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


def _can_be_scaled(item: "Passthrough") -> bool:
    """Whether a part of another model's update belongs to a kind of which one part scales it."""
    suffix = grammar().split_suffix(item.param) if item.kind == "text_encoder" else None
    if suffix is None:
        return True
    kinds = [kind for kind in KINDS.values() if suffix.part in (*kind.essential, *kind.optional)]
    return all(kind.linear for kind in kinds)


def _take(tensor: Shaped[Tensor, "M *rest"], rows: Rows) -> Shaped[Tensor, "m *rest"]:
    return torch.cat([tensor[start:end] for start, end in rows])


@dataclass(frozen=True)
class Passthrough:
    """A tensor that is passed on unchanged: a bias, norm or modulation delta, or another model's part.

    Args:
        keys: the raw keys (one).
        param: canonical name of the parameter it changes; the raw key for another model's part.
        kind: "diff", "diff_b", "diff_m", "w_norm", "b_norm", "lora_bias", "text_encoder".
        ref: where it lies.
        scale: what it counts for in its file (the bias of a scaled LoRA is scaled too).
    """

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
    def as_stored(self) -> bool:
        """Whether it lies in the file under one key, just as it is passed on."""
        return True

    def stored(self) -> Shaped[Tensor, "..."]:
        """The tensor without its scale, for a file whose reader applies that itself."""
        return read_tensor(self.ref)

    @property
    def proportional(self) -> bool:
        """Whether the change is proportional to this tensor; of another model's factors one of each pair counts."""
        if self.kind != "text_encoder":
            return True
        suffix = grammar().split_suffix(self.param)
        linear = {part for kind in KINDS.values() for part in kind.linear}
        return suffix is not None and suffix.part in linear | set(grammar().changes)

    def load(self) -> Shaped[Tensor, "..."]:
        """The tensor in its stored dtype, with its scale folded in.

        Raises:
            NumericalError: NaN or infinity, before or after the scale.
        """
        tensor = read_tensor(self.ref)
        if not tensor.is_floating_point():
            return tensor
        exact = read_float(self.ref)
        if self.scale == 1.0:
            return tensor
        scaled = (exact * self.scale).to(tensor.dtype)
        if not torch.isfinite(scaled.float()).all():
            raise NumericalError(
                f"{self.keys[0]} does not fit into {self.ref.dtype} any more",
                where=str(self.ref.file),
                values=f"scale {self.scale:g}, largest entry {float(exact.abs().max()):.3g}",
                fix="a smaller --scale or --strength, or leave it out with --drop",
            )
        return scaled


@dataclass(frozen=True)
class PassthroughUpdate(Passthrough):
    """An update of something that is no linear layer: passed on as a change of the whole weight.

    The method needs a linear layer. Some trainers put factors on convolutions all the same; multiplied out they are
    as large as the weight, which is small there, and mean the same to every reader.

    Args:
        update: the update, its weight taken as a matrix.
        weight_shape: shape of the weight; None where the factors are matrices and no model was given to tell it.
    """

    update: LayerUpdate | None = None
    weight_shape: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the change; None where only the model tells it."""
        return self.weight_shape

    @property
    def as_stored(self) -> bool:
        """Never: it is multiplied out."""
        return False

    def stored(self) -> Shaped[Tensor, "..."]:
        """With its scale, which nobody else applies to a whole change."""
        return self.load()

    def load(self) -> Float32[Tensor, "..."]:
        """The change in float32, scale inside.

        Raises:
            NumericalError: NaN or infinity.
            UnsupportedError: its shape is not known.
        """
        if self.weight_shape is None:
            raise self.shape_unknown()
        assert self.update is not None
        dense = self.update.load().dense().reshape(self.weight_shape)
        return dense if self.scale == 1.0 else dense * self.scale

    def shape_unknown(self) -> UnsupportedError:
        """What to say where only a model would tell the shape."""
        return UnsupportedError(
            f"the LoRA changes {self.module}, which is no linear layer, and does not say what shape it has",
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

    factor: TensorRef | None = None

    @property
    def as_stored(self) -> bool:
        """Never: it is made of the source's bias."""
        return False

    def stored(self) -> Shaped[Tensor, "..."]:
        """With its scale, which nobody else applies."""
        return self.load()

    def load(self) -> Float32[Tensor, " m"]:
        """The change in float32, scale inside. Raises NumericalError for NaN or infinity."""
        assert self.factor is not None
        return (read_float(self.factor).reshape(-1) - 1.0) * read_float(self.ref) * self.scale


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
        dropped: raw keys left out by request.
        metadata: the header's text.
        dtype: of most factors, safetensors spelling ("BF16").
        keys: all raw keys.
        warnings: sentences for the user.
        expert: the expert of Wan2.2 that it is for, "high" or "low", where its keys say so.
        nest: the names that lead to its tensors in a torch file.
        others: families that it may as well be for, going by its names and sizes; none where a model was given.
    """

    path: Path
    dialect: Dialect
    architecture: Architecture
    layers: dict[LayerName, LayerUpdate]
    passthrough: tuple[Passthrough, ...]
    dropped: tuple[str, ...]
    metadata: dict[str, str]
    dtype: str
    keys: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    expert: str | None = None
    nest: tuple[str, ...] = ()
    others: tuple[Family, ...] = ()

    @cached_property  # asked for every layer
    def fused(self) -> frozenset[LayerName]:
        """Layers that share the weight, and so the keys, with others in the file. The ranks of all add up there."""
        uses = Counter(key for layer in self.layers.values() for key in layer.keys)
        return frozenset(name for name, layer in self.layers.items() if uses[layer.keys[0]] > 1)

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
        stuck = next((item for item in self.passthrough if not _can_be_scaled(item)), None)
        if stuck is not None:
            raise UnsupportedError(
                "a strength cannot be applied to this kind of update of a text encoder, which is passed on as it is",
                where=str(self.path),
                values=stuck.keys[0],
                fix=f"leave the text encoder out with --drop ^{stuck.keys[0].partition('.')[0]}, or the strength",
            )
        layers = {name: replace(layer, scale=layer.scale * strength) for name, layer in self.layers.items()}
        passthrough = tuple(
            replace(item, scale=item.scale * strength) if item.proportional else item for item in self.passthrough
        )
        return replace(self, layers=layers, passthrough=passthrough)
