"""What a distillation LoRA says of how it is sampled: in its header, or in an inference_config.json beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraport.adapters.grammar import grammar
from loraport.adapters.header import json_beside

BESIDE = "inference_config.json"
LONG = 120  # characters of one value; what is longer is no number of steps
_MOST = 1 << 16  # bytes


def told_usage(path: Path, metadata: Mapping[str, str]) -> str:
    """Steps, guidance and the like in one line, "" where nobody says so.

    Args:
        path: the LoRA.
        metadata: its header.
    """
    for where, found in (("its header", dict(metadata)), (f"{BESIDE} beside it", json_beside(path, BESIDE, _MOST))):
        said = [f"{name} {text}" for name in grammar().sampling if (text := _text(found.get(name)))]
        if said:
            return f"{', '.join(said)} ({where})"
    return ""


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, str | int | float | list):
        return ""
    text = " ".join(str(value).split())
    return text if text.isprintable() and len(text) <= LONG and text != "None" else ""
