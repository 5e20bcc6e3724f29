"""Ways of storing weights that are recognised and not read: named, so that the user knows what to look for.

A recognised module appears as one weight whose codec is the name of the scheme; reading it, or asking for its
`refusal`, says so. Files in which such weights are of no use to the work at hand can be read all the same.
"""

import re
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.containers.codecs import int8, scaled_fp8
from loraport.containers.codecs.base import Claim, logical
from loraport.containers.codecs.nvfp4 import is_nvfp4
from loraport.containers.codecs.scales import scales_of
from loraport.containers.codecs.settings import UNKNOWN
from loraport.containers.dtypes import FORMATS
from loraport.containers.stored import Group, TensorRef
from loraport.errors import UnsupportedError

_RESCALED = "weights for a rescaled input (pre_quant_scale)"
_PACKED_INTEGERS, _OTHER_NVFP4 = "packed integers (compressed-tensors)", "nvfp4 of another program"
_OF_NVFP4 = (_PACKED_INTEGERS, _OTHER_NVFP4)  # has such tensors too
# Tensors that only one scheme has beside a module; the first row that fits names it.
_MARKS = tuple(
    (name, re.compile(rf"^(?P<module>.+?)\.({marks})$"))
    for name, marks in (
        ("SVDQuant (Nunchaku)", "wscales|wtscale|wcscales|smooth_factor|smooth_factor_orig"),
        (
            "bitsandbytes",
            r"weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)|SCB|weight_format",
        ),
        ("GPTQ or AWQ", "qweight|qzeros|g_idx"),
        ("torchao", r"_weight_\w+|(weight\.)?(int_data|tensor_impl(_.+)?)"),
        ("quanto", r"(weight\.)?(_data|_scale|_shift)(\._data)?"),
        (_PACKED_INTEGERS, "weight_packed|weight_shape"),
        ("integers with zero points", "weight_zero_point|weight_zeros"),
        (_OTHER_NVFP4, "weight_global_scale|input_global_scale"),
        (_RESCALED, "pre_quant_scale"),
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
_PACKED = {"U8": "packed bytes"}
_BLOCK_SCALED = ("mxfp8", "nvfp4")  # their codecs look at the rest
_READ_FORMATS = (*scaled_fp8.FORMATS, *int8.FORMATS, *_BLOCK_SCALED)


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
    for name, pattern in () if key.endswith((".weight", ".bias")) else _MARKS:  # nearly all keys; no mark ends so
        found = pattern.match(key)
        if found:
            module = found["module"]
            nvfp4 = is_nvfp4(module, group) and name in _OF_NVFP4
            form = settings.get(module, {}).get("format")
            rescaled = name == _RESCALED and form == "nvfp4"
            return None if nvfp4 or rescaled else (_unread(form) or name, module)
    if not key.endswith(".weight"):
        return None
    module = key.removesuffix(".weight")
    given = settings.get(module, {})
    form = str(given.get("format", _READ_FORMATS[0]))
    if _rotated(given) and form not in int8.FORMATS:
        return f"{form} in a rotated basis (convrot)", module
    if _unread(form):
        return _unread(form), module
    if form in _BLOCK_SCALED or f"{module}.weight_scale_2" in group or is_nvfp4(module, group):
        return None
    if any(scale.dtype in ("U8", "F8_E8M0") for scale in scales_of(group, module).values()):
        return "mxfp8 without ComfyUI's settings" if ref.dtype.startswith(
            "F8"
        ) else "mxfp4, mxfp6 or mxfp8 in bytes", module
    if len(ref.shape) >= 2 and ref.dtype in _PACKED:
        return _PACKED[ref.dtype], module
    if len(ref.shape) >= 2 and ref.dtype not in FORMATS and ref.dtype.startswith("F"):
        return f"fp{ref.dtype[1:].lower()}", module
    return None


def _unread(form: str | None) -> str:
    """The name of a format of ComfyUI's settings that is not read; never the bare one, which may be a codec's."""
    return "" if form is None or form in _READ_FORMATS else form if form == UNKNOWN else f"ComfyUI's {form}"


def _rotated(given: Mapping[str, Any]) -> bool:
    details = given.get("params")
    return bool(given.get("convrot")) or (isinstance(details, dict) and bool(details.get("convrot")))
