"""What a LoRA file holds, taken apart: updates of linear layers, and what is passed on unchanged."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from loraport.adapters.dialect import Dialect
from loraport.adapters.grammar import grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import SMALL_RANK
from loraport.adapters.scale import check_factor
from loraport.containers.tensors import TensorRef, read_float, read_tensor
from loraport.core.lowrank import LowRank
from loraport.errors import NumericalError
from loraport.models.architecture import Architecture, LayerName


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
    """

    name: LayerName
    kind: str
    parts: Mapping[str, TensorRef]
    scale: float
    scale_source: str
    rank: int
    keys: tuple[str, ...]
    shape: tuple[int, int]

    def load(self) -> LowRank:
        """The update in float32 with the scale folded in. Raises NumericalError where it holds NaN or infinity."""
        update = KINDS[self.kind].load(self.parts, self.shape)
        return update if self.scale == 1.0 else update.scaled(self.scale)

    def stored(self) -> tuple[Shaped[Tensor, "m r *one"], Shaped[Tensor, "r n *one"]] | Shaped[Tensor, "..."]:
        """Two factors (up, down) or one matrix, without the scale and without any rounding: see `AdapterKind.stored`.

        Raises:
            NumericalError: NaN or infinity.
        """
        return KINDS[self.kind].stored(self.parts, self.shape)

    @property
    def factored(self) -> bool:
        """Whether it is better kept as two factors of its rank than as a whole matrix."""
        return KINDS[self.kind].factored(self.shape, self.rank)

    @property
    def size(self) -> str:
        """Its rank, or what it is instead, for people."""
        return KINDS[self.kind].size(self.shape, self.rank)


@dataclass(frozen=True)
class Carried:
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
class LoraAdapter:
    """A LoRA file, taken apart. `layers`, `carried` and `dropped` together hold every key of the file.

    A key stands in one of them, once; the key of a fused weight stands in each of the layers that share it.

    Args:
        path: the file.
        dialect: how it spells its keys; the commonest where it mixes.
        architecture: the model it was made for, as far as its shapes tell.
        layers: canonical layer -> update, in the model's order.
        carried: what is passed on unchanged.
        dropped: raw keys left out by request.
        metadata: the header's text.
        dtype: of most factors, safetensors spelling ("BF16").
        keys: all raw keys.
        warnings: sentences for the user.
    """

    path: Path
    dialect: Dialect
    architecture: Architecture
    layers: dict[LayerName, LayerUpdate]
    carried: tuple[Carried, ...]
    dropped: tuple[str, ...]
    metadata: dict[str, str]
    dtype: str
    keys: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def max_rank(self) -> int:
        """The largest rank among the factored layers. Without any, the largest there is, up to SMALL_RANK."""
        layers = self.layers.values()
        factored = [layer.rank for layer in layers if layer.factored]
        return max(factored, default=min(SMALL_RANK, max((layer.rank for layer in layers), default=0)))

    def scaled(self, strength: float) -> "LoraAdapter":
        """The whole LoRA times a factor: every update, and every change that is passed on.

        All of them are added to a parameter, so all are linear in the factor. Of another model's LoRA (a text
        encoder) one factor of each pair is scaled, which scales the product.

        Args:
            strength: a finite number above zero.

        Raises:
            UsageError: any other number.
        """
        if check_factor(strength, "strength") == 1.0:
            return self
        layers = {name: replace(layer, scale=layer.scale * strength) for name, layer in self.layers.items()}
        carried = tuple(
            replace(item, scale=item.scale * strength) if item.proportional else item for item in self.carried
        )
        return replace(self, layers=layers, carried=carried)
