"""Reading `--grid FILE`: what `--recipe FILE` holds, where a setting may have a list of values."""

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraport.cli.recipe_file import placed, read_recipe, under
from loraport.errors import UsageError
from loraport.settings import unknown_setting
from loraport.sweeping.grid import Axes, Grid, Target, parts_of


def read_grid(file: Path) -> dict[str, Any]:
    """The settings in a grid file, by name of the field; their values are not checked yet. Paths as in `read_recipe`.

    Raises:
        FileError: it cannot be read. UsageError: it is no YAML, or has a name that is no setting.
    """
    found = read_recipe(file, (Grid,), "grid")
    folder = file.parent
    for name, model in (("target", Target), ("settings", Axes)):
        for table in _tables(found.get(name)):
            for inner in table:
                if inner not in model.model_fields:
                    raise unknown_setting(str(inner), model.described(), where=f"{file}, in {name}")
    if "target" in found:
        found["target"] = [_target(each, folder) for each in _listed(found["target"])]
    if "lora" in found:
        found["lora"] = [_pattern(each, folder) for each in _listed(found["lora"])]
    return found


def merged(file: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """As `recipe_file.under`; what was given also takes the place of settings in the alternatives of the file."""
    both = under(file, given)
    if isinstance(both.get("settings"), list):
        both["settings"] = [
            {name: value for name, value in each.items() if name not in given or name == "params"}
            if isinstance(each, Mapping)
            else each
            for each in both["settings"]
        ]
    return both


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _tables(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in _listed(value) if isinstance(each, Mapping)]


def _target(value: Any, folder: Path) -> Any:
    """A target, as text or as a table."""
    known = Target.described()
    if isinstance(value, str):
        model, *loras = parts_of(value)
        loras = [placed(each, known["target_lora"], folder) for each in loras]
        return " + ".join([placed(model, known["target"], folder) if model else "", *loras])
    if isinstance(value, Mapping):
        return {name: placed(each, known[name], folder) for name, each in value.items()}
    return value


def _pattern(value: Any, folder: Path) -> Any:
    if isinstance(value, str) and glob.has_magic(value):
        beside = str(Path(glob.escape(str(folder)), value))
        return beside if glob.glob(beside, recursive=True) else value
    if not isinstance(value, str):
        raise UsageError("a LoRA must be named by a file, a folder or a pattern", values=repr(value))
    return value
