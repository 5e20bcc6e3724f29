"""Parameters that PEFT saves whole beside a LoRA: trained biases (`bias`) and whole modules (`modules_to_save`).

Such a tensor is the new value of a parameter, not a change of it. Its name is the model's own, so that only what is
PEFT's counts: a checkpoint must never pass for a LoRA.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loraport.adapters.grammar import NOTES, grammar
from loraport.adapters.peft_config import PEFT_PREFIX, AdapterConfig, read_config
from loraport.containers.references import TensorRef, refusal
from loraport.errors import LoraportError
from loraport.models.keys import key_rules
from loraport.wording import count

OWN_BIAS = ".base_layer.bias"  # of a layer that PEFT wrapped
_OWN_WEIGHT = ".base_layer.weight"
_UNTRAINED = ".original_module."
_COPY = re.compile(r"\.modules_to_save(?:\.(?P<adapter>[^.]+))?(?=\.)")  # the name is missing in some files


@dataclass(frozen=True)
class Saved:
    """A parameter that is saved whole: its path without what PEFT puts into it, and the adapter that is named."""

    name: str
    adapter: str | None


@dataclass(frozen=True)
class SavedWhole:
    """What of a file is saved whole.

    Args:
        values: key -> the parameter of which it is the new value.
        idle: keys that say nothing further: what such a module was before, or its new value once more.
    """

    values: Mapping[str, Saved] = field(default_factory=dict)
    idle: tuple[str, ...] = ()


NONE_SAVED = SavedWhole()


def saved_whole(refs: Mapping[str, TensorRef], path: Path, metadata: Mapping[str, str]) -> SavedWhole:
    """What of a LoRA file is a parameter that PEFT saved whole.

    Only in a file that has updates as well, and only keys that PEFT made (`base_model.model.`, `.base_layer.bias`,
    `.modules_to_save.`) or that its configuration speaks of. Where the model's own weights are in the file too
    (`.base_layer.weight`), it is everything that the model had, and a plain name says nothing of training.

    Args:
        refs: the keys of the file.
        path: the file.
        metadata: its header.
    """
    rules = grammar()
    suffixes = {key: rules.split_suffix(key_rules().unwrap(key)) for key in refs}
    if not any(suffix is not None and suffix.part not in {*NOTES, *rules.changes} for suffix in suffixes.values()):
        return NONE_SAVED
    plain = {key for key, suffix in suffixes.items() if suffix is None and not key.startswith(rules.text_encoders)}
    if not plain:
        return NONE_SAVED
    everything = any(key.endswith(_OWN_WEIGHT) for key in plain)
    config = None if everything or all(_is_pefts(key) for key in plain) else _config(path, metadata)
    values: dict[str, Saved] = {}
    idle = []
    for key in refs:
        if key not in plain or refusal(refs[key]) is not None:
            continue
        copy = _COPY.search(key)
        if _UNTRAINED in key and not everything:
            idle.append(key)
        elif copy is not None:
            values[key] = Saved(_unwrapped(key[: copy.start()] + key[copy.end() :]), copy["adapter"])
        elif not everything and (_is_pefts(key) or _spoken_of(key, config)):
            values[key] = Saved(_unwrapped(key), None)
    named = {saved.name for key, saved in values.items() if _COPY.search(key) is None}
    again = [key for key, saved in values.items() if saved.name in named and _COPY.search(key) is not None]
    return SavedWhole({key: saved for key, saved in values.items() if key not in again}, (*idle, *again))


def said_of_saved(found: SavedWhole) -> list[str]:
    """What to tell of them."""
    if not found.values:
        return []
    what = count(len(found.values), "parameter", "was/were")
    return [
        f"{what} saved whole by PEFT, e.g. {next(iter(found.values))}: the change is the difference to the source's own"
    ]


def _is_pefts(key: str) -> bool:
    return PEFT_PREFIX in key or key.endswith(OWN_BIAS) or _COPY.search(key) is not None


def _config(path: Path, metadata: Mapping[str, str]) -> AdapterConfig | None:
    try:
        return read_config(path, metadata, "")
    except LoraportError:  # said where it is needed
        return None


def _spoken_of(key: str, config: AdapterConfig | None) -> bool:
    """Whether a configuration says that a parameter is saved whole."""
    if config is None:
        return False
    return (config.biases and key.endswith(".bias")) or any(f".{name}." in f".{key}" for name in config.saved)


def _unwrapped(key: str) -> str:
    return key_rules().unwrap(key).replace(".base_layer.", ".")
