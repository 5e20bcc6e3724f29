"""Model families as data: one yaml file each under `data/`, read into templates."""

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

ROLES = ("linear", "conv", "norm", "param")


@dataclass(frozen=True)
class Template:
    """One module of a family, with "<n>" for the block number.

    Args:
        name: canonical (original) path, e.g. "blocks.<n>.self_attn.q".
        spellings: path in every naming, keyed by naming; includes the canonical one.
        role: "linear", "conv", "norm", or "param" (a bare parameter without ".weight").
        shape: of the weight, in symbols ("width"), numbers, multiples ("6*width") or "_" for anything.
        optional: absent in some variants of the family.
    """

    name: str
    spellings: dict[str, str]
    role: str
    shape: tuple[str, ...]
    optional: bool

    @property
    def repeated(self) -> bool:
        """Whether there is one in every block."""
        return "<n>" in self.name


@dataclass(frozen=True)
class Family:
    """A family of models that share module names, whatever their size."""

    name: str
    title: str
    namings: tuple[str, ...]
    templates: dict[str, Template]
    aliases: dict[str, str]
    image_marker: str | None
    sizes: tuple[dict[str, Any], ...]
    variants: tuple[dict[str, Any], ...]

    def template_of(self, module: str) -> Template | None:
        """The template that a canonical module path is an instance of, or None."""
        return self.templates.get(re.sub(r"(?<=\.)\d+", "<n>", module, count=1)) or self.templates.get(module)

    def spell(self, module: str, naming: str) -> str:
        """A canonical module path in another naming. Raises KeyError for a module the family does not have."""
        template = self.template_of(module)
        if template is None:
            raise KeyError(module)
        return (
            template.spellings[naming].replace("<n>", block_of(module))
            if template.repeated
            else template.spellings[naming]
        )

    def modules(self, blocks: int) -> list[str]:
        """All canonical module paths of a model with that many blocks."""
        once = [t.name for t in self.templates.values() if not t.repeated]
        repeated = [t.name for t in self.templates.values() if t.repeated]
        return once + [name.replace("<n>", str(n)) for n in range(blocks) for name in repeated]


def block_of(module: str) -> str:
    """The block number of a canonical module path, as text; "" outside the blocks."""
    found = re.search(r"\.(\d+)\.", module)
    return found.group(1) if found else ""


@cache
def families() -> dict[str, Family]:
    """All families, by name: whatever yaml files lie in the data folder."""
    folder = resources.files("loraport.models") / "data"
    found = [_read(entry.read_text("utf-8")) for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return {family.name: family for family in sorted(found, key=lambda family: family.name)}


def _read(text: str) -> Family:
    data = yaml.safe_load(text)
    namings = tuple(data["spellings"])
    optional = data.get("optional", [])
    templates: dict[str, Template] = {}
    for role in ROLES:
        for *names, shape in data.get(role, []):
            name = names[0]
            if len(names) != len(namings):
                raise ValueError(f"{data['family']}: {name} has {len(names)} spellings, not {len(namings)}")
            if name in templates:
                raise ValueError(f"{data['family']}: {name} is defined twice")
            templates[name] = Template(
                name,
                dict(zip(namings, names, strict=True)),
                role,
                tuple(str(size) for size in shape),
                any(part in name.replace("<n>", "").split(".") for part in optional),
            )
    return Family(
        data["family"],
        data["title"],
        namings,
        templates,
        dict(data.get("aliases", {})),
        data.get("image_marker"),
        tuple(data.get("sizes", [])),
        tuple(data.get("variants", [])),
    )
