"""What a sweep is asked for: the fields of a recipe, of which some may have several values.

Nothing of a recipe is said twice here: the type, the help and the flag of each axis are those of `Recipe`, and what a
value means is checked there.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, create_model

from loraport.adapters.added_lora import AddedLora, added_loras
from loraport.containers.access import kind_of
from loraport.engine.recipe import METHOD, MODELS, Recipe
from loraport.errors import FileError, UsageError
from loraport.settings import PathText, Setting, Settings

AXES = ("method", "amount", "rank", "strength", "layers", "scale", "expert", "adapter", "drop", "to", "dtype")
"""Fields of a recipe that may have several values, in the order in which the names of outputs tell them."""
_OF = Recipe.described()
_PLUS = re.compile(r"(?:^|\s)\+\s")  # between a model and the LoRAs that are added to it


class Target(Settings):
    """One target of a sweep: a model, the LoRAs that are added to it (or to the source), or both. Raises UsageError."""

    name: Annotated[str | None, Setting("Name of the target in the names of outputs.", default="after its files")] = (
        None
    )
    target: Annotated[PathText | None, _OF["target"]] = None
    target_lora: Annotated[tuple[AddedLora, ...], BeforeValidator(added_loras), _OF["target_lora"]] = ()
    nested_target: Annotated[str | None, _OF["nested_target"]] = None

    def check(self) -> None:
        """Refuse a target that names nothing, and a name that is none of a folder. Raises UsageError."""
        if self.name is not None and not re.fullmatch(r"[\w.+@=-]*\w[\w.+@=-]*", self.name):
            raise UsageError(
                "the name of a target must be usable as the name of a folder",
                values=repr(self.name),
                fix="use letters, digits and any of . + @ = - _",
            )
        if self.target is None and not self.target_lora:
            raise UsageError("a target names neither a model nor a LoRA", fix="give target: MODEL or target_lora: FILE")

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> "Target":
        """Read `MODEL`, `MODEL + LORA:0.5` or `+ LORA` (the source with it). A file of the whole name is meant by it.

        Raises:
            UsageError: as `AddedLora.parse`.
        """
        model, *loras = parts_of(os.fspath(text))
        return cls(target=model or None, target_lora=tuple(AddedLora.parse(lora) for lora in loras))


def parts_of(text: str) -> list[str]:
    """The model of a target, "" for the source, and the LoRAs that are added to it."""
    try:
        if kind_of(Path(text)):
            return [text]
    except FileError:  # it is refused where it is opened
        return [text]
    return [part.strip() for part in _PLUS.split(text)]


def _listed(given: Any) -> list[Any]:
    """A validator: one value or several, at least one."""
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else [given]
    if not values:
        raise ValueError("an empty list leaves nothing to do")
    return values


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for at, value in enumerate(values):
        if value in values[:at]:
            raise ValueError(f"{value} is given twice")
    return values


def _targets(given: Any) -> list[Any]:
    found: list[Any] = []
    for each in _listed(given):
        if isinstance(each, str | os.PathLike):
            found.append(Target.parse(each))
        elif isinstance(each, Mapping | Target):
            found.append(each)
        else:
            raise ValueError(f"{each!r} is neither a model, such as fast.safetensors, nor a target with fields")
    return found


def _params(given: Any) -> Any:
    if not isinstance(given, Mapping):
        raise ValueError("give parameters of the method by name, such as {q_dom: [0.5, 0.6]}")
    return {name: _listed(value) for name, value in given.items()}


def _axis(name: str) -> tuple[Any, Any]:
    """A field of a recipe, with several values."""
    field, setting = Recipe.model_fields[name], _OF[name]
    notes = [note for note in field.metadata if not isinstance(note, Setting)]
    parts = (field.annotation, *notes)
    one: Any = Annotated[parts] if notes else field.annotation
    default = setting.default
    if default is None and isinstance(field.default, str | float):
        default = field.default if isinstance(field.default, str) else f"{field.default:g}"
    again = Setting(
        f"{setting.help} May be repeated.", *setting.flags, panel=setting.panel, metavar=setting.metavar,
        default=default, many=True,
    )  # fmt: skip
    return Annotated[tuple[one, ...], BeforeValidator(_listed), AfterValidator(_each_once), again], ()


_PARAMS = Annotated[
    dict[str, tuple[Any, ...]],
    BeforeValidator(_params),
    Setting("Parameters of the method, each with one value or several: {q_dom: [0.5, 0.6]}.", panel=METHOD),
]
Axes = create_model(
    "Axes",
    __base__=Settings,
    __doc__="Settings, each with one value or several. Raises UsageError.",
    **{name: _axis(name) for name in AXES},
    params=(_PARAMS, Field(default_factory=dict)),
)  # type: ignore[call-overload]  # fields by name, which mypy takes for other arguments


class Grid(Axes):  # type: ignore[valid-type,misc]  # made from the fields of a recipe
    """The settings of a sweep: LoRAs, targets and values to combine. Raises UsageError.

    The fields are those of `loraport.Recipe`. The fields in `AXES`, `target` and every parameter of the method may have
    several values; every combination is one cell. `settings` holds alternatives, each a grid of its own.
    """

    lora: Annotated[
        tuple[PathText, ...],
        BeforeValidator(_listed),
        Setting("LoRAs: files, folders, patterns such as loras/*.safetensors, zoo:NAME.", path=True, many=True),
    ] = ()
    source: Annotated[PathText, _OF["source"]]
    target: Annotated[
        tuple[Target, ...],
        BeforeValidator(_targets),
        Setting(
            "Target model. May be repeated. 'MODEL + LORA:0.5' adds a distillation LoRA to this model, "
            "'+ LORA' adds one to the source.",
            "--target", "-t", panel=MODELS, metavar="MODEL", path=True, many=True,
        ),
    ] = ()  # fmt: skip
    source_lora: Annotated[tuple[AddedLora, ...], BeforeValidator(added_loras), _OF["source_lora"]] = ()
    target_lora: Annotated[
        tuple[AddedLora, ...],
        BeforeValidator(added_loras),
        Setting(
            "Distillation LoRA added to every target, or to the source if no target is given. May be repeated; "
            "all of them are added.",
            "--target-lora", panel=MODELS, metavar="FILE[:STRENGTH]", path=True, many=True,
        ),
    ] = ()  # fmt: skip
    nested_source: Annotated[str | None, _OF["nested_source"]] = None
    nested_target: Annotated[str | None, _OF["nested_target"]] = None
    architecture: Annotated[str, _OF["architecture"]] = "auto"
    force: Annotated[bool, _OF["force"]] = False
    allow_partial: Annotated[bool, _OF["allow_partial"]] = False
    settings: Annotated[
        tuple[Axes, ...],  # type: ignore[valid-type]
        BeforeValidator(_listed),
        Setting("Alternatives: tables of settings. Each is a grid of its own and overrides what stands beside them."),
    ] = ()

    def check(self) -> None:
        """Refuse a grid without a target. Raises UsageError."""
        if not self.target and not self.target_lora and not self.source_lora:
            raise UsageError(
                "no target is given",
                fix="give target checkpoints (--target, which may be repeated) or distillation LoRAs for the "
                "source (--target-lora)",
            )

    @classmethod
    def described(cls) -> dict[str, Setting]:
        """As `Settings.described`, in the order of a recipe."""
        found = super().described()
        return {name: found[name] for name in dict.fromkeys([*_OF, *found])}

    @property
    def targets(self) -> tuple[dict[str, Any], ...]:
        """What each target is, by the fields of a recipe."""
        given = self.target or (None,)
        return tuple(
            {
                "target": None if each is None else each.target,
                "target_lora": self.target_lora if each is None else (*each.target_lora, *self.target_lora),
                "nested_target": (None if each is None else each.nested_target) or self.nested_target,
            }
            for each in given
        )
