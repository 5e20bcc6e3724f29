"""Ways of storing weights that are recognised and not read: named, so that the user knows what to look for.

A recognised module appears as one weight whose codec is the name of the scheme; reading it, or asking for its
`refusal`, says so. Files in which such weights are of no use to the work at hand can be read all the same.
"""

import re
from collections.abc import Mapping
from typing import Any

from loraport.containers.codecs import int8, scaled_fp8
from loraport.containers.codecs.base import Claim, Codec, ModuleSettings, logical
from loraport.containers.codecs.nvfp4 import is_nvfp4
from loraport.containers.codecs.scales import OF_INPUTS, SUFFIXES, scales_of
from loraport.containers.codecs.settings import SUFFIX, UNKNOWN
from loraport.containers.dtypes import FORMATS
from loraport.containers.stored import Group, TensorRef

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
        ("HQQ", r"W_q(\..+)?"),
        ("SDNQ", "svd_up|svd_down|zero_point"),
        ("int8 of TurboDiffusion", "int8_weight"),
        ("NVIDIA ModelOpt", r"weight_quantizer\._(double_)?scale"),
        ("torchao", r"_weight_\w+|(weight\.)?(int_data|tensor_impl(_.+)?)"),
        ("quanto", r"(weight\.)?(_data|_scale|_shift)(\._data)?"),
        (_PACKED_INTEGERS, "weight_packed|weight_shape"),
        ("integers with zero points", "weight_zero_point|weight_zeros"),
        (_OTHER_NVFP4, "weight_global_scale|input_global_scale"),
        (_RESCALED, "pre_quant_scale"),
    )
)
# What may stand beside a module that is stored in one of these ways, and is nothing by itself.
_BESIDE = (*SUFFIXES, *OF_INPUTS, ".weight_scale_2", ".scales", SUFFIX)
# What stands beside weights whose codecs know it. Any other scale beside numbers of 8 bits would be left out unseen.
_KNOWN_SCALES = {
    *(suffix.removeprefix(".") for suffix in (*SUFFIXES, *OF_INPUTS)),
    "weight_scale_2",
    "output_scale",
    "input_scale_ub",
    "bias_scale",
    "weight_global_scale",
    "input_global_scale",
}
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "I8", "U8")
_PLAIN = ("F64", "F32", "F16", "BF16")
_BLOCK_SCALED = ("mxfp8", "nvfp4")  # their codecs look at the rest
_READ_FORMATS = (*scaled_fp8.FORMATS, *int8.FORMATS, *_BLOCK_SCALED)


class Refused(Codec):
    """A scheme that is known by name only."""

    def __init__(self, name: str):
        self.name = name

    def refusal(self, ref: TensorRef) -> str | None:
        """The name of the scheme."""
        return self.name

    def claim(self, group: Group, settings: ModuleSettings) -> Claim:
        """Every module that bears the marks of any refused scheme."""
        found: dict[str, list[tuple[int, str, str]]] = {}
        strange = _strange_scales(group)
        for key, ref in group.items():
            scheme = _by_mark(key, group, settings) or _by_weight(key, ref, group, settings, strange)
            if scheme is not None:
                module, rank, name = scheme
                found.setdefault(module, []).append((rank, name, key))
        claim = Claim()
        for module, marks in found.items():
            _, name, first = min(marks)
            weight = f"{module}.weight"
            beside = [key for suffix in _BESIDE if (key := module + suffix) in group]
            claim.weights[weight] = logical(group.get(weight, group[first]), name, {})
            claim.used.update((key for _, _, key in marks), beside, {weight} & group.keys())
        return claim


def _by_mark(key: str, group: Group, settings: ModuleSettings) -> tuple[str, int, str] | None:
    """The module that a mark belongs to, its row in the table, and the name of the scheme."""
    if key.endswith((".weight", ".bias")):
        return None  # nearly all keys; no mark ends so
    for rank, (name, pattern) in enumerate(_MARKS):
        found = pattern.match(key)
        if found:
            module = found["module"]
            form = settings.get(module, {}).get("format")
            if (name in _OF_NVFP4 and is_nvfp4(module, group)) or (name == _RESCALED and form == "nvfp4"):
                return None
            return module, rank, _unread(form) or name
    return None


def _by_weight(
    key: str,
    ref: TensorRef,
    group: Group,
    settings: ModuleSettings,
    strange: Mapping[str, str],
) -> tuple[str, int, str] | None:
    """The same from the weight itself: its number format, its settings, and scales that nobody knows."""
    if not key.endswith(".weight"):
        return None
    module = key.removesuffix(".weight")
    given = settings.get(module, {})
    if not given and ref.dtype in _PLAIN and not scales_of(group, module):
        return None  # nearly all weights
    form = str(given.get("format", _READ_FORMATS[0]))
    name = _unread(form)
    if _rotated(given) and form not in int8.FORMATS:
        name = f"{form} in a rotated basis (convrot)"
    elif not name and not (form in _BLOCK_SCALED or f"{module}.weight_scale_2" in group or is_nvfp4(module, group)):
        if any(scale.dtype in ("U8", "F8_E8M0") for scale in scales_of(group, module).values()):
            name = "mxfp8 without ComfyUI's settings" if ref.dtype.startswith("F8") else "mxfp4, 6 or 8 in bytes"
        elif len(ref.shape) >= 2 and ref.dtype in _EIGHT_BITS and module in strange:
            name = f"8 bits with a scale of another program ({strange[module]})"
        elif len(ref.shape) >= 2 and ref.dtype == "U8":
            name = "packed bytes"
        elif len(ref.shape) >= 2 and ref.dtype not in FORMATS and ref.dtype.startswith("F"):
            name = f"fp{ref.dtype[1:].lower()}"
    return (module, len(_MARKS), name) if name else None


def _strange_scales(group: Group) -> dict[str, str]:
    """Modules with a scale of a name that no codec knows, and that name."""
    split = (key.rpartition(".") for key in group)
    return {
        module.removesuffix(".weight"): last
        for module, _, last in split
        if "scale" in last and last not in _KNOWN_SCALES
    }


def _unread(form: str | None) -> str:
    """The name of a format of ComfyUI's settings that is not read; never the bare one, which may be a codec's."""
    return "" if form is None or form in _READ_FORMATS else form if form == UNKNOWN else f"ComfyUI's {form}"


def _rotated(given: Mapping[str, Any]) -> bool:
    details = given.get("params")
    return bool(given.get("convrot")) or (isinstance(details, dict) and bool(details.get("convrot")))
