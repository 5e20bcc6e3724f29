"""Checkpoints: any layout and naming in, canonical parameter names out. Headers only; no tensor data is read."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loraport.containers.locate import locate
from loraport.containers.names import Expert
from loraport.containers.references import TensorFile, TensorRef, refusal
from loraport.errors import MismatchError, UnsupportedError, UsageError, one_of
from loraport.models.architecture import Architecture, detect
from loraport.models.families import families, foreign
from loraport.models.family import Family
from loraport.models.keymap import keymap_of
from loraport.models.keys import key_rules
from loraport.models.reading import Reading, read_as, recognise
from loraport.models.unnamed import family_of
from loraport.wording import count

AUTO, ANY = "auto", "any"  # architectures: the one that is recognised, and none that is known


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
    tensors: dict[str, TensorRef] = field(repr=False)
    unknown: tuple[str, ...] = field(repr=False)
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


def open_checkpoint(
    spec: str | Path,
    *,
    nested: str | None = None,
    expert: Expert | None = None,
    architecture: str = AUTO,
    like: Checkpoint | None = None,
) -> Checkpoint:
    """Open a checkpoint by its headers.

    Args:
        spec: safetensors or torch file, diffusers folder (root or transformer), index, shard, or hub id.
        nested: which mapping of a torch file ("generator", "generator_ema"), or which expert's subfolder.
            Without it the moving average is taken where there is one, and `Checkpoint.notes` says so.
        expert: which expert of a folder that holds both of Wan2.2.
        architecture: "auto" to recognise the family; the name of a family to take the file for one of it; "any" for a
            model of no known family, whose layers are taken by the names they have in the file.
        like: another model that this one must have the layers of, where its family was not recognised.

    Raises:
        FileError: missing, damaged or unsafe.
        MismatchError: it is a LoRA, or a model of no known family.
        UnsupportedError: a way of storing weights that is not read, such as GPTQ.
        UsageError: several mappings could be meant; there is no such family.
    """
    check_architecture(architecture)
    found = locate(spec, nested=nested, expert=expert)
    readings = {nest: _read_for(architecture, like, tensors) for nest, tensors in found.groups.items()}
    models = {nest: reading for nest, reading in readings.items() if reading is not None}
    if not models:
        raise _not_a_model(found) if architecture == AUTO else _not_as_stated(found, architecture, like)
    nest, notes = _choose(found, models, nested)
    reading = models[nest]
    _refuse_unreadable(found.path, reading.tensors)
    is_a = detect(reading.shapes, reading.family)
    if is_a.lookalike is not None or reading.family.only_recognised:
        raise _not_a_model(found, is_a.title)
    return Checkpoint(
        found.path,
        is_a,
        reading.naming,
        reading.prefix,
        reading.tensors,
        reading.unknown,
        ".".join(nest),
        found.notes
        + notes
        + _alike(reading)
        + _additions(reading.family, reading.unknown)
        + _odd_shapes({**reading.unsplit, **is_a.misfits}),
    )


def check_architecture(architecture: str) -> None:
    """Raise UsageError unless it is "auto", "any" or the name of a family."""
    names = (AUTO, ANY, *families())
    if architecture not in names:
        raise UsageError("there is no architecture of that name", values=architecture, fix=one_of(architecture, names))


def _read_for(architecture: str, like: Checkpoint | None, tensors: Mapping[str, TensorRef]) -> Reading | None:
    if architecture == AUTO:
        return recognise(tensors)
    if architecture != ANY:
        return read_as(families()[architecture], tensors)
    family = like.architecture.family if like is not None else family_of(tensors)
    return None if family is None else read_as(family, tensors)


def _odd_shapes(wrong: Mapping[str, str]) -> tuple[str, ...]:
    if not wrong:
        return ()
    name, why = next(iter(wrong.items()))
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return (f"modules of an unexpected shape, which no LoRA can change here: {name} ({why}){more}",)


def _alike(reading: Reading) -> tuple[str, ...]:
    """What was taken for granted where files of two namings differ in nothing but the order of rows."""
    own = keymap_of(reading.family).alike
    if reading.naming not in (*own, reading.family.namings[0]) or not any(own.values()):
        return ()
    how = "in turns, head by head" if reading.naming in own else "one after the other"
    files = "several files" if reading.naming in own else "one file"
    return (
        f"query, key and value were assumed to be stored {how}, as in checkpoints of {reading.family.title} in "
        f"{files}; names and shapes do not tell",
    )


def _additions(family: Family, unknown: tuple[str, ...]) -> tuple[str, ...]:
    found = {title: sum(bool(has.search(key)) for key in unknown) for title, has in family.additions.items()}
    return tuple(
        f"the model has {title} ({count(number, 'tensor')}), which {'is' if number == 1 else 'are'} left alone"
        for title, number in found.items()
        if number
    )


def _bare(key: str, prefix: str) -> str:
    return key_rules().unwrap(key).removeprefix(prefix)


def _choose(
    found: TensorFile, models: Mapping[tuple[str, ...], Reading], nested: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = {nest: ".".join(nest) for nest in models}
    if nested is not None and any(names.values()):
        wanted = [nest for nest, name in names.items() if name == nested] or [n for n in models if nested in n]
        if len(wanted) == 1:
            return wanted[0], ()
        raise UsageError(
            f"the file has no single model named {nested!r}", where=str(found.path), values=_listed(names.values())
        )
    ignored = nested is not None and found.path.name != nested
    notes = (f"the file holds only one model, so {nested!r} selects nothing",) if ignored else ()
    if len(models) == 1:
        return next(iter(models)), notes
    for preferred in key_rules().nests:
        wanted = [nest for nest in models if nest and nest[-1] == preferred]
        if len(wanted) == 1:
            others = [name for nest, name in names.items() if nest != wanted[0]]
            note = f"using {names[wanted[0]]}; the file also holds {_listed(others)} (choose with nested)"
            return wanted[0], (note,)
    raise UsageError(
        "the file holds several models; choose one",
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
                fix="use a bf16, fp16 or fp32 copy of the model, or one in fp8 with scales",
            )


def _not_as_stated(found: TensorFile, architecture: str, like: Checkpoint | None) -> MismatchError:
    keys = [key for group in found.groups.values() for key in group]
    named = f"e.g. {', '.join(keys[:3])}"
    if architecture != ANY:
        return MismatchError(
            f"this is not {families()[architecture].title}",
            where=str(found.path),
            values=f"{count(len(keys), 'tensor')}, {named}",
            fix="leave --architecture out, or name another",
        )
    return MismatchError(
        "the two models have no layer of the same name"
        if like is not None
        else "this holds no weight matrix of a layer",
        where=str(found.path) if like is None else f"{like.path} and {found.path}",
        values=f"{count(len(keys), 'tensor')}, {named}",
        fix="with --architecture any, source, target and LoRA must name their layers alike",
    )


def _not_a_model(found: TensorFile, title: str | None = None) -> MismatchError:
    keys = [key for group in found.groups.values() for key in group]
    for group in found.groups.values():
        _refuse_unreadable(found.path, {key: ref for key, ref in group.items() if ref.codec != "raw"})
    parts = [key for key in keys if key_rules().adapter_keys.search(key)]
    if parts:
        return MismatchError(
            "a checkpoint is needed here, but this file is a LoRA",
            where=str(found.path),
            values=f"{count(len(keys), 'key')}, e.g. {parts[0]}",
            fix="give the model's own weights; transfer and check take a distillation LoRA beside its model, as "
            "--target-lora FILE",
        )
    title = title or foreign(keys)
    known = [family.title for family in families().values()]
    what = f"this is {title}, which is not supported" if title else "this is not a model of a known family"
    if title and set(known).intersection(re.split(", | or ", title)):
        what = f"this is {title} by some of its names, but cannot be read as such"
    return MismatchError(
        what,
        where=str(found.path),
        values=f"{count(len(keys), 'tensor')}, e.g. {', '.join(keys[:3])}" if keys else "no tensors",
        fix=f"use a known family ({', '.join(known)}), or --architecture any, which goes by names alone",
    )
