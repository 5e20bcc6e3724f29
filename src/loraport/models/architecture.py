"""Which model it is: detected from names and shapes, never from file names or free text."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from loraport.errors import MismatchError
from loraport.models.family import Family
from loraport.models.placement import size_of

LayerName = str
OR = " or "
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A model, or as much of one as its names and shapes tell.

    Args:
        family: the family's templates.
        title: for people, e.g. "Wan2.1 T2V 1.3B (30 blocks, width 1536)".
        layers: linear layers by canonical module path -> (out, in).
        modules: all known modules by canonical path -> shape of the weight (or of the parameter itself).
        dimensions: the family's symbols with their values, e.g. {"width": 1536, "ffn": 8960, "blocks": 30}; the
            number of blocks of every kind is among them.
        misfits: modules whose shape is not what the dimensions say -> what is wrong. They keep the shape they have.
        lookalike: the other family with the same names that this is, going by its dimensions; None if it is none.
        size: the size of the family that it is, e.g. "14B"; several, with "or" between them, where what is there does
            not tell; "" if it is none of the known ones.
    """

    family: Family = field(repr=False)
    title: str
    layers: dict[LayerName, tuple[int, int]] = field(repr=False)
    modules: dict[str, Shape] = field(repr=False)
    dimensions: dict[str, int]
    misfits: dict[str, str] = field(default_factory=dict)
    lookalike: str | None = None
    size: str = ""

    def role(self, module: str) -> str | None:
        """The role of a module in its family; None for one that the family does not have."""
        return self.family.role(module)

    def shape_of(self, module: str) -> Shape | None:
        """Shape of a module: as found, else as its dimensions say, else None."""
        if module in self.modules:
            return self.modules[module]
        template = self.family.template_of(module)
        if template is None or not template.shape:
            return None
        sizes = [size_of(symbol, self.dimensions) for symbol in template.shape]
        return None if None in sizes else tuple(size for size in sizes if size is not None)

    @property
    def expected(self) -> list[str]:
        """All modules that a model of the family with as many blocks may have, in order."""
        return self.family.modules(self.dimensions)

    @property
    def plausible(self) -> tuple[bool, bool, bool]:
        """Whether its sizes contradict neither each other nor the family, are those of a known model, and whether it
        has as many blocks as that one.

        Names of some layers are common to several families; the one whose sizes are right is it.
        """
        meant = [size for size in self.family.sizes if size["name"] in self.size.split(OR)]
        whole = any(_as_many_blocks(size, self.dimensions, self.family) for size in meant)
        return not self.misfits and self.lookalike is None, self.size != "", whole

    @property
    def covered(self) -> float:
        """The share of the family's modules that it has some of."""
        found = {template.name for name in self.modules if (template := self.family.template_of(name))}
        return len(found) / len(self.family.templates)

    @property
    def missing(self) -> tuple[str, ...]:
        """Modules that every model of the family with that many blocks has, and this one has not."""
        return tuple(
            name
            for name in self.expected
            if name not in self.modules and (known := self.family.template_of(name)) and not known.optional
        )


def detect(shapes: Mapping[str, Shape], family: Family) -> Architecture:
    """Work out dimensions and a title from the shapes of canonical modules.

    A dimension has the size that most modules give it. Modules that do not agree are no error here, because a part of
    a checkpoint that no layer of a LoRA needs cannot make it unreadable: they are in `Architecture.misfits`.
    """
    dimensions, proof = measure(shapes, family)
    layers: dict[LayerName, tuple[int, int]] = {}
    misfits: dict[str, str] = {}
    counts = dict.fromkeys(family.counters.values(), 0)
    for module, shape in shapes.items():
        found = family.find(module)
        if found is None:
            continue
        template, number = found
        if number is not None:
            called = family.counters[template.counter]
            counts[called] = max(counts[called], number + 1)
        if template.role == "linear" and len(shape) == 2:
            layers[module] = (shape[0], shape[1])
        wrong = _misfit(shape, template.shape, dimensions, proof)
        if wrong:
            misfits[module] = wrong
    dimensions |= counts
    dimensions.setdefault("blocks", 0)
    lookalike = family.lookalike(dimensions=dimensions)
    sizes = [s for s in family.sizes if "width" in dimensions and _agrees(s, dimensions, family)]
    sizes = [s for s in sizes if _as_many_blocks(s, dimensions, family)] or sizes
    size = OR.join(s["name"] for s in sizes)
    title = _title(family, dimensions, shapes, lookalike, size)
    return Architecture(family, title, layers, dict(shapes), dimensions, misfits, lookalike, size)


