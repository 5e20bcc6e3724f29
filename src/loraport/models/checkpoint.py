"""Checkpoints: any layout and naming in, canonical parameter names out. Headers only; no tensor data is read."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from loraport.containers.locate import Located, locate
from loraport.containers.names import Expert
from loraport.containers.tensors import TensorRef, refusal
from loraport.errors import MismatchError, UnsupportedError, UsageError
from loraport.models.architecture import Architecture, Shape, detect, measure
from loraport.models.family import Family, families
from loraport.models.keymap import Resolved, family_keymap
from loraport.models.keys import key_rules
from loraport.models.placement import split, take_ref

SAMPLE = 200  # keys that are looked at to tell which families a model may be of


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Args:
        path: file or folder.
        architecture: what it is.
        naming: how its modules are spelled ("original", "diffusers", "fastvideo").
        prefix: what stands before every module path, e.g. "model.diffusion_model.".
        tensors: canonical parameter name (with ".weight") -> where it lies; of a fused weight, in which rows.
        unknown: raw keys that are no part of the architecture (extra layers, text encoders), in file order.
        nested: the nesting that was taken in a torch file, "" if none.
        notes: choices made on the way that the user should know.
    """

    path: Path
    architecture: Architecture
    naming: str
    prefix: str
    tensors: dict[str, TensorRef]
    unknown: tuple[str, ...]
    nested: str = ""
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Canonical modules that a model of this size should have and this file has not."""
        return self.architecture.missing

    @property
    def extra(self) -> dict[str, str]:
        """The keys of `unknown` by what they are called without prefixes and wrappers, to compare two files."""
        return {_bare(key, self.prefix): key for key in self.unknown}


@dataclass(frozen=True)
class _Reading:
    """One mapping of tensors, read as a model of one family."""

    family: Family
    tensors: dict[str, TensorRef]
    shapes: dict[str, Shape]
    unknown: tuple[str, ...]
    unsplit: dict[str, str]
    naming: str
    prefix: str


def open_checkpoint(spec: str | Path, *, nested: str | None = None, expert: Expert | None = None) -> Checkpoint:
    """Open a checkpoint by its headers.

    Args:
        spec: safetensors or torch file, diffusers folder (root or transformer), index, shard, or hub id.
        nested: which mapping of a torch file ("generator", "generator_ema"), or which expert's subfolder.
            Without it the moving average is taken where there is one, and `Checkpoint.notes` says so.
        expert: which expert of a folder that holds both of Wan2.2.

    Raises:
        FileError: missing, damaged or unsafe.
        MismatchError: it is a LoRA, or a model of no known family.
        UnsupportedError: a way of storing weights that is not read, such as nvfp4.
        UsageError: several mappings could be meant.
    """
    found = locate(spec, nested=nested, expert=expert)
    readings = {nest: _read(tensors) for nest, tensors in found.groups.items()}
    models = {nest: reading for nest, reading in readings.items() if reading is not None}
    if not models:
        raise _not_a_model(found)
    nest, notes = _choose(found, models, nested)
    reading = models[nest]
    _refuse_unreadable(found.path, reading.tensors)
    architecture = detect(reading.shapes, reading.family)
    if architecture.lookalike is not None:
        raise _not_a_model(found, architecture.title)
    return Checkpoint(
        found.path,
        architecture,
        reading.naming,
        reading.prefix,
        reading.tensors,
        reading.unknown,
        ".".join(nest),
        found.notes
        + notes
        + _additions(reading.family, reading.unknown)
        + _odd_shapes({**reading.unsplit, **architecture.misfits}),
    )


def _read(tensors: Mapping[str, TensorRef]) -> _Reading | None:
    for candidates in _likely(tensors):
        known = [reading for family in candidates if (reading := _read_as(family, tensors)) is not None]
        most = max((len(reading.tensors) for reading in known), default=0)
        tied = [reading for reading in known if len(reading.tensors) == most]
        if tied:
            return tied[0] if len(tied) == 1 else max(tied, key=_likeness)
    return None


def _likeness(reading: _Reading) -> tuple[tuple[bool, bool], float]:
    found = detect(reading.shapes, reading.family)
    return found.plausible, found.covered


def _likely(tensors: Mapping[str, TensorRef]) -> tuple[list[Family], list[Family]]:
    """The families that know about as much of a sample of the keys as the best of them does, and the others.

    Reading a large model as every family there is would take longer than reading its header.
    """
    rules = key_rules()
    paths = [rules.unwrap(key) for key in islice(tensors, 0, None, 1 + len(tensors) // SAMPLE)]
    found = {}
    for family in families().values():
        resolve = family_keymap(family.name).resolve
        found[family.name] = sum(bool(resolve(path) or resolve(path.rpartition(".")[0])) for path in paths)
    enough = max(found.values()) / 2
    first = [family for family in families().values() if found[family.name] >= max(enough, 1)]
    return first, [family for family in families().values() if family not in first]


@dataclass(frozen=True)
class _Hit:
    """A key of the file: what it names, and which of its parameters ("weight", "bias", "" for a bare one)."""

    key: str
    ref: TensorRef
    at: Resolved
    kind: str

    def name(self, module: str) -> str:
        return f"{module}.{self.kind}" if self.kind else module


def _read_as(family: Family, tensors: Mapping[str, TensorRef]) -> _Reading | None:
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
    if not any(template is not None and template.repeated and template.role == "linear" for template in known):
        return None
    namings = Counter(naming for hit in hits for naming in hit.at.namings)
    prefixes = Counter(hit.at.prefix for hit in hits)
    naming = max(family.namings, key=lambda name: namings[name])
    return _Reading(family, refs, shapes, tuple(unknown), unsplit, naming, prefixes.most_common(1)[0][0])


def _matched(family: Family, tensors: Mapping[str, TensorRef]) -> tuple[list[_Hit], list[str]]:
    """The keys that name parameters of the family, and those that name none."""
    keymap, rules = family_keymap(family.name), key_rules()
    hits: list[_Hit] = []
    unknown: list[str] = []
    for key, ref in tensors.items():
        path = rules.unwrap(key)
        module, _, kind = path.rpartition(".")
        whole = keymap.resolve(path)
        if whole is not None and not whole.flat and _role(family, whole.module) == "param":
            hits.append(_Hit(key, ref, whole, ""))
            continue
        hit = keymap.resolve(module) if kind in {"weight", "bias", "scale"} else None
        role = None if hit is None or hit.flat else _role(family, hit.module)
        if hit is None or role in {None, "param"} or (kind == "scale" and role != "norm"):
            unknown.append(key)
        else:
            hits.append(_Hit(key, ref, hit, "bias" if kind == "bias" else "weight"))
    return hits, unknown


def _role(family: Family, module: str) -> str | None:
    template = family.template_of(module)
    return None if template is None else template.role


def _odd_shapes(wrong: Mapping[str, str]) -> tuple[str, ...]:
    if not wrong:
        return ()
    name, why = next(iter(wrong.items()))
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (f"modules of an unexpected shape, which no LoRA can change here: {name} ({why}){more}",)


def _additions(family: Family, unknown: tuple[str, ...]) -> tuple[str, ...]:
    found = {title: sum(bool(has.search(key)) for key in unknown) for title, has in family.additions.items()}
    return tuple(
        f"the model has {title} ({count} tensors), which are left alone" for title, count in found.items() if count
    )


def _bare(key: str, prefix: str) -> str:
    return key_rules().unwrap(key).removeprefix(prefix)


def _choose(
    found: Located, models: Mapping[tuple[str, ...], _Reading], nested: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = {nest: ".".join(nest) for nest in models}
    if nested is not None and any(names.values()):
        wanted = [nest for nest, name in names.items() if name == nested] or [n for n in models if nested in n]
        if len(wanted) == 1:
            return wanted[0], ()
        raise UsageError(
            f"the file has no single model called {nested!r}", where=str(found.path), values=_listed(names.values())
        )
    ignored = nested is not None and found.path.name != nested
    notes = (f"the file holds one model only, so {nested!r} chose nothing",) if ignored else ()
    if len(models) == 1:
        return next(iter(models)), notes
    for preferred in key_rules().nests:
        wanted = [nest for nest in models if nest and nest[-1] == preferred]
        if len(wanted) == 1:
            others = [name for nest, name in names.items() if nest != wanted[0]]
            note = f"{names[wanted[0]]} was taken; the file also holds {_listed(others)} (choose with nested)"
            return wanted[0], (note,)
    raise UsageError(
        "the file holds several models; name the one that is meant",
        where=str(found.path),
        values=_listed(names.values()),
        fix=f"nested={next(iter(names.values()))}",
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name or "(top level)" for name in names)


def _refuse_unreadable(path: Path, tensors: Mapping[str, TensorRef]) -> None:
    for ref in tensors.values():
        reason = refusal(ref)
        if reason is not None:
            raise UnsupportedError(
                f"the checkpoint cannot be read: {reason}",
                where=str(path),
                values=f"{ref.key}, {ref.dtype} {list(ref.shape)}",
                fix="use the bf16, fp16 or fp32 copy of the model, or one in fp8 with scales",
            )


def _not_a_model(found: Located, title: str | None = None) -> MismatchError:
    keys = [key for group in found.groups.values() for key in group]
    rules = key_rules()
    for group in found.groups.values():
        _refuse_unreadable(found.path, {key: ref for key, ref in group.items() if ref.codec != "raw"})
    parts = [key for key in keys if rules.adapter_keys.search(key)]
    if parts:
        return MismatchError(
            "a checkpoint is needed here, but this file is a LoRA",
            where=str(found.path),
            values=f"{len(keys)} keys, e.g. {parts[0]}",
            fix="give the model's own weights (a distillation LoRA goes to --target-lora)",
        )
    title = (
        title
        or rules.kind_foreign(keys)
        or next((other for family in families().values() if (other := family.lookalike(keys))), None)
    )
    known = ", ".join(family.title for family in families().values())
    return MismatchError(
        f"this is {title}, which is not supported" if title else "this is no model of a known family",
        where=str(found.path),
        values=f"{len(keys)} tensors, e.g. {', '.join(keys[:3])}" if keys else "no tensors",
        fix=f"known families: {known}",
    )
