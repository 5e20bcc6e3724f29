"""Methods and presets by name, and settings from text. Every module of this room is loaded; each names itself."""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from loraport import methods
from loraport.errors import UsageError, did_you_mean
from loraport.methods.base import METHODS, PRESETS, Params, Preset, TransferMethod

_modules = [module.name for module in pkgutil.walk_packages(methods.__path__, f"{methods.__name__}.")]
for _module in sorted(_modules, key=lambda name: (".baselines." in name, name)):  # the order of `names`
    importlib.import_module(_module)


def names() -> list[str]:
    """All method names, the baselines last."""
    return list(METHODS)


def get(name: str) -> TransferMethod:
    """The method of this name. Raises UsageError, with the nearest name, if there is none."""
    if name in METHODS:
        return METHODS[name]
    raise _unknown("method", name, list(METHODS))


def resolve(
    name: str, overrides: Mapping[str, str | bool | float | int] | None = None
) -> tuple[TransferMethod, Params]:
    """Method and parameters from the name of a method or preset and settings such as `{"casa.q_dom": "0.5"}`.

    A setting may be written with or without the method's name in front.

    Raises:
        UsageError: unknown name or setting, or a value that does not fit.
    """
    given = tuple((key, type(value), value) for key, value in (overrides or {}).items())
    try:
        return _resolved(name, METHODS.get(PRESETS[name].method if name in PRESETS else name), given)
    except TypeError:  # a value that cannot be remembered, and is refused
        return _resolved.__wrapped__(name, None, given)


@lru_cache(maxsize=128)  # a plan asks for the same ones at every layer
def _resolved(
    name: str, registered: TransferMethod | None, given: tuple[tuple[str, type, Any], ...]
) -> tuple[TransferMethod, Params]:
    """`resolve`, remembered for a name and its settings, as long as the method `registered` under it is that one."""
    overrides = {key: value for key, _, value in given}
    if name not in PRESETS and name not in METHODS:
        raise _unknown("method or preset", name, sorted({*PRESETS, *METHODS}))
    chosen = PRESETS.get(name, Preset(name, name, ""))
    method = get(chosen.method)
    values: dict[str, object] = dict(chosen.values)
    for key, value in overrides.items():
        owner, _, parameter = key.rpartition(".")
        if owner not in ("", method.name, name):
            raise UsageError(
                f"the setting {key} belongs to another method",
                values=f"the method is {method.name}",
                fix=f"--method {owner}" if owner in METHODS else None,
            )
        if parameter not in method.Params.model_fields:
            raise _unknown(f"setting of {method.name}", parameter, list(method.Params.model_fields))
        values[parameter] = value
    try:
        return method, method.Params.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(
            f"a setting of {method.name} does not fit: {'.'.join(str(part) for part in problem['loc'])}",
            values=f"{problem['input']!r}: {problem['msg']}",
            fix=f"loraport methods {method.name} says what its settings are",
        ) from error


def _unknown(kind: str, name: str, known: list[str]) -> UsageError:
    return UsageError(
        f"there is no {kind} named {name!r}",
        values=f"known: {', '.join(known)}",
        fix=did_you_mean(name, known) or "loraport methods lists them",
    )
