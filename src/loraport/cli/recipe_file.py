"""Reading `--recipe FILE`: the settings of a command in YAML, by the names of the fields."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from loraport.engine.options import RunOptions
from loraport.errors import UsageError
from loraport.files import read_text
from loraport.settings import Setting, Settings, unknown_setting
from loraport.windows import is_drive

_LARGEST = 1 << 16  # bytes; a recipe has some twenty lines
_TARGETS = {"target", "target_lora"}
_LONGEST = 3000  # characters of one value; Python refuses to write numbers of more than 4300 digits


class _Loader(yaml.SafeLoader):
    """YAML without the same name twice, which YAML forbids and PyYAML lets pass, and without values of many pages."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if isinstance(node, yaml.ScalarNode) and len(node.value) > _LONGEST:
            raise yaml.YAMLError(f"a value of {len(node.value):,} characters")
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.YAMLError(f"{key.value} is given twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, takes 010 for 8, 1:30 for 90 and `no` for a switch; here numbers are decimal, and words
# other than true and false are words.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.rpartition(":")[2] not in ("bool", "int", "float")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def read_recipe(file: Path, models: tuple[type[Settings], ...], what: str = "recipe") -> dict[str, Any]:
    """The settings in a recipe file, by name of the field; their values are not checked yet.

    `~` is a home folder. A relative path means what lies there beside the recipe file; where nothing does, it means
    the same as on the command line (a hub id, `zoo:NAME`, or a path from the working folder).

    Args:
        file: the YAML file.
        models: whose fields may stand in it. `RunOptions` are of this machine, and no part of a recipe.
        what: the file is called in messages.

    Raises:
        FileError: it cannot be read. UsageError: it is no YAML, or has a name that is no setting.
    """
    text = read_text(file, what, most=_LARGEST)
    try:
        found = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"the {what} is not valid YAML", where=str(file), values=said[:300]) from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UsageError(
            f"the {what} is not a list of settings", where=str(file), fix="write lines such as  method: casa"
        )
    known: dict[str, Setting] = {}
    for model in models:
        known |= {name: it for name, it in model.described().items() if name not in RunOptions.model_fields}
    for name in found:
        if name in RunOptions.model_fields:
            flag = RunOptions.described()[name].flags[0]
            raise UsageError(
                f"{name} is about this machine, and does not belong in a {what}", where=str(file), fix=flag
            )
        if name not in known:
            raise unknown_setting(name, known, where=str(file))
    return {name: placed(value, known[name], file.parent) for name, value in found.items()}


def placed(value: Any, setting: Setting, folder: Path) -> Any:
    """A value of a file, with the place of what lies there beside the file."""
    if setting.many and isinstance(value, list):
        return [placed(each, setting, folder) for each in value]
    if setting.many and isinstance(value, dict) and "file" in value:
        return value | {"file": placed(value["file"], setting, folder)}
    if not setting.path or not isinstance(value, str):
        return value
    value = os.path.expanduser(value)  # no shell does it here
    name, rest = value, ""
    while name:  # FILE:STRENGTH
        if _is_there(folder / name):
            return f"{folder / name}{rest}"
        name, colon, tail = name.rpartition(":")
        if is_drive(name, tail):
            break
        rest = f"{colon}{tail}{rest}"
    return value


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that cannot be one is refused where it is opened
        return False


def merged(file: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """As `under`; another method than that of the file also takes the place of the settings of that method."""
    other = given.get("method", file.get("method")) != file.get("method")
    return under({name: value for name, value in file.items() if not (other and name == "params")}, given)


def under(file: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file under those that were given.

    A target that was given takes the place of either kind of target in the file; settings of the method are merged one
    by one.
    """
    gone = _TARGETS if _TARGETS & given.keys() else set()
    both = {name: value for name, value in file.items() if name not in gone} | dict(given)
    if isinstance(file.get("params"), Mapping) and "params" in given:
        both["params"] = {**file["params"], **given["params"]}
    return both
