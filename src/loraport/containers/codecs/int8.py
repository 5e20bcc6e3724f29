"""Integers of 8 bits with scales, in the basis of the weight or in a rotated one: the weight is integer times scale.

The scale is one number for the tensor or one for each output channel (ComfyUI `int8_tensorwise`, LightX2V). In
ComfyUI's convrot files the inputs of a layer were rotated in groups before rounding, W' = W diag(H, ..., H)^T, where H
is the Kronecker power of one 4 x 4 matrix of signs, divided by the root of its size (arXiv:2512.03673). H is symmetric
and orthogonal, so the same product takes it back.
"""

from collections.abc import Mapping
from math import prod, sqrt
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.containers import dtypes
from loraport.containers.codecs.base import Claim, logical, scale_beside
from loraport.containers.stored import Group, TensorRef

_SCALES = (".weight_scale", ".scale_weight")
_FORMAT = "int8_tensorwise"
_GROUP = 256  # where the settings do not say it
_LARGEST = 127
_CHUNK = 2**22  # numbers that are rotated at once
GROUPS = (4, 16, 64, 256, 1024)


class Int8:
    """A weight of 8-bit integers and its scale."""

    name = "int8"

    def claim(self, group: Group, settings: Mapping[str, Mapping[str, Any]]) -> Claim:
        """Every matrix of 8-bit integers; one whose scale is missing or does not fit is named so."""
        claim = Claim()
        for key, weight in group.items():
            module = key.removesuffix(".weight")
            given = settings.get(module, {"format": _FORMAT if weight.dtype == "I8" else ""})
            if module == key or len(weight.shape) < 2 or given["format"] != _FORMAT:
                continue
            scales = {name: group[name] for suffix in _SCALES if (name := module + suffix) in group}
            claim.used.update((key, *scales))
            if len(scales) != 1 or weight.dtype != "I8":
                name = "int8 with two scales" if scales else "int8 whose scale is missing"
                name = name if weight.dtype == "I8" else f"int8 by its settings and {weight.dtype} by its numbers"
                claim.weights[key] = logical(weight, name, {})
            else:
                (scale,) = scales.values()
                claim.weights[key] = logical(weight, _codec(weight, scale, given), {"scale": scale})
        return claim

    def decode(
        self, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Mapping[str, Float32[Tensor, "..."]]
    ) -> Float32[Tensor, "..."]:
        """scale * stored, in float32."""
        weight, scale = stored.float(), scale_beside(ref, stored, companions)
        if scale.numel() == 1:
            return weight.mul_(scale.reshape(()))
        if ref.rows is not None:
            scale = torch.cat([scale[start:end] for start, end in ref.rows])
        return weight.mul_(scale.reshape(-1, *[1] * (weight.dim() - 1)))

    def rounding_floor(self, ref: TensorRef) -> float:
        """That of equal steps, 127 of which reach the largest of the Gaussian numbers that share a scale."""
        scales = prod(dict(ref.companions)["scale"].shape)
        return uniform_floor(prod(ref.shape[1:]) if scales > 1 else prod(ref.shape))

    def refusal(self, ref: TensorRef) -> str | None:
        """None: what does not fit was claimed under another name."""
        return None


class Int8Rotated(Int8):
    """The same in a rotated basis; the size of the groups is part of the name.

    Args:
        size: of the groups, a power of 4.
    """

    def __init__(self, size: int):
        self.size = size
        self.name = f"int8 convrot {size}"

    def claim(self, group: Group, settings: Mapping[str, Mapping[str, Any]]) -> Claim:
        """Nothing: `Int8` claims for it."""
        return Claim()

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
    count = prod(scale.shape)
    floating = dtypes.is_float(scale.dtype) and not scale.dtype.startswith("F8")
    if not floating or not (count == 1 or (scale.shape[0] == count == weight.shape[0])):
        return f"int8 with scales of the shape {list(scale.shape)} ({scale.dtype})"
    details = given.get("params")
    details = details if isinstance(details, dict) else {}
    if not given.get("convrot", details.get("convrot", False)):
        return "int8"
    size = given.get("convrot_groupsize", details.get("convrot_groupsize", _GROUP))
    if size not in GROUPS or len(weight.shape) != 2 or weight.shape[1] % size:
        return f"int8 in a rotated basis (convrot in groups of {str(size)[:20]})"
    return f"int8 convrot {int(size)}"
