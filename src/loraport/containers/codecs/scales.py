"""Scales beside a weight, for every codec that has them: where they are, which numbers share one, the product.

Whatever a scale is called, the weight is the stored number times the scale: ComfyUI's first files, Kijai and
musubi-tuner say `scale_weight`, newer ComfyUI, LightX2V and compressed-tensors `weight_scale`, DeepSeek's and
Transformers' `weight_scale_inv` (the inverse of what the weight was multiplied by when it was made), Kijai's wrapper of
HunyuanVideo `fp8_scale`. One scale is shared by the tensor, by a row (an output channel), by a block of a row
(musubi-tuner) or by a square of the matrix: 128 x 128 with a rest at the edges (DeepSeek, LightX2V with deep_gemm), or
another power of two without one.
"""

from collections.abc import Mapping
from math import ceil, prod

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor, nn

from loraport.containers import dtypes
from loraport.containers.stored import Group, TensorRef
from loraport.errors import NumericalError

SUFFIXES = (".scale_weight", ".weight_scale", ".weight_scale_inv", ".fp8_scale")
BY_SQUARES = " by squares"
SIDE = 128  # of a square, where it does not follow from the shape


class Scaled:
    """What codecs of numbers that a scale multiplies have in common.

    Args:
        name: of the codec.
    """

    def __init__(self, name: str):
        self.name = name

    def decode(
        self, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Mapping[str, Float32[Tensor, "..."]]
    ) -> Float32[Tensor, "..."]:
        """scale * stored, in float32."""
        return scaled(ref, stored, companions)

    def refusal(self, ref: TensorRef) -> str | None:
        """None: what does not fit was claimed under another name."""
        return None


def scales_of(group: Group, module: str) -> dict[str, TensorRef]:
    """The scales that stand beside a module, by key; one that is not quantised has none, an honest one has one."""
    return {key: group[key] for suffix in SUFFIXES if (key := module + suffix) in group}


def sharing(weight: TensorRef, scale: TensorRef, side: object = None) -> str | None:
    """What a codec's name ends in by the way in which the numbers of a weight share scales.

    Args:
        weight: whole, by its header.
        scale: beside it.
        side: of the squares, where the file says it.

    Returns:
        "" for one scale, or one for each row or block of a row; `BY_SQUARES`; None for a scale that does not fit.
    """
    if not dtypes.is_float(scale.dtype) or scale.dtype.startswith("F8"):
        return None
    if prod(scale.shape) == 1:
        return ""
    if not weight.shape or 0 in weight.shape or 0 in scale.shape:
        return None
    rows, columns = weight.shape[0], prod(weight.shape[1:])
    if scale.shape[0] == rows and prod(scale.shape) == rows:
        return ""
    if len(weight.shape) != 2 or len(scale.shape) not in (2, 3) or (len(scale.shape) == 3 and scale.shape[2] != 1):
        return None
    down, across = scale.shape[:2]
    if down == rows:
        return "" if columns % across == 0 else None
    square = _side(columns, across)
    even = square & (square - 1) == 0 and rows % square == columns % square == 0
    fits = len(scale.shape) == 2 and (down, across) == (ceil(rows / square), ceil(columns / square))
    return BY_SQUARES if fits and (even or square == SIDE) and side in (None, square) else None


def numbers_sharing(ref: TensorRef) -> int:
    """How many numbers of a weight share a scale."""
    scale = dict(ref.companions)["scale"]
    columns = prod(ref.shape[1:])
    if prod(scale.shape) == 1:
        return prod(ref.shape)
    if ref.codec.endswith(BY_SQUARES):
        return _side(columns, scale.shape[1]) ** 2
    return columns // max(prod(scale.shape[1:]), 1)


def scaled(
    ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Mapping[str, Float32[Tensor, "..."]]
) -> Float32[Tensor, "..."]:
    """scale * stored, in float32.

    Args:
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
        width = _side(columns, across) if ref.codec.endswith(BY_SQUARES) else columns // across
        whole = columns // width
        flat[:, : whole * width].unflatten(1, (whole, width)).mul_(by[:, :whole].unsqueeze(2))
        flat[:, whole * width :].mul_(by[:, whole:])
        weight = flat.reshape(weight.shape)
    if least < 0 or (marks is not None and bool((marks & (weight == 0)).any())):
        raise odd_scale(ref, least)
    return weight


def rescaled(
    ref: TensorRef, numbers: Float[Tensor, "..."], scale: Float32[Tensor, "..."]
) -> tuple[Float[Tensor, "..."], dict[str, Float32[Tensor, "..."]]]:
    """Other numbers in the place of a scaled weight: what is stored for them, and the scales.

    A scale moves numbers without making them finer, so each stays as long as the largest number under it fits: what
    did not change is then stored as it was. Where it does not fit, the scale becomes as large as it must.

    Args:
        ref: the weight, whole.
        numbers: of its shape.
        scale: as it is.
    """
    flat = numbers.reshape(1, -1) if scale.numel() == 1 else numbers.reshape(len(numbers), -1)
    rows, columns = flat.shape
    down, across = (scale.reshape(1, 1) if scale.numel() == 1 else scale.reshape(len(scale), -1)).shape
    squares = ref.codec.endswith(BY_SQUARES) and scale.numel() > 1
    width = _side(columns, across) if squares else columns // across
    high = width if squares else 1
    peaks = nn.functional.pad(flat.abs(), (0, across * width - columns, 0, down * high - rows))
    peaks = peaks.unflatten(1, (across, width)).amax(2).unflatten(0, (down, high)).amax(1)
    stored_scale = dict(ref.companions)["scale"].dtype
    largest = torch.finfo(dtypes.FORMATS[ref.dtype].dtype).max
    old = scale.reshape(down, across)
    needed = dtypes.cast(torch.where(peaks > old * largest, peaks / largest, old), stored_scale).float()
    by = torch.where(needed > 0, needed, 1.0).repeat_interleave(high, 0)[:rows]
    divided = flat.clone()
    whole = columns // width
    divided[:, : whole * width].unflatten(1, (whole, width)).div_(by[:, :whole].unsqueeze(2))
    divided[:, whole * width :].div_(by[:, whole:])
    divided = divided.clamp_(-largest, largest).reshape(numbers.shape)
    return dtypes.cast(divided, ref.dtype), {"scale": needed.reshape(scale.shape)}


def odd_scale(ref: TensorRef, value: float) -> NumericalError:
    """The error for a scale that no quantisation makes: below zero, or zero for numbers that are not."""
    return NumericalError(
        f"the scale of {ref.key} is {value:g}, which no quantisation makes",
        where=str(ref.file),
        values=", ".join(companion.key for _, companion in ref.companions),
        fix="the file was damaged; use another copy",
    )


def _of_rows(ref: TensorRef, scale: Float32[Tensor, "..."]) -> Float32[Tensor, "rows blocks"]:
    """The scales of the rows that are read, one row of scales for each of them."""
    by = scale.reshape(scale.shape[0], -1)
    if ref.codec.endswith(BY_SQUARES):
        side = _side(ref.shape[1], by.shape[1])
        ranges = ref.rows if ref.rows is not None else ((0, ref.shape[0]),)
        return by[torch.cat([torch.arange(start, end) for start, end in ranges]) // side]
    return by if ref.rows is None else torch.cat([by[start:end] for start, end in ref.rows])


def _side(columns: int, across: int) -> int:
    """The side of the squares of which so many lie side by side."""
    return SIDE if ceil(columns / SIDE) == across else max(columns // across, 1)
