"""Checkpoints: any layout and naming in, canonical parameter names out. Headers only; no tensor data is read."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loraport.containers.locate import Located, locate
from loraport.containers.tensors import TensorRef, refusal
from loraport.errors import MismatchError, UnsupportedError, UsageError
from loraport.models.architecture import Architecture, Shape, detect
from loraport.models.family import Family, families
from loraport.models.keymap import Resolved, family_keymap
from loraport.models.keys import key_rules


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Args:
        path: file or folder.
        architecture: what it is.
        naming: how its modules are spelled ("original", "diffusers", "fastvideo").
        prefix: what stands before every module path, e.g. "model.diffusion_model.".
        tensors: canonical parameter name (original spelling, with ".weight") -> where it lies.
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


@dataclass(frozen=True)
class _Reading:
    """One mapping of tensors, read as a model of one family."""

    family: Family
    tensors: dict[str, TensorRef]
    shapes: dict[str, Shape]
    unknown: tuple[str, ...]
    naming: str
    prefix: str


def open_checkpoint(spec: str | Path, *, nested: str | None = None) -> Checkpoint:
    """Open a checkpoint by its headers.

    Args:
        spec: safetensors or torch file, diffusers folder (root or transformer), index, shard, or hub id.
        nested: which mapping of a torch file ("generator", "generator_ema"), or which expert's subfolder.
            Without it the moving average is taken where there is one, and `Checkpoint.notes` says so.

    Raises:
        FileError: missing, damaged or unsafe.
        MismatchError: it is a LoRA, or a model of no known family.
        UnsupportedError: a way of storing weights that is not read, such as nvfp4.
        UsageError: several mappings could be meant.
    """
    found = locate(spec, nested=nested)
    readings = {nest: _read(tensors) for nest, tensors in found.groups.items()}
    models = {nest: reading for nest, reading in readings.items() if reading is not None}
    if not models:
        raise _not_a_model(found)
    nest, notes = _choose(found, models, nested)
    reading = models[nest]
    _refuse_unreadable(found.path, reading.tensors)
    return Checkpoint(
        found.path,
        detect(reading.shapes, reading.family, str(found.path)),
        reading.naming,
        reading.prefix,
        reading.tensors,
        reading.unknown,
        ".".join(nest),
        found.notes + notes,
    )


def _read(tensors: Mapping[str, TensorRef]) -> _Reading | None:
    candidates = [_read_as(family, tensors) for family in families().values()]
    known = [reading for reading in candidates if reading is not None]
    return max(known, key=lambda reading: len(reading.tensors)) if known else None


def _read_as(family: Family, tensors: Mapping[str, TensorRef]) -> _Reading | None:
    keymap = family_keymap(family.name)
    rules = key_rules()
    refs: dict[str, TensorRef] = {}
    shapes: dict[str, Shape] = {}
    unknown: list[str] = []
    namings: Counter[str] = Counter()
    prefixes: Counter[str] = Counter()
    for key, ref in tensors.items():
        path = rules.unwrap(key)
        module, _, kind = path.rpartition(".")
        whole = keymap.resolve(path)
        hit: Resolved | None = whole if whole and _is_param(family, whole.module) else None
        if hit is None and kind in {"weight", "bias"}:
            hit = keymap.resolve(module)
            hit = hit if hit and not hit.flat and not _is_param(family, hit.module) else None
        if hit is None:
            unknown.append(key)
            continue
        name = hit.module if hit is whole else f"{hit.module}.{kind}"
        if name in refs:
            raise MismatchError(
                "the file holds the same weight twice under different names",
                where=str(ref.file),
                values=f"{refs[name].key} and {key}",
            )
        refs[name] = ref
        if hit is whole or kind == "weight":
            shapes[hit.module] = ref.shape
        namings.update(hit.namings)
        prefixes[hit.prefix] += 1
    if not any(family.template_of(name).repeated and family.template_of(name).role == "linear" for name in shapes):
        return None
    naming = max(family.namings, key=lambda name: namings[name])
    return _Reading(family, refs, shapes, tuple(unknown), naming, prefixes.most_common(1)[0][0])


def _is_param(family: Family, module: str) -> bool:
    template = family.template_of(module)
    return template is not None and template.role == "param"


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


def _not_a_model(found: Located) -> Exception:
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
    title = next((title for key in keys if (title := rules.kind_foreign(key))), None)
    known = ", ".join(family.title for family in families().values())
    return MismatchError(
        f"this is {title}, which is not supported" if title else "this is no model of a known family",
        where=str(found.path),
        values=f"{len(keys)} tensors, e.g. {', '.join(keys[:3])}" if keys else "no tensors",
        fix=f"known families: {known}",
    )
