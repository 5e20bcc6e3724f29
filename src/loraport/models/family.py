"""Model families as data: one yaml file each under `data/`, read into templates."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from loraport.errors import FileError
from loraport.models.keys import read_yaml
from loraport.models.placement import Place

ROLES = ("linear", "conv", "norm", "embedding", "param")
OWN_FAMILIES = "LORAPORT_FAMILIES"  # environment variable: a folder of yaml files, or one file
RECOGNISED = "recognised.yaml"  # the file of families that are only recognised
MAX_BLOCKS = 512
"""Block numbers beyond this are no block numbers: a file cannot make tables of a billion blocks."""
REMEMBERED = 100_000  # names whose meaning a table keeps; the largest model known has some five thousand
_NUMBERS = {edge: re.compile(rf"(?<![^{edge}])(?:0|[1-9][0-9]{{0,3}})(?![^{edge}])") for edge in "._"}
_COUNTER = re.compile(r"<([a-z])>")
_PART = re.compile(r"(.+)\[([0-9]+(?:, ?[0-9]+)*)\]")


@dataclass(frozen=True)
class Template:
    """One module of a family, with "<n>" for the block number ("<r>" and so on for other kinds of blocks).

    Args:
        name: canonical path, e.g. "blocks.<n>.self_attn.q".
        places: where every naming keeps it.
        role: "linear", "conv", "norm", "embedding", or "param" (a bare parameter without ".weight").
        shape: of the weight, in symbols ("width"), numbers, multiples ("6*width") or "_" for anything; () where namings
            store it in different shapes.
        optional: absent in some variants of the family.
        group: layers that do the same in every block, for people ("self q/k"); "" for what belongs to none.
        counter: the letter of the block number, "" outside the blocks.
    """

    name: str
    places: dict[str, Place]
    role: str
    shape: tuple[str, ...]
    optional: bool
    group: str = ""
    counter: str = ""

    @property
    def repeated(self) -> bool:
        """Whether there is one in every block."""
        return self.counter != ""

    def of_block(self, number: int | str) -> str:
        """The canonical path in one block."""
        return self.name.replace(f"<{self.counter}>", str(number)) if self.counter else self.name


@dataclass(frozen=True)
class DiffusersClasses:
    """What diffusers calls the parts of a family that a LoRA needs; "" for what it does not have.

    Args:
        model: class of the network.
        pipeline: class of the pipeline.
        loader: class that takes a LoRA file for the pipeline, with `lora_state_dict`.
    """

    model: str = ""
    pipeline: str = ""
    loader: str = ""


@dataclass(frozen=True)
class Lookalike:
    """Another family with some of the same names, and how it is told apart.

    Args:
        title: for people.
        pattern: found in no key of this family.
        sizes: dimensions that no model of this family has together, e.g. {"width": 3072}.
    """

    title: str
    pattern: re.Pattern[str] | None
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Alike:
    """How a naming is told from another that has the same names and stores some weights in other rows.

    Args:
        keys: found in the keys of LoRAs of this naming; None where none are known.
        shards: whether a checkpoint in several files is of this naming.
    """

    keys: re.Pattern[str] | None
    shards: bool


@dataclass(frozen=True, eq=False)  # a family is itself, so that tables can be kept for it
class Family:
    """A family of models that share module names, whatever their size.

    Args:
        name: key of the family.
        title: for people.
        namings: the systematic ways to spell its modules; "original" first.
        templates: canonical name with "<n>" -> module.
        aliases: further spellings in LoRA files -> canonical name.
        counters: letter of a block number -> what such blocks are called in `Architecture.dimensions`.
        universal: the naming that ComfyUI reads, for the output profile universal.
        diffusers: its classes there.
        lookalikes: families that share names with this one.
        additions: what variants have besides, by title; it is left alone.
        image_marker: the part of a name that shows the image variant.
        sizes: names by dimensions.
        variants: whole titles by dimensions.
        usual: sizes in symbols where nothing shows them.
        alike: namings that share their names with another one.
        added: first parts of the names of what only variants have, beside the blocks of all.
        only_recognised: whether it is known for its name only, and files of it are refused by it.
        unnamed: whether it was made of one model of no known family: see `loraport.models.unnamed`.
    """

    name: str
    title: str
    namings: tuple[str, ...]
    templates: dict[str, Template]
    aliases: dict[str, str]
    counters: dict[str, str]
    universal: str
    diffusers: DiffusersClasses
    lookalikes: tuple[Lookalike, ...]
    additions: dict[str, re.Pattern[str]]
    image_marker: str | None
    sizes: tuple[dict[str, Any], ...]
    variants: tuple[dict[str, Any], ...]
    usual: dict[str, int] = field(default_factory=dict)
    alike: dict[str, Alike] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    only_recognised: bool = False
    unnamed: bool = False
    _patterns: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    _found: dict[str, tuple[Template, int | None] | None] = field(default_factory=dict, repr=False, compare=False)

    def find(self, module: str) -> tuple[Template, int | None] | None:
        """The template that a canonical module path is an instance of, with its block number; None if there is none."""
        if module not in self._found:
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            self._found[module] = self._find(module)
        return self._found[module]

    def _find(self, module: str) -> tuple[Template, int | None] | None:
        if module in self.templates:
            return self.templates[module], None
        for pattern, number in numbered(module, "."):
            name = self._patterns.get(pattern)
            if name is not None:
                return self.templates[name], number
        return None

    def template_of(self, module: str) -> Template | None:
        """The template that a canonical module path is an instance of, or None."""
        found = self.find(module)
        return None if found is None else found[0]

    def place(self, module: str, naming: str) -> Place:
        """Where a naming keeps a canonical module. Raises KeyError for a module the family does not have."""
        found = self.find(module)
        if found is None:
            raise KeyError(module)
        template, number = found
        place = template.places[naming]
        name = place.name if number is None else place.name.replace(f"<{template.counter}>", str(number))
        return replace(place, name=name)

    def spell(self, module: str, naming: str) -> str:
        """The path under which a naming keeps a canonical module, alone or with others in a fused weight.

        Raises:
            KeyError: the family does not have the module.
        """
        return self.place(module, naming).name

    def paths(self) -> set[str]:
        """Every dotted path of a stored module in any naming, the block number as "<>"."""
        spelled = {place.name for template in self.templates.values() for place in template.places.values()}
        return {_COUNTER.sub("<>", path) for path in spelled | self.aliases.keys()}

    def alike_of_key(self, key: str) -> str:
        """The naming that a LoRA's key shows to be meant, of those that share names with another; "" for none."""
        return next((naming for naming, how in self.alike.items() if how.keys and how.keys.search(key)), "")

    def alike_of_files(self, files: int) -> str:
        """The same of a checkpoint in so many files."""
        return next((naming for naming, how in self.alike.items() if how.shards and files > 1), "")

    def is_added(self, module: str) -> bool:
        """Whether only some variants have a canonical module, beside the blocks that all of them have."""
        return module.partition(".")[0] in self.added

    def modules(self, counts: Mapping[str, int]) -> list[str]:
        """All canonical module paths of a model.

        Args:
            counts: how many blocks of each kind it has, e.g. {"blocks": 30}; `Architecture.dimensions` will do.
        """
        found = [template.name for template in self.templates.values() if not template.repeated]
        for letter, called in self.counters.items():
            repeated = [template for template in self.templates.values() if template.counter == letter]
            found += [t.of_block(n) for n in range(min(counts.get(called, 0), MAX_BLOCKS)) for t in repeated]
        return found

    def lookalike(self, keys: Iterable[str] = (), dimensions: Mapping[str, int] | None = None) -> str | None:
        """The title of the other family that keys or dimensions betray, None where they are of this one."""
        told_by_names = [other for other in self.lookalikes if other.pattern is not None]
        for key in keys if told_by_names else ():
            for other in told_by_names:
                if other.pattern is not None and other.pattern.search(key):
                    return other.title
        known = dimensions or {}
        return next(
            (
                other.title
                for other in self.lookalikes
                if other.sizes and all(known.get(k) == v for k, v in other.sizes.items())
            ),
            None,
        )


