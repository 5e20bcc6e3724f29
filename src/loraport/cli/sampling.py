"""How each of two models is sampled: the settings of one, with flags for each of the two, such as `--source-steps`."""

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import create_model

from loraport.cli.flags import Given
from loraport.sampling.schedule import SamplingSettings
from loraport.settings import Setting, Settings

_OF_ONE = ("steps", "times", "shift", "guidance", "sampler")  # said for each model; the rest for both


def _of(role: str, default: str | None = None) -> type[Settings]:
    """The settings of one model; `default`: what its defaults are, where they are none of the sampler's here."""
    fields: dict[str, Any] = {}
    for name in _OF_ONE:
        field = copy.copy(SamplingSettings.model_fields[name])
        field.metadata = [_said_of(role, name, note, default) for note in field.metadata]
        fields[f"{role}_{name}"] = (field.annotation, field)
    return create_model(f"{role.title()}Sampling", __base__=Settings, **fields)


def _said_of(role: str, name: str, note: Any, default: str | None) -> Any:
    if not isinstance(note, Setting):
        return note
    help = f"{role.title()}: {note.help[:1].lower()}{note.help[1:]}"
    default = note.default and (default or note.default)
    return Setting(help, f"--{role}-{name}", panel=note.panel, metavar=note.metavar, default=default)


ROLES = {role: _of(role) for role in ("source", "target")}
OF_PIPELINES = (
    _of("source", "the pipeline's own"),
    _of("target", "known by the model's name, else the pipeline's own"),
)
"""The same, where pipelines of diffusers sample."""


def sampling_of(given: Given, both: Mapping[str, Any] | None = None) -> dict[str, SamplingSettings]:
    """How the source and the target are sampled, as far as the flags say it.

    Args:
        given: by flags.
        both: further settings, of both.
    """
    found = {}
    for role, model in ROLES.items():
        own = {name.removeprefix(f"{role}_"): value for name, value in given.make(model).values().items()}
        found[role] = SamplingSettings(**own, **(both or {}))
    return found
