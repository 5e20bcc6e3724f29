"""Methods and presets by name, and settings from text. Each module of this room names its methods itself."""

import importlib
import pkgutil
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from loraport import methods
from loraport.errors import UsageError, one_of
from loraport.methods.base import METHODS, PRESETS, Params, Preset, TransferMethod
from loraport.settings import plainly

_STEPS = re.compile(r"_steps$|\.casa\.(?!method$)")  # mathematics, which brings torch along
_MODULES = sorted(
    (
        module.name
        for module in pkgutil.walk_packages(methods.__path__, f"{methods.__name__}.")
        if not _STEPS.search(module.name)
    ),
    key=lambda name: (".baselines." in name, name),  # the order of `names`
)


def names() -> list[str]:
    """All method names, the baselines last."""
    _load_all()
    own = [name for name, method in METHODS.items() if type(method).__module__ not in _MODULES]
    return [n for module in _MODULES for n, method in METHODS.items() if type(method).__module__ == module] + own


def presets() -> dict[str, Preset]:
    """All presets by name, in the order of their methods."""
    order = names()
    return dict(sorted(PRESETS.items(), key=lambda item: order.index(item[1].method)))


def preset_of(name: str) -> Preset | None:
    """The preset of this name, or None."""
    _load(name)
    return PRESETS.get(name)


def get(name: str) -> TransferMethod:
    """The method of this name. Raises UsageError, with the nearest name, if there is none."""
    _load(name)
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
    _load(name)
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
            _load(owner)
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
            values=f"{problem['input']!r}: {plainly(problem)}",
            fix=f"loraport methods {method.name} lists its settings",
        ) from error


def _load(name: str) -> None:
    """Have the method or preset of that name registered, if there is one.

    A method is in the file of its name, or in `method.py` in the folder of its name: so `plan` does not wait for what
    the others load. Where there is no such file, all are looked at.
    """
    if name in METHODS or name in PRESETS:
        return
    for likely in (name, methods.DEFAULT):  # most presets are of the default method
        stem = likely.replace("-", "_")
        for module in _MODULES:
            if module.endswith((f".{stem}", f".{stem}.method")):
                importlib.import_module(module)
        if name in METHODS or name in PRESETS:
            return
    _load_all()


def _load_all() -> None:
    for module in _MODULES:
        importlib.import_module(module)


def _unknown(kind: str, name: str, known: list[str]) -> UsageError:
    fix = f"{one_of(name, known)}; loraport methods explains them"
    return UsageError(f"there is no {kind} named {name!r}", fix=fix)
