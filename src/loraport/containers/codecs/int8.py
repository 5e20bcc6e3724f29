"""Integers of 8 and 4 bits with scales, in the weight's own basis or in a rotated one: the weight is integer x scale.

How scales are shared is in `scales.py`: ComfyUI's `int8_tensorwise` and LightX2V have one for the tensor or for each
output channel, `int8_blockwise` one for each square. In ComfyUI's convrot files the inputs of a layer were rotated in
groups before rounding, W' = W diag(H, ..., H)^T, where H is the Kronecker power of one 4 x 4 matrix of signs, over the
root of its size (arXiv:2512.03673). H is symmetric and orthogonal, so the same product takes it back. `convrot_w4a4`
is the same with 4 bits, two integers in a byte with the first in the lower half.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod, sqrt
from statistics import NormalDist
from typing import Any

from loraport.containers.codecs.base import Claim, Codec, ModuleSettings, logical
from loraport.containers.codecs.scales import BY_SQUARES, SIDE, numbers_sharing, scales_of, sharing
from loraport.containers.stored import Group, TensorRef

PLAIN, SQUARES, HALVES = FORMATS = ("int8_tensorwise", "int8_blockwise", "convrot_w4a4")
GROUPS = (4, 16, 64, 256, 1024)
_GROUP = 256  # where the settings do not say it
_LARGEST = 127


class Int8(Codec):
    """A weight of 8-bit integers and its scale."""

    def __init__(self, name: str = "int8"):
        self.name = name

    def claim(self, group: Group, settings: ModuleSettings) -> Claim:
        """Every matrix of 8-bit integers; one whose scale is missing or does not fit is named so."""
        claim = Claim()
        for key, weight in group.items() if self.name == "int8" else ():
            module = key.removesuffix(".weight")
            given = settings.get(module, {"format": PLAIN if weight.dtype == "I8" else ""})
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
                claim.weights[key] = _whole(weight, scale, given)
        return claim

    def rounding_floor(self, ref: TensorRef) -> float:
        """That of equal steps, 127 of which reach the largest of the Gaussian numbers that share a scale."""
        return uniform_floor(numbers_sharing(ref))


class Int8Rotated(Int8):
    """The same in a rotated basis; the size of the groups is part of the name.

    Args:
        size: of the groups, a power of 4.
    """

    def __init__(self, size: int):
        super().__init__(f"int8 convrot {size}")
        self.size = size


class Int4Rotated(Int8Rotated):
    """The same with 4 bits: two integers in a byte, from -8 to 7.

    Args:
        size: of the groups, a power of 4.
    """

    def __init__(self, size: int):
        super().__init__(size)
        self.name = f"int4 convrot {size}"

    def rounding_floor(self, ref: TensorRef) -> float:
        """That of equal steps, 7 of which reach the largest number of a row."""
        return uniform_floor(numbers_sharing(ref), 7)


def uniform_floor(count: int, steps: int = _LARGEST) -> float:
    """The floor of equal steps of which so many reach the largest of `count` Gaussian numbers.

    The error of a step s is s / sqrt(12); the largest of n numbers is taken at its median.
    """
    largest = NormalDist().inv_cdf((1.0 + 0.5 ** (1.0 / max(count, 1))) / 2.0)
    return sqrt(2.0 / 12.0) * largest / steps


def _whole(weight: TensorRef, scale: TensorRef, given: Mapping[str, Any]) -> TensorRef:
    """The weight under the name of the codec that reads it, or of what is wrong with it."""
    details = given.get("params")
    given = {**(details if isinstance(details, dict) else {}), **given}
    packed = given["format"] == HALVES
    whole = replace(weight, shape=(weight.shape[0], 2 * weight.shape[1])) if packed else weight
    squares = given["format"] == SQUARES
    shared = sharing(whole, scale, given.get("group_size", SIDE) if squares else None)
    bits = "int4" if packed else "int8"
    if shared is None or (squares and shared != BY_SQUARES and prod(scale.shape) > 1):
        return logical(weight, f"{bits} with scales of the shape {list(scale.shape)} ({scale.dtype})", {})
    if not packed and not given.get("convrot", False):
        return logical(weight, f"{bits}{shared}", {"scale": scale})
    size = given.get("convrot_groupsize", _GROUP)
    by_rows = prod(scale.shape) in (1, weight.shape[0])
    if size not in GROUPS or len(weight.shape) != 2 or whole.shape[1] % size or not by_rows:
        return logical(weight, f"{bits} in a rotated basis (convrot in groups of {str(size)[:20]})", {})
    return logical(weight, f"{bits} convrot {int(size)}", {"scale": scale}, whole.shape if packed else None)
