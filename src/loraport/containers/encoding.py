"""From numbers to what lies in a file: other numbers in the place of a weight, stored in the same way."""

from functools import singledispatch

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor, nn

from loraport.containers.codecs.base import Codec
from loraport.containers.codecs.raw import Raw
from loraport.containers.codecs.scaled_fp8 import ScaledFp8
from loraport.containers.codecs.scales import BY_SQUARES, side_of
from loraport.containers.decoding.base import Companions
from loraport.containers.dtypes import FORMATS
from loraport.containers.stored import TensorRef


@singledispatch
def encode(
    codec: Codec, ref: TensorRef, numbers: Float[Tensor, "..."], companions: Companions
) -> tuple[Shaped[Tensor, "..."], dict[str, Float32[Tensor, "..."]]]:
    """What is to be stored for these numbers, and the companions that go with it.

    Args:
        codec: of the weight; of a codec that has no form of this function files are read and not written.
        ref: which tensor, whole.
        numbers: of its shape.
        companions: as they are, by role.
    """
    raise TypeError(f"nothing encodes {codec.name}")


@encode.register(Raw)
def cast_plainly(
    codec: Raw, ref: TensorRef, numbers: Float[Tensor, "..."], companions: Companions
) -> tuple[Shaped[Tensor, "..."], dict[str, Float32[Tensor, "..."]]]:
    """A cast; what 8 bits cannot hold becomes the largest number that they can."""
    return cast(numbers, ref.dtype), {}


@encode.register(ScaledFp8)
def rescaled(
    codec: ScaledFp8, ref: TensorRef, numbers: Float[Tensor, "..."], companions: Companions
) -> tuple[Float[Tensor, "..."], dict[str, Float32[Tensor, "..."]]]:
    """Other numbers in the place of a scaled weight: what is stored for them, and the scales.

    A scale moves numbers without making them finer, so each stays as long as the largest number under it fits: what
    did not change is then stored as it was. Where it does not fit, the scale becomes as large as it must.

    Args:
        codec: of the weight.
        ref: the weight, whole.
        numbers: of its shape.
        companions: with the scale as it is.
    """
    scale = companions["scale"]
    flat = numbers.reshape(1, -1) if scale.numel() == 1 else numbers.reshape(len(numbers), -1)
    rows, columns = flat.shape
    down, across = (scale.reshape(1, 1) if scale.numel() == 1 else scale.reshape(len(scale), -1)).shape
    squares = ref.codec.endswith(BY_SQUARES) and scale.numel() > 1
    width = side_of(columns, across) if squares else columns // across
    high = width if squares else 1
    peaks = nn.functional.pad(flat.abs(), (0, across * width - columns, 0, down * high - rows))
    peaks = peaks.unflatten(1, (across, width)).amax(2).unflatten(0, (down, high)).amax(1)
    stored_scale = dict(ref.companions)["scale"].dtype
    largest = largest_of(ref.dtype)
    old = scale.reshape(down, across)
    needed = cast(torch.where(peaks > old * largest, peaks / largest, old), stored_scale).float()
    by = torch.where(needed > 0, needed, 1.0).repeat_interleave(high, 0)[:rows]
    divided = flat.clone()
    whole = columns // width
    divided[:, : whole * width].unflatten(1, (whole, width)).div_(by[:, :whole].unsqueeze(2))
    divided[:, whole * width :].div_(by[:, whole:])
    divided = divided.clamp_(-largest, largest).reshape(numbers.shape)
    return cast(divided, ref.dtype), {"scale": needed.reshape(scale.shape)}


def cast(numbers: Float[Tensor, "..."], name: str) -> Float[Tensor, "..."]:
    """Numbers in a format, each rounded to the nearest. 8 bits have no infinity to show that one is too large for
    them, so there the largest number is taken."""
    if FORMATS[name].item_bytes == 1:
        numbers = numbers.clamp(-largest_of(name), largest_of(name))
    return numbers.to(getattr(torch, FORMATS[name].dtype))


def largest_of(name: str) -> float:
    """The largest number of a format."""
    return torch.finfo(getattr(torch, FORMATS[name].dtype)).max
