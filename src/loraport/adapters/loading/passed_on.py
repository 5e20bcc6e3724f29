"""What is passed on of a LoRA, in numbers: a change of one parameter, or another model's tensor."""

from functools import singledispatch

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.adapters.loading.layers import load_update
from loraport.adapters.passthrough import (
    Passthrough,
    PassthroughBias,
    PassthroughUpdate,
    PassthroughValue,
    check_source,
)
from loraport.containers.tensors import read_float, read_tensor
from loraport.errors import NumericalError


@singledispatch
def load_change(item: Passthrough) -> Shaped[Tensor, "..."]:
    """The tensor with its scale folded in: in its stored dtype where it lies in the file as such, else in float32.

    Raises:
        NumericalError: NaN or infinity, before or after the scale.
        UnsupportedError: its shape is not known, or it is made of the source's own and no source was given.
    """
    tensor = read_tensor(item.ref)
    if not tensor.is_floating_point():
        return tensor
    exact = read_float(item.ref)
    if item.scale == 1.0:
        return tensor
    scaled = (exact * item.scale).to(tensor.dtype)
    if not torch.isfinite(scaled.float()).all():
        raise NumericalError(
            f"{item.keys[0]} no longer fits into {item.ref.dtype}",
            where=str(item.ref.file),
            values=f"scale {item.scale:g}, largest entry {float(exact.abs().max()):.3g}",
            fix="use a smaller --scale or --strength, or leave it out with --drop",
        )
    return scaled


@load_change.register(PassthroughUpdate)
def whole_weight(item: PassthroughUpdate) -> Float32[Tensor, "..."]:
    """The change of a whole weight, multiplied out."""
    if item.weight_shape is None:
        raise item.shape_unknown()
    dense = load_update(item.update).dense().reshape(item.weight_shape)
    return dense if item.scale == 1.0 else dense * item.scale


@load_change.register(PassthroughBias)
def bias(item: PassthroughBias) -> Float32[Tensor, " m"]:
    """The source's bias times a vector, less itself."""
    return (read_float(item.factor).reshape(-1) - 1.0) * read_float(item.ref) * item.scale


@load_change.register(PassthroughValue)
def value(item: PassthroughValue) -> Float32[Tensor, "..."]:
    """The file's parameter less the source's own."""
    check_source(item)
    assert item.own is not None
    return (read_float(item.ref) - read_float(item.own)) * item.scale


def stored_change(item: Passthrough) -> Shaped[Tensor, "..."]:
    """The tensor without its scale, for a file whose reader applies that itself; what is computed has it inside."""
    return read_tensor(item.ref) if item.as_stored else load_change(item)
