"""How well-known distilled models are sampled (`known.yaml`), for those who do not say it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from loraport.models.keys import read_yaml
from loraport.sampling.schedule import SamplingSettings


@dataclass(frozen=True)
class Known:
    """A distilled model.

    Attributes:
        name: for people.
        pattern: found in its files' names, lower case with - for _ and dots.
        settings: how it is sampled.
        seen: who says so.
    """

    name: str
    pattern: re.Pattern[str]
    settings: SamplingSettings
    seen: str


@cache
def known_models() -> tuple[Known, ...]:
    """All of them, in the order in which they are tried."""
    rows: list[dict[str, Any]] = read_yaml((resources.files("loraport.comparing") / "known.yaml").read_text("utf-8"))
    return tuple(
        Known(row.pop("name"), re.compile(row.pop("pattern")), seen=row.pop("seen"), settings=SamplingSettings(**row))
        for row in rows
    )


def known_model(names: Iterable[str | Path]) -> Known | None:
    """The model that one of the names (of a folder, a file, a repository) means; None where none is known."""
    plain = [re.sub(r"[_.]", "-", "/".join(Path(name).parts[-2:]).lower()) for name in names]
    return next((row for row in known_models() if any(row.pattern.search(name) for name in plain)), None)


def filled(settings: SamplingSettings, known: SamplingSettings) -> SamplingSettings:
    """What the user says, and of the rest what is known."""
    times_said = any(value is not None for value in (settings.steps, settings.times, settings.shift))
    clock = () if times_said else ("steps", "times", "shift")
    names = [name for name in (*clock, "guidance", "sampler") if getattr(settings, name) is None]
    return settings.model_copy(update={name: getattr(known, name) for name in names})
