"""The product with scales, however they are shared (`codecs/scales.py`)."""

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.containers.codecs.base import Codec
from loraport.containers.codecs.int8 import Int8
from loraport.containers.codecs.scaled_fp8 import ScaledFp8
from loraport.containers.codecs.scales import BY_SQUARES, side_of
from loraport.containers.decoding.base import Companions, decode
from loraport.containers.stored import TensorRef
from loraport.containers.stored_tensors import take_rows
from loraport.errors import NumericalError


@decode.register(Int8)
@decode.register(ScaledFp8)
def scaled(
    codec: Codec, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Companions
) -> Float32[Tensor, "..."]:
    """scale * stored, in float32.

    Args:
        codec: of the weight.
        ref: the weight; with `ref.rows`, `stored` holds these rows only.
        stored: numbers as they lie in the file.
        companions: with the whole scale as "scale".

    Raises:
        NumericalError: a scale below zero, or one zero for numbers that are not: no quantisation makes these.
    """
    scale = companions["scale"]
    least = float(scale.min())
    weight = stored.float()
    marks = weight != 0 if least == 0 else None
    if scale.numel() == 1:
        weight = weight.mul_(scale.reshape(()))
    else:
        by, flat = _of_rows(ref, scale), weight.reshape(weight.shape[0], -1)
        columns, across = flat.shape[1], by.shape[1]
        width = side_of(columns, across) if ref.codec.endswith(BY_SQUARES) else columns // across
        whole = columns // width
        flat[:, : whole * width].unflatten(1, (whole, width)).mul_(by[:, :whole].unsqueeze(2))
        flat[:, whole * width :].mul_(by[:, whole:])
        weight = flat.reshape(weight.shape)
    if least < 0 or (marks is not None and bool((marks & (weight == 0)).any())):
        raise odd_scale(ref, least)
    return weight


def odd_scale(ref: TensorRef, value: float) -> NumericalError:
    """The error for a scale that no quantisation makes: below zero, or zero for numbers that are not."""
    return NumericalError(
        f"the scale of {ref.key} is {value:g}, which no quantisation makes",
        where=str(ref.file),
        values=", ".join(companion.key for _, companion in ref.companions),
        fix="the file is damaged; use another copy",
    )


def _of_rows(ref: TensorRef, scale: Float32[Tensor, "..."]) -> Float32[Tensor, "rows blocks"]:
    """The scales of the rows that are read, one row of scales for each of them."""
    by = scale.reshape(scale.shape[0], -1)
    if ref.codec.endswith(BY_SQUARES):
        side = side_of(ref.shape[1], by.shape[1])
        ranges = ref.rows if ref.rows is not None else ((0, ref.shape[0]),)
        return by[torch.cat([torch.arange(start, end) for start, end in ranges]) // side]
    return by if ref.rows is None else take_rows(by, ref.rows)
