"""How a model is sampled: what a distillation LoRA says in its header or an inference_config.json beside it, a pipeline
of diffusers in the configuration of its scheduler, and what is known of a model by its name (`distilled.py`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraport.adapters.consumers import consumers
from loraport.adapters.distilled import Distilled, known_model, names_of
from loraport.adapters.grammar import grammar
from loraport.adapters.header import read_table
from loraport.models.family import Family

SCHEDULE = "scheduler_config.json"
BESIDE = "inference_config.json"
CARD, SAMPLING = "model.json", "sampling"  # of a bundled model
LONG = 120  # characters of one value; what is longer is no number of steps


def told_usage(path: Path, metadata: Mapping[str, str]) -> str:
    """Steps, guidance and the like in one line, "" where nobody says so.

    Args:
        path: the LoRA, or the model.
        metadata: its header.
    """
    beside = read_table(path.parent / BESIDE)
    for where, found in (("its header", dict(metadata)), (f"{BESIDE} beside it", beside)):
        said = [f"{name} {text}" for name in grammar().sampling if (text := _text(found.get(name)))]
        if said:
            return f"{', '.join(said)} ({where})"
    for folder in (path, path.parent):
        card = read_table(folder / CARD).get(SAMPLING)
        if isinstance(card, dict) and (said := [f"{name} {text}" for name in card if (text := _text(card[name]))]):
            return f"{', '.join(said)} ({CARD} beside it)"
    return ""


def known_usage(path: Path, metadata: Mapping[str, str], family: Family, *said: str | None) -> Distilled | None:
    """The well-known model that a target or a distillation LoRA is by its name; None where a file beside it says itself
    how it is sampled, or none is known.

    Args:
        path: the file, or the folder.
        metadata: its header, of a LoRA.
        family: of its source.
        said: what the user called it.
    """
    return None if told_usage(path, metadata) else known_model(names_of(path, *said), family.name)


def ways_to_sample(known: Distilled, family: Family) -> dict[str, str]:
    """What to type or click to sample a known model as its authors do, by program; none where it cannot.

    Args:
        known: the model.
        family: of its source.
    """
    if known.causal:
        return {}
    shifts = {each.program: each.families[family.name].shift for each in consumers() if family.name in each.families}
    made = {"diffusers": _in_diffusers(known, family), "ComfyUI": _in_comfyui(known)}
    ways = {}
    for program, text in made.items():
        shift = shifts.get(program, "").replace("{shift}", f"{known.shift:g}") if known.shift is not None else ""
        if program in shifts and text and bool(shift) == (known.shift is not None):
            ways[program] = f"{shift}; {text}" if shift else text
    return ways


def _in_diffusers(known: Distilled, family: Family) -> str:
    if known.times or known.sampler != "euler":
        return ""  # its pipelines take neither
    return f"pipe(..., num_inference_steps={known.steps}, {family.diffusers.guidance}={known.guidance:g})"


def _in_comfyui(known: Distilled) -> str:
    sampler = "lcm" if known.sampler == "renoise" else "euler"
    cfg = max(known.guidance, 1.0)  # which is off there
    if known.times:
        sigmas = ", ".join(f"{time / 1000:g}" for time in (*known.times, 0.0))
        return f"custom sampler {sampler} with the sigmas {sigmas}, cfg {cfg:g}"
    return f"KSampler with steps {known.steps}, cfg {cfg:g}, sampler {sampler}, scheduler simple"


def told_schedule(path: Path) -> str:
    """What a pipeline of diffusers says of the schedule of its model, in one line; "" for anything else.

    Args:
        path: the model in it: a file, or a folder.
    """
    for folder in (path, path.parent, path.parent.parent):
        found = read_table(folder / "scheduler" / SCHEDULE)
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
