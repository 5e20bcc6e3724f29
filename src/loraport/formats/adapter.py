"""LoRA files: any dialect in, canonical layers out. Every key of the file ends in exactly one place."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.formats.architecture import Architecture, LayerName
from loraport.formats.dialect import Dialect
from loraport.formats.tensors import TensorRef, read_float, read_tensor


@dataclass(frozen=True)
class LayerUpdate:
    """The update of one linear layer, as it lies in the file.

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
        assert self.B is not None and self.A is not None
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
        scale: what it is multiplied with when it is written without an alpha (biases of a scaled LoRA).
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

    def load(self) -> Tensor:
        """The tensor in its stored dtype; scaled in float32 where it has a scale."""
        if self.scale == 1.0:
            return read_tensor(self.ref)
        return (read_float(self.ref) * self.scale).to(read_tensor(self.ref).dtype)


@dataclass(frozen=True)
class Dropped:
    """A key that was left out because the caller asked for it, and which request it was."""

    key: str
    why: str


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA file, taken apart. `layers`, `carried` and `dropped` together hold every key of the file once.

    Args:
        path: the file.
        dialect: how it spells its keys; the commonest where it mixes.
        architecture: the model it was made for, as far as its shapes tell.
        layers: canonical layer -> update.
        carried: what is passed on unchanged.
        dropped: what was left out by request.
        metadata: the header's text.
        dtype: of most factors, safetensors spelling.
        keys: all raw keys.
        notes: what the user should know.
    """

    path: Path
    dialect: Dialect
    architecture: Architecture
    layers: dict[LayerName, LayerUpdate]
    carried: tuple[Carried, ...]
    dropped: tuple[Dropped, ...]
    metadata: dict[str, str]
    dtype: str
    keys: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank among the LoRA layers; 0 if there are none."""
        return max((layer.rank for layer in self.layers.values() if layer.kind == "lora"), default=0)


def open_adapter(
    path: str | Path,
    architecture: Architecture | None = None,
    *,
    role: str = "source",
    expert: str | None = None,
    adapter: str | None = None,
    drop: str | None = None,
    allow_partial: bool = False,
) -> LoraAdapter:
    """Open a LoRA by its header (alphas are read, factors are not).

    Args:
        path: a safetensors or torch file, or a folder that holds one adapter.
        architecture: the model it must fit; without it only the family is required.
        role: what the model is called in messages.
        expert: "high" or "low", for files that hold the LoRAs of both Wan2.2 experts.
        adapter: which adapter, for files that name several.
        drop: regular expression; raw keys it finds are left out.
        allow_partial: leave unmatched keys and half pairs out (listed in `dropped`) instead of refusing the file.

    Raises:
        FileError: missing, damaged or unsafe.
        UnmatchedKeysError: keys that name no layer, or half pairs; with the nearest known ones.
        UnsupportedError: LoHa, LoKr, DoRA, ... by name.
        MismatchError: a checkpoint, another family, another size.
        NumericalError: an alpha that is negative or not finite.
    """
    from loraport.formats.parse import parse_adapter

    return parse_adapter(Path(path), architecture, role, expert, adapter, drop, allow_partial)


def render_adapter(
    layers: Mapping[LayerName, LowRank],
    carried: tuple[Carried, ...],
    profile: str,
    architecture: Architecture,
    input_dialect: Dialect | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """The tensors of an output file.

    Args:
        layers: canonical layer -> update, scale inside. Give them one rank (LowRank.padded): some loaders
            mis-scale mixed ranks.
        carried: passed on, in the spelling that the profile's loaders accept.
        profile: "universal", "diffusers", "kohya", "original", "same-as-input".
        architecture: the model, for its names.
        input_dialect: needed for "same-as-input".
        dtype: of the factors. Carried tensors keep theirs.

    Raises:
        UnsupportedError: the profile has no spelling for something that is carried.
        NumericalError: a factor that is not finite in `dtype`.
    """
    from loraport.formats.render import render

    return render(layers, carried, profile, architecture, input_dialect, dtype)


def write_adapter(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA file atomically, reopen it and compare it with what was meant.

    Raises:
        FileError: it cannot be written, or what was written is not what was meant; nothing is left behind.
    """
    from loraport.formats.render import write

    write(Path(path), tensors, metadata)
