"""Methods by name, presets, and parameters from text."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from loraport.errors import UsageError
from loraport.methods.base import Params, TransferMethod
from loraport.methods.casa.method import Casa
from loraport.methods.cluster_transport import ClusterTransport
from loraport.methods.cross_lora import CrossLora
from loraport.methods.direct import Direct
from loraport.methods.identity import Identity
from loraport.methods.masked_restore import MaskedRestore
from loraport.methods.matched_gain import MatchedGain
from loraport.methods.orthogonal_shift import OrthogonalShift
from loraport.methods.prolora import ProLora
from loraport.methods.revert import Revert
from loraport.methods.uniform_shrink import UniformShrink

_METHODS: dict[str, TransferMethod] = {
    method.name: method
    for method in (
        Casa(),
        Direct(),
        MatchedGain(),
        Identity(),
        Revert(),
        MaskedRestore(),
        UniformShrink(),
        OrthogonalShift(),
        ProLora(),
        CrossLora(),
        ClusterTransport(),
    )
}


@dataclass(frozen=True)
class Preset:
    """A method with some parameters set, and the output rank that belongs to it (None: the usual one)."""

    method: str
    summary: str
    values: Mapping[str, bool | float | str] = field(default_factory=dict)
    rank: int | None = None


PRESETS: dict[str, Preset] = {
    "casa": Preset("casa", "the paper's rules, 90 % energy on every layer, nothing arbitrary outside the thin basis"),
    "released-code": Preset(
        "casa",
        "the published code: energy cut on square layers only, arbitration also in a completed null space, rank 32",
        {"cut_nonsquare": False, "complete_basis": True},
        rank=32,
    ),
    "restore-only": Preset("casa", "casa without arbitration", {"arbitrate": False}),
    "arbitrate-only": Preset("casa", "casa without restoration", {"restore": False}),
    "full-restore": Preset("uniform-shrink", "undo all of the drift in the LoRA's layers", {"share": 1.0}),
    "random-mask": Preset("masked-restore", "undo as much drift as casa, away from random directions"),
    "reversed-mask": Preset(
        "masked-restore", "undo as much drift as casa, away from the weakest directions", {"mask": "reversed"}
    ),
}


def names() -> list[str]:
    """All method names."""
    return list(_METHODS)


def get(name: str) -> TransferMethod:
    """The method of this name. Raises UsageError, with the nearest name, if there is none."""
    if name in _METHODS:
        return _METHODS[name]
    raise _unknown("method", name, list(_METHODS))


def resolve(
    name: str, overrides: Mapping[str, str | bool | float | int] | None = None
) -> tuple[TransferMethod, Params]:
    """Method and parameters from the name of a method or preset and settings such as `{"casa.q_dom": "0.5"}`.

    A setting may be written with or without the method's name in front.

    Raises:
        UsageError: unknown name or setting, or a value that does not fit.
    """
    if name not in PRESETS and name not in _METHODS:
        raise _unknown("method or preset", name, sorted({*PRESETS, *_METHODS}))
    preset = PRESETS.get(name, Preset(name, ""))
    method = get(preset.method)
    values: dict[str, object] = dict(preset.values)
    for key, value in (overrides or {}).items():
        owner, _, parameter = key.rpartition(".")
        if owner not in ("", method.name, name):
            raise UsageError(
                f"the setting {key} belongs to another method",
                values=f"the method is {method.name}",
                fix=f"--method {owner}" if owner in _METHODS else None,
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
        ) from error


def _unknown(kind: str, name: str, known: list[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, n=1)
    return UsageError(
        f"there is no {kind} named {name!r}",
        values=f"known: {', '.join(known)}",
        fix=f"did you mean {near[0]!r}?" if near else None,
    )
