"""What diffusers makes of a LoRA file: by its own loader, where it is installed, and by what is known of it."""

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.checks import Check
from loraport.adapters.consumers import ALL, Consumer, consumers
from loraport.adapters.dialect import PROFILES, SAME_AS_INPUT
from loraport.adapters.header import stated_profile
from loraport.containers.references import TensorRef
from loraport.errors import first_line
from loraport.wording import count

if TYPE_CHECKING:
    from torch import nn

_HALVES = (".lora_A.weight", ".lora_B.weight", ".lora_B.bias")


def biases_for_diffusers(lora: LoraAdapter, refs: dict[str, TensorRef]) -> list[Check]:
    """Whether every layer has a bias as soon as one has, and every bias has factors.

    diffusers makes room for a bias in every layer then, and leaves without memory whatever the file does not fill.
    """
    family, dialect = lora.architecture.family, replace(lora.dialect, alpha="none")
    if dialect not in (PROFILES["universal"].dialect, PROFILES["diffusers"].dialect):
        return []
    biased = {item.module for item in lora.passthrough if lora.architecture.role(item.module) == "linear"}
    factored = {name for name in lora.layers if dialect.factor(name, "down", family) in refs}
    if not biased:
        return []
    alone, without = sorted(biased - factored), sorted(factored - biased)
    found = [f"{len(alone)} without factors ({alone[0]})"] if alone else []
    found += [f"missing in {count(len(without), 'layer')} ({without[0]})"] if without else []
    promised = "loraport.version" in lora.metadata and stated_profile(lora.metadata) != SAME_AS_INPUT
    wrong = False if promised else None
    return [
        Check(
            "biases as diffusers needs them",
            wrong if found else True,
            "; ".join(found) + "; diffusers allocates no memory for them" if found else f"{len(biased)} biases",
        )
    ]


def loaded_by_diffusers(lora: LoraAdapter, refs: dict[str, TensorRef]) -> Check:
    """Whether the loader of diffusers finds a pair of factors, and nothing it refuses, for every layer."""
    name = "diffusers loads it"
    family = lora.architecture.family
    classes = family.diffusers
    if find_spec("diffusers") is None:
        return Check(name, None, "not looked at: diffusers is not installed")
    if not classes.model:
        return Check(name, None, f"not looked at: no loader for {family.title} is known here")
    try:
        import diffusers
        from diffusers import loaders

        loader = getattr(loaders, classes.loader) if classes.loader else None
        network: Any = None if loader else getattr(diffusers, classes.model)
    except (ImportError, OSError, RuntimeError) as error:  # packages that do not go together, no temporary folder
        return Check(name, None, f"not looked at: diffusers cannot be imported: {first_line(error)[:160]}")
    from loraport.containers.tensors import read_tensor

    plain = replace(lora.dialect, alpha="none")
    spelled = [PROFILES[profile].of(family).dialect for profile in _read_in_full(family.name)]
    promised = "loraport.version" in lora.metadata and plain in spelled
    # Files of our own that diffusers is known to refuse were written with a warning.
    losses = lora.content.losses(_row_of_diffusers()).values()
    warned = any(item.kind == "text_encoder" for item in lora.passthrough) or any(map(family.is_added, lora.layers))
    warned = warned or any(outcome.refused for outcome in losses)
    wrong = False if promised and not warned else None
    if loader:
        try:
            # Given as tensors, so that no other reader opens the file.
            found = loader.lora_state_dict({key: read_tensor(ref) for key, ref in refs.items()})
        except (ValueError, KeyError, RuntimeError, IndexError) as error:
            return Check(name, wrong, f"refused: {type(error).__name__}: {str(error)[:160]}")
        by = ""
    else:
        found = _network_keys(network, refs)
        by = f", by {classes.model}.load_lora_adapter (its pipeline loads no LoRA)"
    strange = [key for key in found if "lora" not in key]
    if strange:
        return Check(name, wrong, f"refused for {strange[0]}")
    wanted = [f"transformer.{family.spell(layer, 'diffusers')}.lora_{half}.weight"
              for layer in lora.layers for half in "AB"]  # fmt: skip
    pairs = sum(key in found for key in wanted) // 2
    # What its loader makes room for and the file does not fill would be left on the "meta" device.
    halves = {half: {key.removesuffix(half) for key in found if key.endswith(half)} for half in _HALVES}
    a, b, biases = (halves[half] for half in _HALVES)
    empty = (a ^ b) | (biases - a) | ((a - biases) if biases else set())
    if empty:
        return Check(name, wrong, f"{count(len(empty), 'layer')} would get no memory, such as {min(empty)}")
    amiss = [outcome.remark for outcome in losses if outcome.wrong]
    taken = f"{pairs} of {count(len(lora.layers), 'layer')}{by}"
    if amiss:  # it finds the layer, and changes it otherwise than it is meant
        return Check(name, None, f"{taken}, some of it wrongly: {'; '.join(amiss)}")
    return Check(name, True if pairs == len(lora.layers) else wrong, taken)


def _read_in_full(family: str) -> list[str]:
    """The profiles in which diffusers is known to take every layer of a family, wherever it lies."""
    rows = _row_of_diffusers().families
    profiles = rows[family].profiles if family in rows else {}
    return [
        name for name in ("universal", "diffusers") if not {ALL, "outside"} & profiles.get(name, {ALL: None}).keys()
    ]


def _row_of_diffusers() -> Consumer:
    return next(consumer for consumer in consumers() if consumer.name == "diffusers")


def _network_keys(network: "type[nn.Module]", refs: dict[str, TensorRef]) -> set[str]:
    """The keys that name a linear layer of a network, as its `load_lora_adapter` reads them."""
    import torch

    with torch.device("meta"):
        linear = {name for name, module in network().named_modules() if isinstance(module, torch.nn.Linear)}
    plain = {key: key.removeprefix("transformer.").rpartition(".lora_")[0] for key in refs}
    return {key for key, module in plain.items() if key.startswith("transformer.") and module in linear}
