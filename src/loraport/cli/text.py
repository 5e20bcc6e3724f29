"""Sizes, times and shares as people read them, and back."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from loraport.errors import LoraportError, UsageError
from loraport.wording import size


def parse_duration(text: str, *, name: str) -> float:
    """Seconds from `30d`, `12h`, `45min` or `90s`. Raises UsageError that names the option."""
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d|w)\s*", text)
    if match is None:
        raise UsageError(f"{name} is not a duration", values=text, fix="write, for example, 30d, 12h or 45min")
    return float(match[1]) * units[match[2]]


def memory(cost: Mapping[str, Any]) -> str:
    """What a plan takes of the host, and of a GPU where one computes."""
    card, said = cost.get("card_bytes", 0), f"{size(cost['peak_bytes'])} at most"
    return said + (f", and {size(card)} of a GPU besides CUDA itself" if card else "")


def duration(seconds: float | int) -> str:
    """A length of time for people: 3 min 5 s."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def operations(count: float | int) -> str:
    """Floating-point operations for people: 3.2 trillion."""
    for unit, step in (("quadrillion", 1e15), ("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count:.0f}"


def needs(cost: Mapping[str, Any], *, shared: bool = False) -> list[str]:
    """What a job takes, a line each.

    Args:
        cost: by the fields of `RunEstimate`.
        shared: of several LoRAs, each layer for all of them, whose finished layers wait on the disk meanwhile.
    """
    once = "; each layer is read and decomposed once" if shared else ""
    again = " and as much again while it runs" if shared else ""
    return [
        f"  work      about {duration(cost['seconds'])}{once}",
        f"  memory    {memory(cost)}",
        f"  disk      {size(cost['output_bytes'])} for the outputs{again}, {size(cost['cache_bytes'])} for the cache",
    ]


def under(label: str, values: Iterable[str]) -> list[str]:
    """Lines of one label, which stands before the first."""
    return [f"  {'' if number else label:<9} {value}" for number, value in enumerate(values)]


def listing(names: list[str] | tuple[str, ...], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def reason(error: LoraportError, most: int = 100) -> str:
    """What went wrong, in a cell of a table."""
    what = error.what.rstrip(".")
    if error.values is not None and len(what) + len(error.values) < most:
        return f"{what}: {error.values}"
    return what if len(what) <= most else f"{what[: most - 3]}..."