def numbered(path: str, separator: str) -> Iterable[tuple[str, int]]:
    """A path with each of its numbers in turn written as "<>", and that number.

    Args:
        path: a module path.
        separator: what stands around a number in it, "." or "_".
    """
    for found in _NUMBERS[separator].finditer(path):
        number = int(found.group())
        if number < MAX_BLOCKS:
            yield path[: found.start()] + "<>" + path[found.end() :], number


def block_of(module: str) -> str:
    """The block number of a canonical module path, as text; "" outside the blocks."""
    found = re.search(r"\.(\d+)\.", module)
    return found.group(1) if found else ""


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
                "a family of that name is there already",
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


def _own_files() -> list[Path]:
    """The user's own yaml files: in `$LORAPORT_FAMILIES`, else in the operating system's place for settings."""
    chosen = os.environ.get(OWN_FAMILIES)
    try:
        if chosen:
            folder = Path(chosen).expanduser()
            return [folder] if folder.suffix == ".yaml" else sorted(folder.iterdir())
        import platformdirs

        folder = Path(platformdirs.user_config_dir("loraport", appauthor=False)) / "families"
        return sorted(folder.glob("*.yaml")) if folder.is_dir() else []
    except (OSError, RuntimeError, ValueError) as error:
        raise FileError(
            "the folder of families cannot be read",
            where=str(chosen),
            values=str(error),
            fix=f"name a folder of yaml files, or one such file, in {OWN_FAMILIES}; or unset it",
        ) from error


