"""What a file holds for the sake of a weight's format alone: to be left out where the weight becomes plain numbers.

A program decides by these tensors and texts how it reads a layer, so one that stays behind would have it take plain
numbers for integers or fp8. What belongs to layers that do not change stays.
"""

import json
from collections.abc import Collection, Mapping

from loraport.containers.codecs.scales import MARKER, OF_INPUTS, SUFFIXES
from loraport.containers.codecs.settings import HEADER, ROTATED, SUFFIX, named_in
from loraport.containers.stored import Group, TensorRef

_PARTS = (
    *SUFFIXES,
    *OF_INPUTS,
    SUFFIX,
    ".weight_scale_2",
    ".weight_global_scale",
    ".input_scale_ub",
    ".input_global_scale",
    ".input_absmax",
    ".output_scale",
    ".pre_quant_scale",
)
# What weights are called while they are stored so, and as plain numbers: quanto, torchao, compressed-tensors.
_NAMES = ((".weight._data", ".weight"), ("._weight_qdata", ".weight"), (".weight_packed", ".weight"))
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "I8")
_PLAIN_IN_TORCHAO = json.dumps({"_type": "Tensor"})


def plain_key(ref: TensorRef) -> str:
    """What a weight is called as plain numbers, in the program that wrote it and all others."""
    for end, plain in _NAMES:
        if ref.key.endswith(end):
            return ref.key.removesuffix(end) + plain
    return ref.key


def belongings(refs: Collection[TensorRef], stored: Group) -> list[TensorRef]:
    """The tensors that go when these weights become plain numbers, in the order of the file.

    Args:
        refs: the weights, whole.
        stored: all tensors as they lie in the files, by key.
    """
    gone: set[str] = set()
    for ref in refs:
        gone.update(companion.key for _, companion in ref.companions)
        module = plain_key(ref).removesuffix(".weight")
        if module != plain_key(ref):
            gone.update(module + part for part in _PARTS)
    own = {ref.key for ref in refs}
    left = [key for key, ref in stored.items() if ref.dtype in _EIGHT_BITS and key not in own]
    for key in stored:
        if key == MARKER or key.endswith("." + MARKER):
            prefix = key.removesuffix(MARKER)
            if not any(other.startswith(prefix) for other in left if other != key):
                gone.add(key)
    return [ref for key, ref in stored.items() if key in gone]


def texts_without(texts: Mapping[str, str], refs: Collection[TensorRef], stored: Group) -> dict[str, str]:
    """The texts of a header less what they say of the format of weights that are plain numbers now.

    Args:
        texts: of one file; those of other files of the model may name the same weights.
        refs: the weights, whole.
        stored: all tensors of the model as they lie in the files, by key.
    """
    plain = {plain_key(ref): ref.key for ref in refs}
    kept = {key: _PLAIN_IN_TORCHAO if key in plain and '"_type"' in text else text for key, text in texts.items()}
    if not any(ref.dtype in _EIGHT_BITS for key, ref in stored.items() if key not in plain.values()):
        kept.pop(ROTATED, None)
    if HEADER not in kept:
        return kept
    said = json.loads(kept.pop(HEADER))
    modules: dict[str, list[str]] = {}  # of one entry; without a prefix it may be that of two
    for key in stored:
        if key.endswith(".weight") and (name := named_in(said["layers"], key.removesuffix(".weight"))):
            modules.setdefault(name, []).append(key)
    layers: dict[str, object] = {}
    for name, settings in said["layers"].items():
        keys = modules.get(name, [])
        stay = [key.removesuffix(".weight") for key in keys if key not in plain]
        layers |= dict.fromkeys([name] if len(stay) == len(keys) else stay, settings)
    return kept | ({HEADER: json.dumps(said | {"layers": layers})} if layers else {})
