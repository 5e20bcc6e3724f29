"""Which model it is: detected from names and shapes, never from file names or free text."""

from collections.abc import Mapping
from dataclasses import dataclass

from loraport.errors import MismatchError
from loraport.models.family import Family, block_of

LayerName = str
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A model, or as much of one as its names and shapes tell.

    Args:
        family: the family's templates.
        title: for people, e.g. "Wan2.1 T2V 1.3B (30 blocks, width 1536)".
        layers: linear layers by canonical module path -> (out, in).
        modules: all known modules by canonical path -> shape of the weight (or of the parameter itself).
        dimensions: the family's symbols with their values, e.g. {"width": 1536, "ffn": 8960, "blocks": 30}.
    """

    family: Family
    title: str
    layers: dict[LayerName, tuple[int, int]]
    modules: dict[str, Shape]
    dimensions: dict[str, int]

    def role(self, module: str) -> str | None:
        """ "linear", "conv", "norm", "param", or None for a module the family does not have."""
        template = self.family.template_of(module)
        return None if template is None else template.role

    def shape_of(self, module: str) -> Shape | None:
        """Shape of a module: as found, else as its dimensions say, else None."""
        if module in self.modules:
            return self.modules[module]
        template = self.family.template_of(module)
        if template is None:
            return None
        sizes = [_size(symbol, self.dimensions) for symbol in template.shape]
        return None if None in sizes else tuple(size for size in sizes if size is not None)

    @property
    def missing(self) -> tuple[str, ...]:
        """Modules that every model of the family with that many blocks has, and this one has not."""
        expected = self.family.modules(self.dimensions.get("blocks", 0))
        return tuple(
            name for name in expected if name not in self.modules and not self.family.template_of(name).optional
        )


def detect(shapes: Mapping[str, Shape], family: Family, where: str | None = None) -> Architecture:
    """Work out dimensions and a title from the shapes of canonical modules (of the file `where`).

    Raises:
        MismatchError: shapes that contradict each other, such as two widths in one model.
    """
    dimensions: dict[str, int] = {}
    proof: dict[str, str] = {}
    layers: dict[LayerName, tuple[int, int]] = {}
    for module, shape in shapes.items():
        template = family.template_of(module)
        if template is None:
            continue
        if template.role == "linear":
            if len(shape) != 2:
                raise MismatchError(f"{module} is not a matrix", where=where, values=f"shape {list(shape)}")
            layers[module] = (shape[0], shape[1])
        _unify(module, shape, template.shape, dimensions, proof, where)
    blocks = [int(block_of(module)) for module in shapes if (known := family.template_of(module)) and known.repeated]
    dimensions["blocks"] = max(blocks) + 1 if blocks else 0
    return Architecture(family, _title(family, dimensions, shapes), layers, dict(shapes), dimensions)


def differing_shapes(first: Architecture, second: Architecture) -> dict[str, tuple[Shape, Shape]]:
    """Modules that both have, with different shapes."""
    return {
        name: (shape, second.modules[name])
        for name, shape in first.modules.items()
        if name in second.modules and second.modules[name] != shape
    }


def require_same_size(first: Architecture, second: Architecture, names: tuple[str, str] = ("source", "target")) -> None:
    """Raise MismatchError, in one sentence, unless the linear layers that both have agree in shape."""
    same_family = first.family.name == second.family.name
    differing = {n: s for n, s in differing_shapes(first, second).items() if n in first.layers}
    if same_family and not differing and first.layers.keys() & second.layers.keys():
        return
    values = None
    if differing:
        name, (left, right) = next(iter(differing.items()))
        values = f"{name} is {_by(left)} in the {names[0]} and {_by(right)} in the {names[1]}"
    raise MismatchError(
        f"The {names[0]} is {first.title}, the {names[1]} is {second.title}.",
        values=values,
        fix="both must be the same model, one distilled from the other",
    )


def _unify(
    module: str,
    shape: Shape,
    symbols: tuple[str, ...],
    dimensions: dict[str, int],
    proof: dict[str, str],
    where: str | None,
) -> None:
    if len(shape) != len(symbols):
        raise MismatchError(
            f"{module} has the wrong number of dimensions",
            where=where,
            values=f"shape {list(shape)}, expected {list(symbols)}",
        )
    for size, symbol in zip(shape, symbols, strict=True):
        factor, _, name = symbol.rpartition("*")
        if name == "_":
            continue
        if name.isdigit():
            expected = int(name)
        elif factor and name not in dimensions:
            continue  # a multiple proves nothing before the dimension itself is known
        else:
            proof.setdefault(name, module)
            expected = dimensions.setdefault(name, size) * int(factor or 1)
        if size != expected:
            raise MismatchError(
                f"the sizes contradict each other at {module}",
                where=where,
                values=f"shape {list(shape)}, but {name} is {expected} by {proof.get(name, 'definition')}",
            )


def _size(symbol: str, dimensions: Mapping[str, int]) -> int | None:
    factor, _, name = symbol.rpartition("*")
    if name.isdigit():
        return int(name)
    return dimensions[name] * int(factor or 1) if name in dimensions else None


def _title(family: Family, dimensions: dict[str, int], shapes: Mapping[str, Shape]) -> str:
    has_image = any(family.image_marker in name.split(".") for name in shapes)
    known = {**dimensions, "has_image": has_image}
    size = next((s for s in family.sizes if _agrees(s, known, exact=False) and "width" in known), None)
    whole = size is not None and "in_channels" in known
    known["size"] = size["name"] if size else "?"
    variant = next((v for v in family.variants if whole and _agrees(v, known, exact=True)), None)
    name = variant["title"] if variant else f"{family.title} {size['name']}" if size else family.title
    blocks = dimensions.get("blocks", 0)
    facts = [f"{blocks} block{'s' * (blocks != 1)}"] if blocks else []
    facts += [f"width {dimensions['width']}"] if "width" in dimensions else []
    return f"{name} ({', '.join(facts)})" if facts else name


def _agrees(wanted: Mapping[str, object], known: Mapping[str, object], *, exact: bool) -> bool:
    # A LoRA on some of the blocks shows fewer of them than the model has; never more.
    for key, value in wanted.items():
        if key in {"name", "title"}:
            continue
        if key not in known:
            if exact:
                return False
        elif not exact and key == "blocks" and isinstance(value, int):
            if int(str(known[key])) > value:
                return False
        elif known[key] != value:
            return False
    return True


def _by(shape: Shape) -> str:
    return " x ".join(str(size) for size in shape)