def _read_own(path: Path) -> Family:
    try:
        family = _read(read_yaml(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error, yaml.YAMLError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise FileError(
            "this describes no family of models",
            where=str(path),
            values=" ".join(said.split()),
            fix="docs/adding-an-architecture.md says what such a file holds",
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
    namings = tuple(data["spellings"])
    templates: dict[str, Template] = {}
    for role in ROLES:
        for *cells, shape in data.get(role, []):
            template = _template(data, namings, role, cells, shape)
            if template.name in templates:
                raise ValueError(f"{data['family']}: {template.name} is defined twice")
            templates[template.name] = template
    counters = {"n": "blocks", **data.get("counters", {})}
    used = {template.counter for template in templates.values()} - {""}
    if used - counters.keys():
        raise ValueError(f"{data['family']}: no name for the blocks counted by {sorted(used - counters.keys())}")
    return Family(
        data["family"],
        data["title"],
        namings,
        templates,
        dict(data.get("aliases", {})),
        {letter: called for letter, called in counters.items() if letter in used},
        data.get("universal", namings[0]),
        DiffusersClasses(**data.get("diffusers", {})),
        tuple(_lookalike(row) for row in data.get("lookalikes", [])),
        {title: re.compile(pattern) for title, pattern in data.get("additions", {}).items()},
        data.get("image_marker"),
        tuple(data.get("sizes", [])),
        tuple(data.get("variants", [])),
        dict(data.get("usual", {})),
        {naming: _alike(row) for naming, row in data.get("alike", {}).items()},
        tuple(data.get("added", [])),
        bool(data.get("only_recognised")),
        False,
        {_COUNTER.sub("<>", name): name for name, template in templates.items() if template.repeated},
    )


def _template(
    data: Mapping[str, Any], namings: tuple[str, ...], role: str, cells: list[str], shape: list[Any]
) -> Template:
    if len(cells) != len(namings):
        raise ValueError(f"{data['family']}: {cells[0]} has {len(cells)} spellings, not {len(namings)}")
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
    counter = _COUNTER.search(name)
    plain = _COUNTER.sub("", name)
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
