"""What is known of a family of models: its layers, their names in every naming, and how to tell it by its sizes."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from loraport.models.placement import Place

MAX_BLOCKS = 512
"""Block numbers beyond this are no block numbers: a file cannot make tables of a billion blocks."""
REMEMBERED = 100_000  # names whose meaning a table keeps; the largest model known has some five thousand
_NUMBERS = {edge: re.compile(rf"(?<![^{edge}])(?:0|[1-9][0-9]{{0,3}})(?![^{edge}])") for edge in "._"}
COUNTER = re.compile(r"<([a-z])>")


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
        pipeline: class of the pipeline that a prompt is enough for.
        image_pipeline: class of the one that is given an image besides, with which the clip begins.
        image_optional: whether both run with the same weights; else each has models of its own.
        loader: class that takes a LoRA file for the pipeline, with `lora_state_dict`.
        guidance: what its call takes the guidance scale as.
        output: canonical name of the last layer of the network, which makes what is predicted.
        fps: frames a second that its videos are made for.
    """

    model: str = ""
    pipeline: str = ""
    image_pipeline: str = ""
    image_optional: bool = False
    loader: str = ""
    guidance: str = "guidance_scale"
    output: str = ""
    fps: int = 16


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


@dataclass(frozen=True)
class Family:
    """A family of models that share module names, whatever their size.

    Args:
        name: key of the family.
        title: for people.
        namings: the systematic ways to spell its modules; "original" first.
        templates: canonical name with "<n>" -> module.
        universal: the naming that ComfyUI reads, for the output profile universal.
        aliases: further spellings in LoRA files -> canonical names of the modules that it holds, one or several.
        counters: letter of a block number -> what such blocks are called in `Architecture.dimensions`.
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
    universal: str
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    counters: dict[str, str] = field(default_factory=dict)
    diffusers: DiffusersClasses = DiffusersClasses()
    lookalikes: tuple[Lookalike, ...] = ()
    additions: dict[str, re.Pattern[str]] = field(default_factory=dict)
    image_marker: str | None = None
    sizes: tuple[dict[str, Any], ...] = ()
    variants: tuple[dict[str, Any], ...] = ()
    usual: dict[str, int] = field(default_factory=dict)
    alike: dict[str, Alike] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    only_recognised: bool = False
    unnamed: bool = False
    _found: dict[str, tuple[Template, int | None] | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __hash__(self) -> int:  # so that tables can be kept for it
        return hash(self.name)

    @cached_property
    def _patterns(self) -> dict[str, str]:
        """Canonical paths inside the blocks, the block number as "<>" -> the template's name."""
        return {COUNTER.sub("<>", name): name for name, template in self.templates.items() if template.repeated}

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

    def role(self, module: str) -> str | None:
        """The role of a canonical module, as in `Template`; None for one the family does not have."""
        template = self.template_of(module)
        return None if template is None else template.role

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
        return {COUNTER.sub("<>", path) for path in spelled | self.aliases.keys()}

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

    def lookalike(self, keys: Collection[str] = (), dimensions: Mapping[str, int] | None = None) -> str | None:
        """The title of the other family that keys or dimensions betray, None where they are of this one."""
        known = (dimensions or {}).items()
        for other in self.lookalikes:
            named = other.pattern is not None and any(map(other.pattern.search, keys))
            if named or (other.sizes and other.sizes.items() <= known):
                return other.title
        return None


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
