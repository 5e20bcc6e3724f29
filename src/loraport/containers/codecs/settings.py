"""What ComfyUI's files say about the storage of single modules.

Newer files have a tensor `<module>.comfy_quant`, the bytes of a JSON table; others have one table for all modules in
the header, `_quantization_metadata`. Both give `format` ("float8_e4m3fn", "int8_tensorwise", "nvfp4", ...) and details.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from loraport.containers.stored import Group, TensorRef, read_bytes
from loraport.errors import FileError

SUFFIX = ".comfy_quant"
HEADER = "_quantization_metadata"
ROTATED = "activation_rotation"  # Unsloth: weights of 8 bits were turned, how is said nowhere else
MAX_BYTES = 65_536  # of the table of one module; honest ones have a hundred
UNKNOWN = "a format that its ComfyUI settings do not name"
_BEFORE_FORMATS = {"convrot", "per_row"}  # int8 files of ComfyUI-INT8-Fast name no format, only these
_TURNED = {"I8": "int8_tensorwise", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_NO_LAYERS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what is no table of modules raises
_NAME = re.compile(r"[\w.-]{1,80}")


def module_settings(group: Group, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The settings by module path, as the file spells it. Reads the small tensors that hold them.

    A module whose settings cannot be understood has the format `UNKNOWN`, which no codec reads.

    Raises:
        FileError: the file cannot be read.
    """
    found = _from_header(group, metadata.get(HEADER))
    for key, ref in group.items():
        if key.endswith(SUFFIX):
            found[key.removesuffix(SUFFIX)] = _table(_text(ref))
        elif ROTATED in metadata and key.endswith(".weight") and ref.dtype in _TURNED:
            turned = {"format": _TURNED[ref.dtype], "convrot": True, "convrot_groupsize": metadata[ROTATED]}
            found.setdefault(key.removesuffix(".weight"), turned)
    return found


def joined(headers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The texts of several shards' headers as those of one file: of a key that several have, the first; of the
    settings of modules, all."""
    found = {key: text for header in reversed(headers) for key, text in header.items()}
    given = dict.fromkeys(header[HEADER] for header in headers if HEADER in header)
    layers: dict[str, Any] = {}
    for text in reversed(given):
        try:
            layers |= dict(json.loads(text)["layers"].items())
        except _NO_LAYERS:
            return found | {HEADER: text}  # refused where it is looked at
    return found | ({HEADER: json.dumps({"layers": layers})} if len(given) > 1 else {})


def _from_header(group: Group, text: str | None) -> dict[str, dict[str, Any]]:
    if text is None:
        return {}
    try:
        layers = json.loads(text)["layers"]
        given = {str(name): _table(value) for name, value in layers.items()}
    except _NO_LAYERS:
        raise FileError(
            f"the header's {HEADER} cannot be understood", values=text[:120], fix="use a bf16, fp16 or fp32 copy"
        ) from None
    found = {}
    for key in group:
        if not key.endswith(".weight"):
            continue
        module = key.removesuffix(".weight")
        name = named_in(given, module)
        if name:
            found[module] = given[name]
    return found


def named_in(layers: Mapping[str, Any], module: str) -> str:
    """What a module is called in the table of the header, or "": some writers leave the prefix of the model out."""
    while module and module not in layers:
        module = module.partition(".")[2]
    return module


def _text(ref: TensorRef) -> str:
    if ref.dtype != "U8" or ref.nbytes > MAX_BYTES:
        return ""
    return read_bytes(ref).decode("utf-8", errors="replace")


def _table(value: Any) -> dict[str, Any]:
    """The settings of one module, from text, from a table, or from the bare name of a format."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {"format": UNKNOWN}
    if isinstance(value, str):
        value = {"format": value}
    if isinstance(value, dict) and "format" not in value and _BEFORE_FORMATS & value.keys():
        value = value | {"format": "int8_tensorwise"}
    known = isinstance(value, dict) and isinstance(value.get("format"), str) and _NAME.fullmatch(value["format"])
    return value if known else {"format": UNKNOWN}
