"""LoRA files out: canonical layers to the keys of a dialect, written atomically and looked at again."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor

from loraport.core.lowrank import LowRank
from loraport.errors import FileError, NumericalError, UnsupportedError
from loraport.files import write_safetensors
from loraport.formats.architecture import Architecture, LayerName
from loraport.formats.dialect import Dialect, dialect_of
from loraport.formats.update import Carried


def render_adapter(
    layers: Mapping[LayerName, LowRank],
    carried: tuple[Carried, ...],
    profile: str,
    architecture: Architecture,
    input_dialect: Dialect | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Shaped[Tensor, "..."]]:
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
    dialect = dialect_of(profile, input_dialect)
    family = architecture.family
    tensors: dict[str, Tensor] = {}
    for name, update in layers.items():
        down, up = dialect.factor(name, "down", family), dialect.factor(name, "up", family)
        tensors[down], tensors[up] = _cast(update.A, dtype, down), _cast(update.B, dtype, up)
        if dialect.has_alpha_tensors:
            tensors[dialect.extra(name, dialect.alpha, family)] = torch.tensor(float(update.rank))
    for item in carried:
        key = item.keys[0] if item.kind == "text_encoder" else dialect.extra(item.module, item.kind, family)
        tensors[key] = item.load()
    return tensors


def write_adapter(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA file atomically, reopen it and compare it with what was meant.

    Raises:
        FileError: it cannot be written, or what was written is not what was meant; nothing is left behind.
    """
    path = Path(path)
    write_safetensors(path, tensors, metadata)
    with safe_open(str(path), framework="pt") as file:
        same = set(file.keys()) == set(tensors) and all(
            torch.equal(file.get_tensor(key), tensor) for key, tensor in tensors.items()
        )
    if not same:
        path.unlink()
        raise FileError("the file that was written is not what was meant", where=str(path), fix="check the disk")


def _cast(tensor: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    cast = tensor.to(dtype).contiguous()
    if not torch.isfinite(cast).all():
        raise NumericalError(f"{key} is not finite in {dtype}", values=f"largest entry {float(tensor.abs().max()):.3g}")
    return cast
