"""Commands made from the fields of their settings: flags, help, a recipe file, and the checked values.

    @command(Recipe, RunOptions)
    def plan(given: Given, console: Console) -> None: ...

gives a function with a flag for every field, for typer to read (a command without such settings is made by
`loraport.cli.entry` alone). Nothing is said twice: type, default, help and
flag are those of the field (`loraport.settings.Setting`).
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic.fields import FieldInfo

from loraport.cli import options
from loraport.cli.entry import entry
from loraport.containers.names import named_path
from loraport.engine.recipe import METHOD, Recipe
from loraport.errors import LoraportError, UsageError, one_of
from loraport.settings import Setting, Settings, choices
from loraport.writable import with_settings

Model = TypeVar("Model", bound=Settings)
OF_A_LORA = ("scale", "expert", "adapter", "drop", "allow_partial", "architecture")
"""Settings of a recipe that say how a LoRA is read."""
_LORA = Recipe.part("lora")

_PRESET = Setting(
    "Method with settings chosen for it, such as released-code.", "--preset", panel=METHOD, metavar="NAME"
)
_SET = Setting(
    "Set one parameter of the method, such as casa.q_dom=0.5. May be repeated.",
    "--set", panel=METHOD, metavar="NAME=VALUE",
)  # fmt: skip
_FILE = Setting(
    "Read settings from a YAML file. They are named like the long flags, with _ for -. Flags override the file.",
    "--recipe", metavar="FILE",
)  # fmt: skip


@dataclass(frozen=True)
class Given:
    """The settings that a command was given: flags over the recipe file.

    Attributes:
        models: what the settings are of.
        values: by name of the field; what was not given is missing.
        loras: LoRA files to work on.
        file: the recipe file that some of them came from.
    """

    models: tuple[type[Settings], ...]
    values: Mapping[str, Any]
    loras: tuple[str, ...] = ()
    file: Path | None = None

    def read(self) -> Iterator[tuple[str, Path]]:
        """The recipe file and all the LoRAs, as (role, path): no output of the command may replace one of them."""
        if self.file is not None:
            yield "recipe", self.file
        for lora in self.loras:
            with contextlib.suppress(OSError, LoraportError):  # what cannot be looked at is refused when it is opened
                yield from with_settings("input LoRA", named_path(lora))

    def make(self, model: type[Model]) -> Model:
        """The settings of one kind, checked. Raises UsageError."""
        return model.model_validate({name: value for name, value in self.values.items() if name in model.model_fields})

    def checked(self) -> dict[str, Any]:
        """All settings by name, with defaults for those that were not given, checked. Raises UsageError."""
        return {name: value for model in self.models for name, value in self.make(model).values().items()}

    def recipe(self, lora: str) -> Recipe:
        """The recipe for one of the LoRAs. Raises UsageError."""
        return replace(self, values={**self.values, "lora": lora}).make(Recipe)


def command(
    *models: type[Settings], without: tuple[str, ...] = (), file: bool = False
) -> Callable[[Callable[..., None]], Any]:
    """Turn `function(given, console, ...)` into a command with a flag for every field of `models`.

    Args:
        models: where the settings are defined; where two have a field of one name, the flag is that of the later one.
            With `Recipe` among them the command takes LORA arguments.
        without: fields that the command has no use for.
        file: the settings may come from --recipe FILE, as they may where `Recipe` is among the models.
    """
    flags = list({flag.name: flag for model in models for flag in _flags_of(model, without)}.values())
    if Recipe in models:
        flags = [_parameter("loras", options.Loras), *flags]
    if file or Recipe in models:
        flags.append(_parameter("recipe", _option(Path, _FILE)))

    return lambda function: entry(function, flags, partial(_given, models))


def _flags_of(model: type[Settings], without: tuple[str, ...]) -> list[inspect.Parameter]:
    made = []
    for name, setting in model.described().items():
        field = model.model_fields[name]
        if setting.flags and name not in without:
            kind = list[str] if setting.many else _plain(field)
            made.append(_parameter(name, _option(kind, setting, field.default, choices(field.annotation))))
        elif model is Recipe and name == "params":
            made.append(_parameter("preset", _option(str, _PRESET)))
            made.append(_parameter("settings", _option(list[str], _SET)))
    return made


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    """The value is None where nothing was given, so that what was given is known."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _option(kind: Any, setting: Setting, default: Any = None, words: Sequence[str] = ()) -> Any:
    shown = setting.default
    if shown is None and kind is not bool and isinstance(default, str | int | float):
        shown = default if isinstance(default, str) else f"{default:g}"
    help = setting.help.replace("[", r"\[") + (rf" [dim]\[default: {shown}][/dim]" if shown else "")
    made = options.option(*setting.flags, help=help, metavar=setting.metavar, panel=setting.panel or None, words=words)
    return Annotated[kind | None, made]


def _plain(field: FieldInfo) -> Any:
    """What typer reads a value as: a switch, or text for the model to understand."""
    return bool if bool in (field.annotation, *get_args(field.annotation)) else str


def _given(models: tuple[type[Settings], ...], said: dict[str, Any]) -> Given:
    loras, file = said.pop("loras", None), said.pop("recipe", None)
    preset, settings = said.pop("preset", None), said.pop("settings", None)
    values = {name: value for name, value in said.items() if value is not None and value != []}
    if preset is not None:
        values["method"] = _preset_or(values.get("method"), preset)
    if settings:
        values["params"] = dict(map(parse_setting, settings))
    if file is not None:
        from loraport.cli.recipe_file import merged, read_recipe  # and YAML

        values = merged(read_recipe(file, models), values)
    if Recipe in models and not loras:
        if values.get("lora") is None:
            raise UsageError("no LoRA is given", fix="name one or more files, before or after the flags")
        loras = [Given(models, values).make(_LORA).values()["lora"]]
    return Given(models, values, tuple(loras or ()), file)


def _preset_or(method: str | None, preset: str) -> str:
    """The one name that --method and --preset amount to. Raises UsageError when they contradict each other."""
    from loraport.methods import registry

    found = registry.preset_of(preset)
    if found is None:
        raise UsageError(f"there is no preset named {preset!r}", fix=one_of(preset, registry.presets()))
    owner = found.method
    if method not in (None, owner):
        raise UsageError(
            f"the preset {preset} belongs to the method {owner}", values=f"--method {method}",
            fix=f"leave out --method, or use --method {owner}",
        )  # fmt: skip
    return preset


def parse_setting(text: str) -> tuple[str, str]:
    """Name and value of `name=value`. Raises UsageError."""
    name, _, value = (part.strip() for part in text.partition("="))
    if not name or not value:
        raise UsageError("cannot understand a setting", values=f"--set {text}", fix="--set casa.q_dom=0.5")
    return name, value
