"""Tensor subclasses of quanto and torchao, taken apart for safetensors: given the names that other programs use.

Both write 8-bit numbers and a scale that multiplies, under names of their own: quanto `a.weight._data` and
`a.weight._scale` (`a.output_scale` is for activations), torchao `a._weight_qdata` and `a._weight_scale`. What has a
zero point or a shift besides, or packs several numbers in a byte, keeps its names, by which it is refused.
"""

from collections.abc import Mapping

from loraport.containers.codecs.settings import ROTATED
from loraport.containers.stored import Group

# What the numbers and the scale are called, the formats that are plain, and what must not stand beside them.
_QUANTO = ("weight._data", "weight._scale", ("F8_E4M3", "F8_E5M2", "I8"), ("weight._shift",))
_TORCHAO = ("_weight_qdata", "_weight_scale", ("F8_E4M3", "F8_E5M2"), ("_weight_zero_point",))


def put_together(group: Group, metadata: Mapping[str, str]) -> Group:
    """The tensors by their usual names, `a.weight` and `a.weight_scale`; references keep those of the file."""
    names: dict[str, str] = {}
    for data, scale, formats, others in (_QUANTO, _TORCHAO):
        for key, ref in group.items():
            module = key.removesuffix(f".{data}")
            plain = ref.dtype in formats and not any(f"{module}.{other}" in group for other in others)
            taken = f"{module}.weight" in group or f"{module}.weight_scale" in group
            if module != key and plain and not taken and f"{module}.{scale}" in group and ROTATED not in metadata:
                names |= {key: f"{module}.weight", f"{module}.{scale}": f"{module}.weight_scale"}
                names[f"{module}.output_scale"] = f"{module}.input_scale"  # as little to do with the weight
    return {names.get(key, key): ref for key, ref in group.items()} if names else group