def measure(shapes: Mapping[str, Shape], family: Family) -> tuple[dict[str, int], dict[str, str]]:
    """The family's symbols as most modules have them, or as usual; and for each a module that has it so.

    Args:
        shapes: canonical module -> shape of its weight.
        family: the family.
    """
    votes: dict[str, Counter[int]] = {}
    first: dict[tuple[str, int], str] = {}
    for module, shape in shapes.items():
        template = family.template_of(module)
        if template is None or len(template.shape) != len(shape):
            continue
        for size, symbol in zip(shape, template.shape, strict=True):
            # A multiple proves nothing: "6*width" of the wrong width may still be a multiple of six.
            if symbol != "_" and "*" not in symbol and not symbol.isdigit():
                votes.setdefault(symbol, Counter())[size] += 1
                first.setdefault((symbol, size), module)
    dimensions = {symbol: sizes.most_common(1)[0][0] for symbol, sizes in votes.items()}
    proof = {symbol: first[symbol, size] for symbol, size in dimensions.items()}
    return {**family.usual, **dimensions}, proof


def differing_shapes(first: Architecture, second: Architecture) -> dict[str, tuple[Shape, Shape]]:
    """Modules that both have, with different shapes."""
    return {
        name: (shape, second.modules[name])
        for name, shape in first.modules.items()
        if name in second.modules and second.modules[name] != shape
    }


def require_same_size(source: Architecture, target: Architecture, where: str | None = None) -> None:
    """Raise MismatchError, in one sentence, unless the two are the same model as far as its blocks tell.

    What lies outside the blocks, and single layers of an odd shape, matter only where a LoRA changes them; they are
    compared with the LoRA.

    Args:
        source: one model.
        target: the other.
        where: their files, for the message.
    """
    odd = source.misfits.keys() | target.misfits.keys()
    differing = {
        name: sizes
        for name, sizes in differing_shapes(source, target).items()
        if name in source.layers and name not in odd and (t := source.family.template_of(name)) and t.repeated
    }
    if source.family.name == target.family.name and not differing and source.layers.keys() & target.layers.keys():
        return
    values = None
    if differing:
        name, (left, right) = next(iter(differing.items()))
        values = f"{name} is {by(left)} in the source and {by(right)} in the target"
    alike = source.title == target.title
    raise MismatchError(
        "The source and the target differ in size."
        if alike
        else f"The source is {source.title}, the target is {target.title}.",
        where=where,
        values=values,
        fix="both must be versions of one model, such as a base and what was distilled from it",
    )


def _misfit(
    shape: Shape, symbols: tuple[str, ...], dimensions: Mapping[str, int], proof: Mapping[str, str]
) -> str | None:
    """What is wrong with a shape, or None."""
    if symbols and len(shape) != len(symbols):
        return f"shape {list(shape)}, expected {len(symbols)} dimensions ({' x '.join(symbols)})"
    for size, symbol in zip(shape, symbols, strict=bool(symbols)):
        expected = size_of(symbol, dimensions)
        if expected is not None and size != expected:
            name = symbol.rpartition("*")[2]
            return f"shape {list(shape)}, but {symbol} is {expected} by {proof.get(name, 'definition')}"
    return None


def _title(
    family: Family,
    dimensions: dict[str, int],
    shapes: Mapping[str, Shape],
    lookalike: str | None,
    size: str,
) -> str:
    has_image = any(family.image_marker in name.split(".") for name in shapes)
    known: dict[str, object] = {**dimensions, "has_image": has_image}
    whole = size != "" and "in_channels" in known
    known["size"] = size
    variant = next((v for v in family.variants if whole and _agrees(v, known)), None)
    name = variant["title"] if variant else f"{family.title} {size}" if size else family.title
    blocks = dimensions.get("blocks", 0)
    facts = [f"{blocks} block{'s' * (blocks != 1)}"] if blocks else []
    facts += [f"width {dimensions['width']}"] if "width" in dimensions else []
    name = lookalike or name
    return f"{name} ({', '.join(facts)})" if facts else name


def _as_many_blocks(size: Mapping[str, object], dimensions: Mapping[str, int], family: Family) -> bool:
    """Whether there are as many blocks of each kind as a size has, those of which there are none aside."""
    return all(
        dimensions.get(called) in (0, size.get(called, 0)) or called not in size for called in family.counters.values()
    )


def _agrees(wanted: Mapping[str, object], known: Mapping[str, object], partly: Family | None = None) -> bool:
    """Whether dimensions are those of a row; of a file that shows only some of them, given its family, those it has."""
    for key, value in wanted.items():
        if key in {"name", "title"}:
            continue
        if key not in known:
            if partly is None:
                return False
        elif partly is not None and key in partly.counters.values() and isinstance(value, int):
            # A LoRA on some of the blocks shows fewer of them than the model has; never more.
            if int(str(known[key])) > value:
                return False
        elif known[key] != value:
            return False
    return True


def by(shape: Shape) -> str:
    """A shape in words: "24 x 48"."""
    return " x ".join(str(size) for size in shape)
