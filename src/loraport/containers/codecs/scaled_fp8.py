"""8-bit floating point with scales, e4m3 and e5m2: the weight is the stored number times the scale.

How scales are called and shared is in `scales.py`. Scales of the inputs tell a kernel how to round activations, and the
marker `scaled_fp8` which kernel to take; the weight does not depend on them.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from loraport.containers import dtypes
from loraport.containers.codecs.base import Claim, Codec, ModuleSettings, logical
from loraport.containers.codecs.scales import BY_SQUARES, MARKER, OF_INPUTS, SUFFIXES, scales_of, sharing
from loraport.containers.codecs.settings import SUFFIX
from loraport.containers.stored import Group, TensorRef

SQUARES = "float8_e4m3fn_blockwise"
FORMATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fn_rowwise", SQUARES)
_OF_BIAS = ".bias_scale"  # LTX
# ComfyUI gives layers that it keeps in 16 or 32 bits a scale too.
_STORED = ("F8_E4M3", "F8_E5M2", "BF16", "F16", "F32")


class ScaledFp8(Codec):
    """A weight of 8 bits and its scale."""

    def __init__(self, name: str = "scaled"):
        self.name = name

    def claim(self, group: Group, settings: ModuleSettings) -> Claim:
        """Every `<module>.weight` with a scale beside it; scales of inputs, markers and settings vanish."""
        claim = Claim()
        if self.name != "scaled":
            return claim
        for key, ref in group.items():
            suffix = next((suffix for suffix in (*SUFFIXES, _OF_BIAS) if key.endswith(suffix)), None)
            if suffix is not None:
                module = key.removesuffix(suffix)
                scales = {key: ref} if suffix == _OF_BIAS else scales_of(group, module)
                of = f"{module}.bias" if suffix == _OF_BIAS else f"{module}.weight"
                claim.weights[of] = _scaled(group.get(of), scales, settings.get(module, {}))
                claim.used.update((of, key))
            elif key == MARKER or key.endswith(("." + MARKER, SUFFIX, *OF_INPUTS)):
                claim.used.add(key)
        for key, ref in group.items():
            if key.endswith(".weight") and key not in claim.used and key.removesuffix(".weight") in settings:
                claim.weights[key] = logical(ref, "fp8 whose scale is missing", {})
                claim.used.add(key)
        return claim

    def rounding_floor(self, ref: TensorRef) -> float:
        """That of the 8-bit format: a scale moves numbers without making them finer."""
        return dtypes.rounding_floor(ref.dtype)


def _scaled(weight: TensorRef | None, scales: Mapping[str, TensorRef], given: Mapping[str, Any]) -> TensorRef:
    """A weight by the codec that reads it, or by the name of what is wrong with it."""
    scale = next(iter(scales.values()))
    if weight is None:
        return logical(scale, "a scale without its weight", {})
    if len(scales) > 1:
        return logical(weight, "fp8 with two scales", {"scale": scale})
    squares = given.get("format") == SQUARES
    shared = sharing(weight, scale, given.get("group_size") if squares else None)
    if weight.dtype not in _STORED:
        return logical(weight, f"numbers of another format with a scale ({weight.dtype})", {})
    if shared is None or (squares and shared != BY_SQUARES and prod(scale.shape) > 1):
        return logical(weight, f"fp8 with scales of the shape {list(scale.shape)} ({scale.dtype})", {})
    return logical(weight, f"scaled{shared}", {"scale": scale})
