"""What one setting is: its type, its default, its meaning, and how it is said on the command line. In one place.

A model of settings is a class whose fields are annotated with a `Setting`:

    class Options(Settings):
        workers: Annotated[int | None, Field(ge=1), Setting("Layers at a time.", "--workers", panel="Machine")] = None

It is checked however it is made (calling it, `model_copy(update=...)`, from a file, unpickling), does not change
afterwards, and every refusal is a `UsageError` that names the setting. Flags and help of the commands and the
signatures of the public functions are made from it (`loraport.cli.flags`, `tests/test_signatures.py`).
"""

import inspect
import os
import re
import textwrap
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    create_model,
    model_validator,
)

from loraport.arguments import shown
from loraport.errors import UsageError, one_of

Model = TypeVar("Model", bound="Settings")

PathText = Annotated[str, BeforeValidator(lambda given: os.fspath(given) if isinstance(given, os.PathLike) else given)]
"""A path, or a name that stands for one (`zoo:source`, a hub id); kept as text."""


class Setting:
    """How one field is explained and said.

    Args:
        help: what it does, in a sentence or two, for the help and the docstring alike.
        flags: on the command line, such as `--source` and `-s`; none for a field that has no flag of its own.
        panel: heading of the help under which it stands.
        metavar: what stands for its value; "" for a switch, which takes none.
        default: the default in words, where the value does not say it.
        path: whether the value names a file or folder.
        many: whether it may be said several times, each time a further value.
    """

    def __init__(
        self,
        help: str,
        *flags: str,
        panel: str = "",
        metavar: str = "",
        default: str | None = None,
        path: bool = False,
        many: bool = False,
    ):
        self.help, self.flags, self.panel, self.metavar = help, flags, panel, metavar
        self.default, self.path, self.many = default, path, many

    def in_python(self, name: str) -> str:
        """What a docstring says of the parameter called `name`. Flags are parameters there."""
        said = re.sub(r"--([a-z-]+)", lambda flag: f"`{flag[1].replace('-', '_')}`", self.help)
        if re.match(r"[A-Z][a-z]+[ ,]", said):  # no name, such as LoRA
            said = said[0].lower() + said[1:]
        return f"{name}: {'regular expression; ' if self.metavar == 'REGEX' else ''}{said}"


class Settings(BaseModel):
    """Base of all settings: frozen, and checked however they are made. Raises UsageError."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls) -> None:  # type: ignore[override]  # no class here is made with arguments
        """Let `help` show what the fields mean, and their types without what checks them."""
        lines = [
            setting.in_python(name) + (f" Default: {setting.default}." if setting.default else "")
            for name, setting in cls.described().items()
        ]
        filled = "\n".join(
            textwrap.fill(line, 120, initial_indent=" " * 4, subsequent_indent=" " * 8) for line in lines
        )
        if cls.__doc__ and lines:
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__)}\n\nArgs:\n{filled}"
        whole = inspect.signature(cls)
        plain = get_type_hints(SimpleNamespace(__annotations__={k: v.annotation for k, v in cls.model_fields.items()}))
        shown = [each.replace(annotation=plain[each.name]) for each in whole.parameters.values()]
        cls.__signature__ = whole.replace(parameters=shown)

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls: type[Model], given: Any, handler: Callable[[Any], Model]) -> Model:
        if isinstance(given, Mapping):
            _refuse_switches(cls, given)
        try:
            made = handler(given)
        except ValidationError as error:
            raise _refusal(cls, error) from error
        made.check()
        return made

    def check(self) -> None:
        """Refuse settings that do not go together. Raises UsageError."""

    @classmethod
    def part(cls, *names: str) -> "type[Settings]":
        """The model of some of the fields, for a command that needs no more. Cross-checks are left out."""
        fields: dict[str, Any] = {name: (cls.model_fields[name].annotation, cls.model_fields[name]) for name in names}
        return create_model(f"{cls.__name__}Part", __base__=Settings, **fields)

    @classmethod
    def described(cls) -> dict[str, Setting]:
        """The fields by name, each with its `Setting`, in the order of the class."""
        found = {}
        for name, field in cls.model_fields.items():
            for note in field.metadata:
                if isinstance(note, Setting):
                    found[name] = note
        return found

    def values(self) -> dict[str, Any]:
        """The fields by name, as they are."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def model_copy(self: Model, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Model:
        """The same with some values changed, and checked. (`deep` says nothing here: nothing can change.)"""
        return type(self).model_validate(self.values() | dict(update or {}))

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise UsageError(
            f"{type(self).__name__} cannot be changed once made",
            where=name,
            fix=f".model_copy(update={{{name!r}: ...}})",
        )

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _remade, (type(self), self.values())


def _remade(model: type[Model], values: dict[str, Any]) -> Model:
    return model.model_validate(values)


