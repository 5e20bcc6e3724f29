"""What a mapping of tensors is as a model: of which family, which key is which parameter, in which rows."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from loraport.containers.references import TensorRef
from loraport.errors import MismatchError
from loraport.models.architecture import Shape, detect, measure
from loraport.models.families import families, recognised
from loraport.models.family import Family
from loraport.models.keymap import Resolved, keymap_of, known_to
from loraport.models.keys import key_rules
from loraport.models.placement import split, take_ref

SAMPLE = 200  # keys that are looked at to tell which families a model may be of
CLEARLY = 0.2  # a share of a family's modules by which one of two families is clearly the one


@dataclass(frozen=True)
class Reading:
    """One mapping of tensors, read as a model of one family.

    Args:
        family: which.
        tensors: canonical parameter name -> where it lies.
        shapes: canonical module -> shape.
        unknown: keys that are no part of the family.
        unsplit: keys of fused weights that their modules cannot share -> why.
        naming: how most modules are spelled.
        prefix: what stands before most of them.
    """

    family: Family
    tensors: dict[str, TensorRef]
    shapes: dict[str, Shape]
    unknown: tuple[str, ...]
    unsplit: dict[str, str]
    naming: str
    prefix: str


def recognise(tensors: Mapping[str, TensorRef]) -> Reading | None:
    """The file as a model of the family that knows most of it; one that is only recognised where sizes say so."""
    known = _known(tensors)
    found = _best(tensors, [family for family in families().values() if known[family.name]], known)
    most = max(known.values(), default=0)
    for family in recognised().values():
        # Few of its names are written down, so it may know less of the file than a family with the same layers.
        other = read_as(family, tensors) if known[family.name] >= max(1, most / 2) else None
        if other is not None and (found is None or _more_like(other, found)):
            found = other
    return found


def _best(tensors: Mapping[str, TensorRef], candidates: list[Family], known: Mapping[str, int]) -> Reading | None:
    # Reading a large model as every family there is would take longer than reading its header.
    enough = max((known[family.name] for family in candidates), default=0) / 2
    first = [family for family in candidates if known[family.name] >= enough]
    for some in (first, [family for family in candidates if family not in first]):
        readings = [reading for family in some if (reading := read_as(family, tensors)) is not None]
        most = max((len(reading.tensors) for reading in readings), default=0)
        tied = [reading for reading in readings if len(reading.tensors) == most]
        if tied:
            return tied[0] if len(tied) == 1 else max(tied, key=_likeness)
    return None


def _likeness(reading: Reading) -> tuple[tuple[bool, bool, bool], float]:
    found = detect(reading.shapes, reading.family)
    return found.plausible, found.covered


def _more_like(reading: Reading, other: Reading) -> bool:
    """Whether a file has as many linear layers in one reading as in another, and fits it better."""
    one, two = (detect(each.shapes, each.family) for each in (reading, other))
    if one.plausible != two.plausible:
        return one.plausible > two.plausible and len(one.layers) >= len(two.layers)
    return len(one.layers) > 2 * len(two.layers) or (
        len(one.layers) >= len(two.layers) and one.covered > two.covered + CLEARLY
    )


def _known(tensors: Mapping[str, TensorRef]) -> Counter[str]:
    """How much of a sample of the keys every family knows."""
    unwrap = key_rules().unwrap
    known: Counter[str] = Counter()
    for key in islice(tensors, 0, None, 1 + len(tensors) // SAMPLE):
        path = unwrap(key)
        known.update(known_to(path) | known_to(path.rpartition(".")[0]))
    return known


@dataclass(frozen=True)
class _Hit:
    """A key of the file: what it names, and which of its parameters ("weight", "bias", "" for a bare one)."""

    key: str
    ref: TensorRef
    at: Resolved
    kind: str

    def name(self, module: str) -> str:
        return f"{module}.{self.kind}" if self.kind else module


def read_as(family: Family, tensors: Mapping[str, TensorRef]) -> Reading | None:
    """The file as a model of a family; None where it has none of its blocks, or is betrayed to be of another.

    Raises:
        MismatchError: it holds one weight under two names.
    """
    if family.lookalike(tensors) is not None:
        return None
    hits, unknown = _matched(family, tensors)
    whole = {hit.at.module: hit.ref.shape for hit in hits if hit.at.whole and hit.kind != "bias"}
    sizes, _ = measure(whole, family)
    refs: dict[str, TensorRef] = {}
    shapes: dict[str, Shape] = {}
    unsplit: dict[str, str] = {}
    for hit in hits:
        rows = split(hit.at.parts, hit.ref.shape[0], sizes) if hit.ref.shape and not hit.at.whole else None
        if rows is None and not hit.at.whole:
            unsplit[hit.key] = f"shape {list(hit.ref.shape)}, which {len(hit.at.parts)} modules cannot share"
            unknown.append(hit.key)
            continue
        for module in dict.fromkeys(part.module for part in hit.at.parts):
            name = hit.name(module)
            if name in refs:
                raise MismatchError(
                    "the file holds the same weight twice under different names",
                    where=str(hit.ref.file),
                    values=f"{refs[name].key} and {hit.key}",
                )
            refs[name] = hit.ref if rows is None else take_ref(hit.ref, rows[module])
            if hit.kind != "bias":
                shapes[module] = refs[name].shape
    known = [family.template_of(name) for name in shapes]
    linear = [template for template in known if template is not None and template.role == "linear"]
    if not any(template.repeated or family.unnamed for template in linear):
        return None
    namings = Counter(naming for hit in hits for naming in hit.at.namings)
    prefixes = Counter(hit.at.prefix for hit in hits)
    naming = max(family.namings, key=lambda name: namings[name])
    return Reading(family, refs, shapes, tuple(unknown), unsplit, naming, prefixes.most_common(1)[0][0])


def _matched(family: Family, tensors: Mapping[str, TensorRef]) -> tuple[list[_Hit], list[str]]:
    """The keys that name parameters of the family, and those that name none."""
    keymap, rules = keymap_of(family), key_rules()
    # GGUF files are made of single files, and split later.
    files = {ref.file for ref in tensors.values() if ref.file.suffix != ".gguf"} if family.alike else set()
    naming = family.alike_of_files(len(files))
    hits: list[_Hit] = []
    unknown: list[str] = []
    for key, ref in tensors.items():
        path = rules.unwrap(key)
        module, _, kind = path.rpartition(".")
        whole = keymap.resolve(path, naming)
        if whole is not None and not whole.flat and family.role(whole.module) == "param":
            hits.append(_Hit(key, ref, whole, ""))
            continue
        hit = keymap.resolve(module, naming) if kind in {"weight", "bias", "scale"} else None
        role = None if hit is None or hit.flat else family.role(hit.module)
        if hit is None or role in {None, "param"} or (kind == "scale" and role != "norm"):
            unknown.append(key)
        else:
            hits.append(_Hit(key, ref, hit, "bias" if kind == "bias" else "weight"))
    return hits, unknown
