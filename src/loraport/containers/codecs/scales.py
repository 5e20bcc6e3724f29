"""Scales beside a weight, for every codec that has them: where they are, which numbers share one.

Whatever a scale is called, the weight is the stored number times the scale: ComfyUI's first files, Kijai and
musubi-tuner say `scale_weight`, newer ComfyUI, LightX2V and compressed-tensors `weight_scale`, DeepSeek's and
Transformers' `weight_scale_inv` (the inverse of what the weight was multiplied by when it was made), Kijai's wrapper of
HunyuanVideo `fp8_scale`. One scale is shared by the tensor, by a row (an output channel), by a block of a row
(musubi-tuner) or by a square of the matrix: 128 x 128 with a rest at the edges (DeepSeek, LightX2V with deep_gemm), or
another power of two without one.
"""

from math import ceil, prod

from loraport.containers import dtypes
from loraport.containers.stored import Group, TensorRef

SUFFIXES = (".scale_weight", ".weight_scale", ".weight_scale_inv", ".fp8_scale")
OF_INPUTS = (".scale_input", ".input_scale")  # they tell a kernel how to round activations
BY_SQUARES = " by squares"
MARKER = "scaled_fp8"  # ComfyUI's first files: a tensor that says that 8 bits have scales in the whole model
SIDE = 128  # of a square, where it does not follow from the shape


def scales_of(group: Group, module: str) -> dict[str, TensorRef]:
    """The scales that stand beside a module, by key; one that is not quantised has none, an honest one has one."""
    return {key: group[key] for suffix in SUFFIXES if (key := module + suffix) in group}


def sharing(weight: TensorRef, scale: TensorRef, side: object) -> str | None:
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
    square = side_of(columns, across)
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
        return side_of(columns, scale.shape[1]) ** 2
    return columns // max(prod(scale.shape[1:]), 1)


def side_of(columns: int, across: int) -> int:
    """The side of the squares of which so many lie side by side."""
    return SIDE if ceil(columns / SIDE) == across else max(columns // across, 1)