class FrozenDict(dict[str, Any]):
    """A dictionary that does not change, nor do the lists and dictionaries in it. It can be a key itself."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "FrozenDict":
        """A frozen copy."""
        return cls({name: _frozen(value) for name, value in values.items()})

    def _refuse(self, *arguments: Any) -> NoReturn:
        raise TypeError("the settings of a method do not change once they are part of a recipe")

    __setitem__ = __delitem__ = __ior__ = pop = popitem = setdefault = clear = _refuse
    update = _refuse  # type: ignore[assignment]  # dict's takes other arguments; this one refuses them all

    def __hash__(self) -> int:  # type: ignore[override]  # dict has none
        return hash(tuple(sorted(self.items())))

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return FrozenDict, (dict(self),)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenDict.of(value)
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def regular_expression(text: str | None) -> str | None:
    """A validator: `text` unless it is no regular expression."""
    if text is not None:
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {error}") from error
    return text


_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}b": size for unit, size in _UNITS.items() if unit not in ("", "b")}
_UNITS |= {f"{unit}ib": 1024**power for power, unit in enumerate("kmgt", start=1)}


def parse_size(given: str | int, *, name: str) -> int:
    """Bytes from `16GB`, `500 MB`, `2GiB` or a plain number. Raises UsageError that names the option."""
    match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([a-zA-Z]*)\s*", str(given))
    if match is None or match[2].lower() not in _UNITS:
        raise UsageError(f"{name} is not a size", values=str(given), fix="write, for example, 16GB, 500MB or 2GiB")
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    if size <= 0:
        raise UsageError(f"{name} must be greater than zero", values=str(given))
    return size


_WRONG = dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "it must be a whole number")
_WRONG |= dict.fromkeys(("float_parsing", "float_type", "finite_number"), "it must be a number")
_WRONG |= dict.fromkeys(("bool_type", "bool_parsing"), "it must be true or false")
_WRONG |= {
    "string_type": "it must be text",
    "dict_type": "it must be names with values",
    "literal_error": "it must be {expected}",
    "greater_than_equal": "it must be {ge:g} or more",
    "greater_than": "it must be more than {gt:g}",
    "less_than_equal": "it must be {le:g} or less",
    "less_than": "it must be less than {lt:g}",
}
"""What pydantic's kinds of errors say here."""


def _refusal(model: type[Settings], error: ValidationError) -> UsageError:
    """The first thing that is wrong, as a message for people."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    known = model.described()
    if first["type"] == "extra_forbidden":
        return unknown_setting(name, known)
    setting = known.get(name)
    if first["type"] == "missing":
        flag = f"{setting.flags[0]} {setting.metavar}" if setting is not None and setting.flags else name
        return UsageError(f"the {name} is not given", fix=f"{flag}: {setting.help}" if setting is not None else flag)
    said = f"{name} ({setting.flags[0]})" if setting is not None and setting.flags else name
    if first["type"] == "literal_error":
        words = choices(model.model_fields[name].annotation)
        return UsageError(
            f"bad setting {said}",
            values=shown(first["input"]),
            fix=one_of(str(first["input"]), words),
        )
    message = plainly(first)
    return UsageError(
        f"bad setting {said}: {message}" if name else message,
        values=shown(first["input"]),
        fix=setting.help if setting is not None else None,
    )


def plainly(error: Mapping[str, Any]) -> str:
    """What one of pydantic's errors says of a value, in a few words."""
    said = _WRONG.get(error["type"])
    return said.format(**error.get("ctx", {})) if said else str(error["msg"]).removeprefix("Value error, ")


def unknown_setting(name: str, known: Mapping[str, Setting], where: str | None = None) -> UsageError:
    """The refusal of a name that is none of a model's fields."""
    return UsageError(
        f"there is no setting named {name!r}",
        where=where,
        fix=one_of(name, known),
    )


def _refuse_switches(model: type[Settings], given: Mapping[str, Any]) -> None:
    """`strength: true` would be taken for 1: Python's truth values are numbers."""
    for name, value in given.items():
        field = model.model_fields.get(name)
        switch = any(isinstance(each, bool) for each in (value if isinstance(value, list | tuple) else [value]))
        if switch and field is not None and bool not in (field.annotation, *get_args(field.annotation)):
            setting = model.described().get(name)
            raise UsageError(
                f"bad setting {name}: it takes a value, not true or false",
                values=str(value).lower(),
                fix=setting.help if setting is not None else None,
            )


def choices(annotation: Any) -> list[str]:
    """The words that a value of a type, or each of several, can be; none where it is not one of a few."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    inner = get_args(annotation)
    if get_origin(annotation) in (tuple, Annotated):  # several of it; with notes on it
        return choices(inner[0])
    parts = [part for part in inner if part is not type(None)]
    return choices(parts[0]) if len(parts) == 1 < len(inner) else []
