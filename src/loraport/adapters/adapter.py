"""What a LoRA file holds, taken apart: updates of linear layers, and what is passed on unchanged."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Shaped
from torch import Tensor

from loraport.adapters.dialect import Dialect
from loraport.containers.tensors import TensorRef, read_float, read_tensor
from loraport.core.lowrank import LowRank
from loraport.models.architecture import Architecture, LayerName


@dataclass(frozen=True)
class LayerUpdate:
    """The update of one linear layer, as it lies in the file. No tensor data; cheap to pickle.

    Args:
        name: canonical module path.
        kind: "lora" (factors B and A) or "diff" (a whole matrix).
        B: up factor, m x r (or m x r x 1 x 1).
        A: down factor, r x n (or r x n x 1 x 1).
        diff: the whole matrix, m x n.
        scale: alpha / rank, or what else the file says; the update is scale * B @ A.
        scale_source: where the scale comes from, for people.
        rank: r; for a diff the smaller side.
        keys: the raw keys that make it up.
        shape: (m, n).
    """

    name: LayerName
    kind: str
    B: TensorRef | None
    A: TensorRef | None
    diff: TensorRef | None
    scale: float
    scale_source: str
    rank: int
    keys: tuple[str, ...]
    shape: tuple[int, int]

    def load(self) -> LowRank:
        """The update in float32 with the scale folded in. Raises NumericalError where it holds NaN or infinity."""
        m, n = self.shape
        if self.diff is not None:
            return LowRank.from_dense(read_float(self.diff).reshape(m, n))
        assert self.B is not None
        assert self.A is not None
        update = LowRank(read_float(self.B).reshape(m, self.rank), read_float(self.A).reshape(self.rank, n))
        return update if self.scale == 1.0 else update.scaled(self.scale)


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

    def load(self) -> Shaped[Tensor, "..."]:
        """The tensor in its stored dtype, with its scale folded in. Raises NumericalError on NaN or infinity."""
        tensor = read_tensor(self.ref)
        if not tensor.is_floating_point():
            return tensor
        exact = read_float(self.ref)
        return tensor if self.scale == 1.0 else (exact * self.scale).to(tensor.dtype)


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA file, taken apart. `layers`, `carried` and `dropped` together hold every key of the file once.

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
        """The largest rank among the factored layers; of the whole matrices if there are no others."""
        factored = [layer.rank for layer in self.layers.values() if layer.kind == "lora"]
        return max(factored or [layer.rank for layer in self.layers.values()], default=0)
