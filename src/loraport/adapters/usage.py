"""What is said of how a model is sampled: by a distillation LoRA in its header or an inference_config.json beside it,
by a pipeline of diffusers, in the configuration of its scheduler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraport.adapters.grammar import grammar
from loraport.adapters.header import json_beside

SCHEDULE = "scheduler_config.json"
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


def told_schedule(path: Path) -> str:
    """What a pipeline of diffusers says of the schedule of its model, in one line; "" for anything else.

    Args:
        path: the model in it: a file, or a folder.
    """
    for folder in (path, path.parent, path.parent.parent):
        found = json_beside(folder / "scheduler" / SCHEDULE, SCHEDULE, _MOST)
        said = [f"{name} {text}" for name in ("shift", "flow_shift") if (text := _text(found.get(name)))]
        if kind := _text(found.get("_class_name")):
            return ", ".join([kind, *said])
    return ""


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, str | int | float | list):
        return ""
    text = " ".join(str(value).split())
    return text if text.isprintable() and len(text) <= LONG and text != "None" else ""
