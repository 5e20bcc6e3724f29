"""Other numbers in the place of a tensor: what will be stored (`encoding.py`), and what is then read back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.containers.codecs.registry import codec_of
from loraport.containers.decoding import decode
from loraport.containers.encoding import cast, encode
from loraport.containers.stored import TensorRef
from loraport.containers.tensors import read_float


@dataclass(frozen=True)
class Encoded:
    """Numbers as they will be stored.

    Args:
        tensors: each stored tensor with its content: the weight's own, and its companions'.
        numbers: what is read back.
    """

    tensors: tuple[tuple[TensorRef, Tensor], ...]
    numbers: Tensor


def encoded(ref: TensorRef, numbers: Float[Tensor, "..."]) -> Encoded:
    """Other numbers in the place of a tensor, stored in the same way.

    Args:
        ref: which, whole; `can_encode` is true of it.
        numbers: of its shape.
    """
    codec, companions = codec_of(ref), {role: read_float(companion) for role, companion in ref.companions}
    stored, scales = encode(codec, ref, numbers, companions)
    back = stored.double() if numbers.dtype == torch.float64 else decode(codec, ref, stored, scales)
    beside = [(other, cast(scales[role], other.dtype)) for role, other in ref.companions]
    return Encoded(((ref, stored), *beside), back)


def encoded_plainly(ref: TensorRef, numbers: Float[Tensor, "..."], dtype: str) -> Encoded:
    """The same as numbers of a plain format, which need no companions.

    Args:
        ref: which, whole.
        numbers: of its shape.
        dtype: the format, as safetensors spells it.
    """
    stored = cast(numbers, dtype)
    return Encoded(((ref, stored),), stored.to(numbers.dtype))
