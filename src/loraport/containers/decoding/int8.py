"""Integers in a rotated basis, turned back (`codecs/int8.py`); those in the weight's own basis are in `scales.py`."""

from math import sqrt

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.containers.codecs.int8 import Int4Rotated, Int8Rotated
from loraport.containers.decoding.base import Companions, decode
from loraport.containers.decoding.scales import scaled
from loraport.containers.stored import TensorRef

_CHUNK = 2**22  # numbers that are rotated at once


@decode.register(Int8Rotated)
def rotated(
    codec: Int8Rotated, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Companions
) -> Float32[Tensor, "..."]:
    """scale * stored, turned back into the weight's own basis group by group."""
    turned = scaled(codec, ref, stored, companions)
    groups, back = turned.reshape(-1, codec.size), rotation(codec.size)
    for part in groups.split(_CHUNK // codec.size):
        part.copy_(part @ back)
    return turned


@decode.register(Int4Rotated)
def halves_rotated(
    codec: Int4Rotated, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Companions
) -> Float32[Tensor, "..."]:
    """scale * integer, turned back into the weight's own basis."""
    halves = torch.stack([stored & 15, (stored >> 4) & 15], dim=-1)
    return rotated(codec, ref, ((halves ^ 8) - 8).reshape(ref.shape), companions)


def rotation(size: int) -> Float32[Tensor, "size size"]:
    """The symmetric orthogonal matrix by which groups of inputs are rotated. `size` is a power of 4."""
    four = torch.ones(4, 4, dtype=torch.float32) - 2.0 * torch.eye(4, dtype=torch.float32).flip(0)
    matrix = torch.ones(1, 1, dtype=torch.float32)
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, four)
    return matrix / sqrt(size)
