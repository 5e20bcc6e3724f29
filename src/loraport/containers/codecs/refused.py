"""Ways of storing weights that are recognised and not read: named, so that the user knows what to look for.

A recognised module appears as one weight whose codec is the name of the scheme; reading it, or asking for its
`refusal`, says so. Files in which such weights are of no use to the work at hand can be read all the same.
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.containers.codecs.base import Claim, logical
from loraport.containers.codecs.settings import UNKNOWN
from loraport.containers.dtypes import FORMATS
from loraport.containers.stored import Group, TensorRef
from loraport.errors import UnsupportedError

# Tensors that only one scheme has beside a module; the first row that fits names it.
_MARKS = tuple(
    (name, re.compile(rf"^(?P<module>.+?)\.({marks})$"))
    for name, marks in (
        ("SVDQuant (Nunchaku)", "wscales|wtscale|wcscales|smooth_factor|smooth_factor_orig"),
        ("nvfp4 (LightX2V)", "weight_global_scale|input_global_scale"),
        (
            "bitsandbytes",
            r"weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)|SCB|weight_format",
        ),
        ("GPTQ or AWQ", "qweight|qzeros|g_idx"),
        ("quanto or torchao", r"(weight\.)?(_data|_scale|_shift|int_data|tensor_impl(_.+)?)"),
        ("integers with zero points", "weight_zero_point|weight_zeros|weight_packed"),
        ("weights for a rescaled input (pre_quant_scale)", "pre_quant_scale"),
    )
)
# What may stand beside a module that is stored in one of these ways, and is nothing by itself.
_BESIDE = (
    "weight_scale",
    "weight_scale_2",
    "scale_weight",
    "weight_scale_inv",
    "input_scale",
    "scale_input",
    "scales",
    "comfy_quant",
)
_SCALES = ("scale_weight", "weight_scale", "weight_scale_inv")
_PACKED = {"U8": "packed bytes"}
_READ_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "mxfp8", "nvfp4")
_BLOCK_SCALED = ("mxfp8", "nvfp4")  # their codecs look at the rest
_READ_ROTATED = ("int8_tensorwise",)


class Refused:
    """A scheme that is known by name only."""

    def __init__(self, name: str):
        self.name = name

    def decode(
        self, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Mapping[str, Float32[Tensor, "..."]]
    ) -> Float32[Tensor, "..."]:
        """Raises UnsupportedError, always."""
        raise UnsupportedError(
            f"{ref.key} is quantised ({self.name}), which is not supported yet",
            where=str(ref.file),
            values=f"{ref.dtype} {list(ref.shape)}",
            fix="use the bf16, fp16 or fp32 copy",
        )

    def rounding_floor(self, ref: TensorRef) -> float:
        """Not known."""
        return 0.0

    def refusal(self, ref: TensorRef) -> str | None:
        """The name of the scheme."""
        return self.name

    def claim(self, group: Group, settings: Mapping[str, Mapping[str, Any]]) -> Claim:
        """Every module that bears the marks of any refused scheme."""
        names: dict[str, str] = {}
        marks: dict[str, list[str]] = {}
        for key, ref in group.items():
            scheme = _scheme_of(key, ref, group, settings)
            if scheme is not None:
                names.setdefault(scheme[1], scheme[0])
                marks.setdefault(scheme[1], []).append(key)
        claim = Claim()
        for module, name in names.items():
            weight = f"{module}.weight"
            beside = [key for suffix in _BESIDE if (key := f"{module}.{suffix}") in group]
            claim.weights[weight] = logical(group.get(weight, group[marks[module][0]]), name, {})
            claim.used.update(marks[module], beside, {weight} & group.keys())
        return claim


def _scheme_of(
    key: str, ref: TensorRef, group: Group, settings: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str] | None:
    """The refused scheme that a stored tensor tells of, and the module it is part of."""
    for name, pattern in _MARKS:
        found = pattern.match(key)
        if found:
            return name, found["module"]
    if not key.endswith(".weight"):
        return None
    module = key.removesuffix(".weight")
    given = settings.get(module, {})
    form = str(given.get("format", _READ_FORMATS[0]))
    if _rotated(given) and form not in _READ_ROTATED:
        return f"{form} in a rotated basis (convrot)", module
    if form not in _READ_FORMATS:
        return form if form == UNKNOWN else f"ComfyUI's {form}", module  # never the bare name: it may be a codec's
    if form in _BLOCK_SCALED or f"{module}.weight_scale_2" in group:
        return None
    scales = [scale for suffix in _SCALES if (scale := group.get(f"{module}.{suffix}")) is not None]
    if any(scale.dtype in ("U8", "F8_E8M0") for scale in scales):
        return "mxfp8 without ComfyUI's settings" if ref.dtype.startswith("F8") else "packed bytes", module
    if len(ref.shape) >= 2 and ref.dtype in _PACKED:
        return _PACKED[ref.dtype], module
    if len(ref.shape) >= 2 and ref.dtype not in FORMATS and ref.dtype.startswith("F"):
        return f"fp{ref.dtype[1:].lower()}", module
    return None


def _rotated(given: Mapping[str, Any]) -> bool:
    details = given.get("params")
    return bool(given.get("convrot")) or (isinstance(details, dict) and bool(details.get("convrot")))
