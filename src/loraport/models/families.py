"""The families of models there are: yaml files under `data/`, and the user's own, read into templates."""

import os
import re
from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from loraport.errors import FileError
from loraport.models.family import COUNTER, Alike, DiffusersClasses, Family, Lookalike, Template
from loraport.models.keys import key_rules, read_yaml
from loraport.models.placement import Place

ROLES = ("linear", "conv", "norm", "embedding", "param")
OWN_FAMILIES = "LORAPORT_FAMILIES"  # environment variable: a folder of yaml files, or one file
RECOGNISED = "recognised.yaml"  # the file of families that are only recognised
_PART = re.compile(r"(.+)\[([0-9]+(?:, ?[0-9]+)*)\]")


@cache
def families() -> dict[str, Family]:
    """All families, by name: whatever yaml files lie in the data folder, and the user's own.

    Raises:
        FileError: one of the user's files cannot be read, is no description of a family, or has a name that is taken.
    """
    folder = resources.files("loraport.models") / "data"
    names = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml") and entry.name != RECOGNISED]
    found = [_read(read_yaml(entry.read_text("utf-8"))) for entry in names]
    known = {family.name: family for family in found}
    for path in _own_files():
        family = _read_own(path)
        if family.name in known:
            raise FileError(
                "a family of this name already exists",
                where=str(path),
                values=f"{family.name}, {known[family.name].title}",
                fix="give it another name in its first line",
            )
        known[family.name] = family
    return dict(sorted(known.items()))


@cache
def recognised() -> dict[str, Family]:
    """The families that are only recognised, by name: files of them are refused by their title."""
    text = (resources.files("loraport.models") / "data" / RECOGNISED).read_text("utf-8")
    found = [_read({**row, "only_recognised": True}) for row in read_yaml(text)["recognised"]]
    return {family.name: family for family in found if family.name not in families()}


def foreign(keys: Collection[str]) -> str | None:
    """The title of a model that no family here describes, as far as keys betray it."""
    told = (family.lookalike(keys) for family in families().values())
    return key_rules().kind_foreign(keys) or next(filter(None, told), None)


def _own_files() -> list[Path]:
    """The user's own yaml files: in `$LORAPORT_FAMILIES`, else in the operating system's place for settings."""
    chosen = os.environ.get(OWN_FAMILIES)
    path = Path(chosen) if chosen else _own_folder()
    try:
        if path is None or not (chosen or path.is_dir()):
            return []
        path = path.expanduser()
        return [path] if path.is_file() else _yaml_files(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise FileError(
            "the folder of families cannot be read",
            where=str(path),
            values=str(error),
            fix=f"name a folder of yaml files, or one such file, in {OWN_FAMILIES}; or unset it",
        ) from error


def _own_folder() -> Path | None:
    """None for a user without a home folder, as in a container that runs under any number."""
    import platformdirs

    try:
        return Path(platformdirs.user_config_dir("loraport", appauthor=False)) / "families"
    except (RuntimeError, KeyError):
        return None


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))


def _read_own(path: Path) -> Family:
    try:
        family = _read(read_yaml(path.read_text("utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, re.error, yaml.YAMLError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise FileError(
            "this does not describe a family of models",
            where=str(path),
            values=" ".join(said.split()),
            fix="see docs/adding-an-architecture.md for what such a file holds",
        ) from error
    lacking = {"original", "diffusers"} - set(family.namings)
    if lacking or not any(template.repeated and template.role == "linear" for template in family.templates.values()):
        raise FileError(
            "a family needs the spellings original and diffusers, and linear layers with <n> for the block",
            where=str(path),
            values=f"spellings: {', '.join(family.namings)}",
        )
    return family


def _read(data: Any) -> Family:
    namings = tuple(map(str, data["spellings"]))
    templates: dict[str, Template] = {}
    for role in ROLES:
        for *cells, shape in data.get(role, []):
            template = _template(data, namings, role, cells, shape)
            if template.name in templates:
                raise ValueError(f"{data['family']}: {template.name} is defined twice")
            templates[template.name] = template
    counters = {"n": "blocks", **data.get("counters", {})}
    aliases = {a: (held,) if isinstance(held, str) else tuple(held) for a, held in data.get("aliases", {}).items()}
    if nowhere := {name for held in aliases.values() for name in held} - templates.keys():
        raise ValueError(f"{data['family']}: aliases of modules that it does not have: {sorted(map(str, nowhere))}")
    used = {template.counter for template in templates.values()} - {""}
    if used - counters.keys():
        raise ValueError(f"{data['family']}: no name for the blocks counted by {sorted(used - counters.keys())}")
    return Family(
        name=data["family"],
        title=data["title"],
        namings=namings,
        templates=templates,
        aliases=aliases,
        counters={letter: str(called) for letter, called in counters.items() if letter in used},
        universal=data.get("universal", namings[0]),
        diffusers=DiffusersClasses(**data.get("diffusers", {})),
        lookalikes=tuple(_lookalike(row) for row in data.get("lookalikes", [])),
        additions={title: re.compile(pattern) for title, pattern in data.get("additions", {}).items()},
        image_marker=data.get("image_marker"),
        sizes=tuple({"name": row["name"], **row} for row in data.get("sizes", [])),
        variants=tuple({"title": row["title"], **row} for row in data.get("variants", [])),
        usual=dict(data.get("usual", {})),
        alike={naming: _alike(row) for naming, row in data.get("alike", {}).items()},
        added=tuple(data.get("added", [])),
        only_recognised=bool(data.get("only_recognised")),
    )


def _template(
    data: Mapping[str, Any], namings: tuple[str, ...], role: str, cells: list[str], shape: list[Any]
) -> Template:
    if len(cells) != len(namings):
        raise ValueError(f"{data['family']}: {cells[:1]} has {len(cells)} spellings, not {len(namings)}")
    permuted = data.get("permuted", {})
    places = {}
    for naming, cell in zip(namings, cells, strict=True):
        part = _PART.fullmatch(cell)
        name, pieces = (part.group(1), [int(piece) for piece in part.group(2).split(",")]) if part else (cell, [None])
        order = tuple(permuted.get(naming, {}).get(cell, ()))
        turn = str(data.get("in_turns", {}).get(naming, {}).get(name, ""))
        places[naming] = Place(name, pieces[0], order, tuple(piece for piece in pieces[1:] if piece is not None), turn)
    name = next((place.name for place in places.values() if place.index is None), None)
    if name is None:
        raise ValueError(f"{data['family']}: {cells[0]} is fused in every naming; write the fused module as one row")
    counter = COUNTER.search(name)
    plain = COUNTER.sub("", name)
    groups = {ending: group for group, endings in data.get("groups", {}).items() for ending in endings}
    return Template(
        name,
        places,
        role,
        tuple(str(size) for size in shape),
        any(part in plain.split(".") for part in data.get("optional", [])),
        next((group for ending, group in groups.items() if name == ending or name.endswith(f">.{ending}")), ""),
        counter.group(1) if counter else "",
    )


def _alike(row: Mapping[str, Any]) -> Alike:
    return Alike(re.compile(row["keys"]) if "keys" in row else None, bool(row.get("shards")))


def _lookalike(row: Mapping[str, Any]) -> Lookalike:
    sizes = {key: value for key, value in row.items() if key not in {"title", "pattern"}}
    return Lookalike(row["title"], re.compile(row["pattern"]) if "pattern" in row else None, sizes)
