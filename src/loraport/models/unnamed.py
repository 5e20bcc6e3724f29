"""Models of no known family: their layers by the names under which the file itself has them.

Names are all there is to go by: no layer is known to be fused or split, or to be stored in another order, and nothing
is known of what other programs call it. So source, target and LoRA must agree in their names.
"""

from collections import Counter
from collections.abc import Mapping

from loraport.containers.references import TensorRef
from loraport.models.family import Family, Template
from loraport.models.keymap import longest_prefix
from loraport.models.keys import key_rules
from loraport.models.placement import Place
from loraport.wording import count

NAMINGS = ("original", "diffusers")  # the namings that output profiles ask for: the same names in both


def family_of(tensors: Mapping[str, TensorRef]) -> Family | None:
    """A family made of one model: every matrix in it is a layer. None where there is no matrix.

    Args:
        tensors: the file's keys. Of several models in one file (an encoder beside the denoiser) the one whose prefix
            most matrices have is meant.
    """
    unwrap = key_rules().unwrap
    paths = {unwrap(key): ref for key, ref in tensors.items()}
    prefixes = Counter(longest_prefix(path) for path, ref in paths.items() if _is_matrix(path, ref))
    if not prefixes:
        return None
    prefix = prefixes.most_common(1)[0][0]
    templates = {}
    for path, ref in paths.items():
        name, role = _module(path.removeprefix(prefix), ref)
        if path.startswith(prefix) and role:
            places = {naming: Place(name) for naming in NAMINGS}
            templates[name] = Template(name, places, role, (), optional=True)
    layers = sum(template.role == "linear" for template in templates.values())
    return Family(
        name="any",
        title=f"a model of no known family, {count(layers, 'layer')} by name",
        namings=NAMINGS,
        templates=templates,
        universal=NAMINGS[0],
        unnamed=True,
    )


def _is_matrix(path: str, ref: TensorRef) -> bool:
    return path.endswith(".weight") and len(ref.shape) == 2


def _module(path: str, ref: TensorRef) -> tuple[str, str]:
    """The module of a key, and its role; "" for a key that defines none."""
    module, _, kind = path.rpartition(".")
    if kind == "bias":
        return module, ""
    if kind != "weight":
        return path, "param"
    return module, {1: "norm", 2: "linear"}.get(len(ref.shape), "conv")
