"""8-bit floating point with scales, e4m3 and e5m2: the weight is the stored number times the scale.

Every program that writes such files multiplies, whatever the scale is called: ComfyUI and Kijai `scale_weight` beside
a marker tensor `scaled_fp8`, newer ComfyUI and LightX2V `weight_scale`, others `weight_scale_inv` (the inverse of what
the weight was multiplied by when it was made, which again multiplies). The scale is one number, one number for each
output channel, or (musubi-tuner) one for each block of a row. Scales of the inputs (`scale_input`, `input_scale`) tell
a kernel how to round activations; the weight does not depend on them.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.containers import dtypes
from loraport.containers.codecs.base import Claim, logical, scale_beside
from loraport.containers.stored import Group, TensorRef

_SCALES = (".scale_weight", ".weight_scale", ".weight_scale_inv")
_OF_INPUTS = (".scale_input", ".input_scale")
_MARKER = "scaled_fp8"
_SETTINGS = ".comfy_quant"
# ComfyUI gives layers that it keeps in 16 or 32 bits a scale too.
_STORED = ("F8_E4M3", "F8_E5M2", "BF16", "F16", "F32")


class ScaledFp8:
    """A weight of 8 bits and its scale."""

    name = "scaled"

    def claim(self, group: Group, settings: Mapping[str, Mapping[str, Any]]) -> Claim:
        """Every `<module>.weight` with a scale beside it; scales of inputs, markers and settings vanish."""
        claim = Claim()
        for key, scale in group.items():
            suffix = next((suffix for suffix in _SCALES if key.endswith(suffix)), None)
            if suffix is None:
                continue
            module = key.removesuffix(suffix)
            weight = group.get(f"{module}.weight")
            if weight is None:
                continue
            name = self.name if f"{module}.weight" not in claim.weights else "fp8 with two scales"
            if name == self.name and not _fits(weight, scale):
                name = f"fp8 with scales of the shape {list(scale.shape)}"
            claim.weights[f"{module}.weight"] = logical(weight, name, {"scale": scale})
            claim.used.update((key, f"{module}.weight"))
        for key, ref in group.items():
            if key.endswith(".weight") and key not in claim.weights and key.removesuffix(".weight") in settings:
                claim.weights[key] = logical(ref, "fp8 whose scale is missing", {})
                claim.used.add(key)
            elif key == _MARKER or key.endswith(("." + _MARKER, _SETTINGS, *_OF_INPUTS)):
                claim.used.add(key)
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
        blocks = scale.shape[1] if scale.dim() == 3 and weight.dim() == 2 else 1
        spread = weight.reshape(weight.shape[0], blocks, -1).mul_(scale.reshape(-1, blocks, 1))
        return spread.reshape(weight.shape)

    def rounding_floor(self, ref: TensorRef) -> float:
        """That of the 8-bit format: a scale moves numbers without making them finer."""
        return dtypes.rounding_floor(ref.dtype)

    def refusal(self, ref: TensorRef) -> str | None:
        """None: what does not fit was claimed under another name."""
        return None


def _fits(weight: TensorRef, scale: TensorRef) -> bool:
    """Whether a scale is one number, one for each row, or one for each of several equal blocks of a row."""
    if weight.dtype not in _STORED or not dtypes.is_float(scale.dtype) or scale.dtype.startswith("F8"):
        return False
    if prod(scale.shape) == 1:
        return True
    if not weight.shape or scale.shape[0] != weight.shape[0]:
        return False
    if len(scale.shape) == 3 and len(weight.shape) == 2:
        return scale.shape[2] == 1 and scale.shape[1] > 0 and weight.shape[1] % scale.shape[1] == 0
    return prod(scale.shape) == weight.shape[0]
