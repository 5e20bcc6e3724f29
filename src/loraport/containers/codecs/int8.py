"""Integers of 8 bits with scales, in the basis of the weight or in a rotated one: the weight is integer times scale.

How scales are shared is in `scales.py`: ComfyUI's `int8_tensorwise` and LightX2V have one for the tensor or for each
output channel, `int8_blockwise` one for each square. In ComfyUI's convrot files the inputs of a layer were rotated in
groups before rounding, W' = W diag(H, ..., H)^T, where H is the Kronecker power of one 4 x 4 matrix of signs, over the
root of its size (arXiv:2512.03673). H is symmetric and orthogonal, so the same product takes it back.
"""

from collections.abc import Mapping
from math import prod, sqrt
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.containers.codecs.base import Claim, logical
from loraport.containers.codecs.scales import BY_SQUARES, SIDE, numbers_sharing, scaled, scales_of, sharing
from loraport.containers.stored import Group, TensorRef

FORMATS = ("int8_tensorwise", "int8_blockwise")
GROUPS = (4, 16, 64, 256, 1024)
_GROUP = 256  # where the settings do not say it
_LARGEST = 127
_CHUNK = 2**22  # numbers that are rotated at once


class Int8:
    """A weight of 8-bit integers and its scale."""

    def __init__(self, name: str = "int8"):
        self.name = name

    def claim(self, group: Group, settings: Mapping[str, Mapping[str, Any]]) -> Claim:
        """Every matrix of 8-bit integers; one whose scale is missing or does not fit is named so."""
        claim = Claim()
        for key, weight in group.items() if self.name == "int8" else ():
            module = key.removesuffix(".weight")
            given = settings.get(module, {"format": FORMATS[0] if weight.dtype == "I8" else ""})
            if module == key or len(weight.shape) < 2 or given["format"] not in FORMATS:
                continue
            scales = scales_of(group, module)
            claim.used.update((key, *scales))
            if weight.dtype != "I8":
                name = f"int8 by its settings and {weight.dtype} by its numbers"
                claim.weights[key] = logical(weight, name, {})
            elif len(scales) != 1:
                claim.weights[key] = logical(
                    weight, f"int8 {'with two scales' if scales else 'whose scale is missing'}", {}
                )
            else:
                (scale,) = scales.values()
                claim.weights[key] = logical(weight, _codec(weight, scale, given), {"scale": scale})
        return claim

    def decode(
        self, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Mapping[str, Float32[Tensor, "..."]]
    ) -> Float32[Tensor, "..."]:
        """scale * stored, in float32."""
        return scaled(ref, stored, companions)

    def rounding_floor(self, ref: TensorRef) -> float:
        """That of equal steps, 127 of which reach the largest of the Gaussian numbers that share a scale."""
        return uniform_floor(numbers_sharing(ref))

    def refusal(self, ref: TensorRef) -> str | None:
        """None: what does not fit was claimed under another name."""
        return None


class Int8Rotated(Int8):
    """The same in a rotated basis; the size of the groups is part of the name.

    Args:
        size: of the groups, a power of 4.
    """

    def __init__(self, size: int):
        super().__init__(f"int8 convrot {size}")
        self.size = size

    def decode(
        self, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Mapping[str, Float32[Tensor, "..."]]
    ) -> Float32[Tensor, "..."]:
        """scale * stored, turned back into the weight's own basis group by group."""
        rotated = super().decode(ref, stored, companions)
        groups, back = rotated.reshape(-1, self.size), rotation(self.size)
        for part in groups.split(_CHUNK // self.size):
            part.copy_(part @ back)
        return rotated


def rotation(size: int) -> Float32[Tensor, "size size"]:
    """The symmetric orthogonal matrix by which groups of inputs are rotated. `size` is a power of 4."""
    four = torch.ones(4, 4) - 2.0 * torch.eye(4).flip(0)
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.kron(matrix, four)
    return matrix / sqrt(size)


def uniform_floor(count: int) -> float:
    """The floor of equal steps of which 127 reach the largest of `count` Gaussian numbers.

    The error of a step s is s / sqrt(12); the largest of n numbers is taken at its median.
    """
    largest = NormalDist().inv_cdf((1.0 + 0.5 ** (1.0 / max(count, 1))) / 2.0)
    return sqrt(2.0 / 12.0) * largest / _LARGEST


def _codec(weight: TensorRef, scale: TensorRef, given: Mapping[str, Any]) -> str:
    """The name of the codec that reads it, or of what is wrong with it."""
    details = given.get("params")
    details = details if isinstance(details, dict) else {}
    squares = given["format"] == FORMATS[1]
    side = given.get("group_size", details.get("group_size", SIDE)) if squares else None
    shared = sharing(weight, scale, side)
    if shared is None or (squares and shared != BY_SQUARES and prod(scale.shape) > 1):
        return f"int8 with scales of the shape {list(scale.shape)} ({scale.dtype})"
    if not given.get("convrot", details.get("convrot", False)):
        return f"int8{shared}"
    size = given.get("convrot_groupsize", details.get("convrot_groupsize", _GROUP))
    if size not in GROUPS or len(weight.shape) != 2 or weight.shape[1] % size or shared:
        return f"int8 in a rotated basis (convrot in groups of {str(size)[:20]})"
    return f"int8 convrot {int(size)}"
