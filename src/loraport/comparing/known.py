"""How well-known distilled models are sampled (`adapters/distilled.yaml`), for those who do not say it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from loraport.adapters import distilled
from loraport.sampling.schedule import SamplingSettings


@dataclass(frozen=True)
class Known:
    """A distilled model.

    Attributes:
        name: for people.
        settings: how it is sampled.
        seen: who says so.
    """

    name: str
    settings: SamplingSettings
    seen: str


@cache
def known_models() -> tuple[Known, ...]:
    """All that a pipeline of diffusers can run, in the order in which they are tried."""
    return tuple(_known(row) for row in distilled.distilled_models() if not row.causal)


def known_model(names: Iterable[str | Path]) -> Known | None:
    """The model that one of the names (of a folder, a file, a repository) means; None where none is known."""
    found = distilled.known_model(names)
    return None if found is None or found.causal else _known(found)


def _known(row: distilled.Distilled) -> Known:
    settings = SamplingSettings(
        steps=row.steps,
        times=row.times or None,
        shift=row.shift,
        guidance=row.guidance,
        sampler=None if row.sampler == "euler" else row.sampler,
    )
    return Known(row.name, settings, row.seen)


def filled(settings: SamplingSettings, known: SamplingSettings) -> SamplingSettings:
    """What the user says, and of the rest what is known."""
    times_said = any(value is not None for value in (settings.steps, settings.times, settings.shift))
    clock = () if times_said else ("steps", "times", "shift")
    names = [name for name in (*clock, "guidance", "sampler") if getattr(settings, name) is None]
    return settings.model_copy(update={name: getattr(known, name) for name in names})
