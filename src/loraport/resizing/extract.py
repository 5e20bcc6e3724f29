"""The difference of two checkpoints as a LoRA."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from loraport.adapters.carried import check_passthrough
from loraport.adapters.dialect import profile_of
from loraport.adapters.passthrough import PassthroughValue
from loraport.adapters.pattern import dropping, nothing_dropped
from loraport.adapters.stored_weights import StoredWeight, stored_weights
from loraport.containers.names import Expert, as_text
from loraport.containers.references import TensorRef, common_dtype, file_identity, rounding_floor
from loraport.errors import MismatchError
from loraport.models.architecture import require_same_size
from loraport.models.checkpoint import AUTO, Checkpoint, open_checkpoint
from loraport.models.placement import Rows
from loraport.resizing.job import Matrix, WeightJob, peak_bytes
from loraport.resizing.task import Task
from loraport.version import __version__
from loraport.wording import count
from loraport.writable import with_settings

if TYPE_CHECKING:
    from torch import Tensor

    from loraport.engine.reading import InputReader

_WRITTEN = {"F32": "float32", "F64": "float32", "F16": "float16"}  # all else, 8 bits too, in bfloat16
_COARSE = 0.005  # rounding floor beyond which a weight is called quantised


@dataclass(frozen=True)
class Difference(Matrix):
    """Target minus source, of the layers that one weight holds.

    Args:
        pairs: of every layer its rows, its source and its target.
        rows: of the matrix.
        columns: of the matrix.
    """

    pairs: tuple[tuple[Rows, TensorRef, TensorRef], ...]
    rows: int
    columns: int

    held: ClassVar[bool] = True

    @property
    def rank(self) -> int:
        """At most."""
        return min(self.rows, self.columns)

    def refs(self) -> dict[str, TensorRef]:
        """Both weights of every layer."""
        found: dict[str, TensorRef] = {}
        for at, (_, source, target) in enumerate(self.pairs):
            found |= {f"source.{at}": source, f"target.{at}": target}
        return found

    def identity(self) -> dict[str, Any]:
        """How they are rounded before they are compared."""
        return {"difference": [common_dtype(source, target) for _, source, target in self.pairs]}

    def read(self, reader: "InputReader") -> "Tensor":
        """The matrix, (rows, columns) in float32. Raises NumericalError."""
        from loraport.models.joining import join  # where there is work; a refusal does without torch
        from loraport.resizing.difference import between

        parts = []
        for rows, source, target in self.pairs:
            change = between(reader.read(source), reader.read(target), common_dtype(source, target))
            parts.append((rows, change.reshape(len(change), -1)))
        return join(parts, self.rows)


@dataclass(frozen=True)
class PassthroughDifference(PassthroughValue):
    """The change of a parameter that is no linear layer's weight. `ref` is the target's, `own` the source's."""


def plan_extract(
    source: str | Path,
    target: str | Path,
    *,
    nested_source: str | None = None,
    nested_target: str | None = None,
    architecture: str = AUTO,
    expert: Expert | None = None,
    to: str = "universal",
    dtype: str = "same",
    drop: str | None = None,
) -> Task:
    """What it is to write what makes one checkpoint of another as a LoRA. Of large weights headers are read alone.

    Args:
        source: the checkpoint that the LoRA will be used on.
        target: the checkpoint that it makes of it.
        nested_source: part of the source to read.
        nested_target: part of the target to read.
        architecture: family of both; "auto" to recognise it.
        expert: which expert of Wan2.2, of folders that hold two.
        to: output profile.
        dtype: torch name of the factors' dtype; "same" for that of the target, bfloat16 where that has 8 bits.
        drop: regular expression; layers and parameters in whose names it is found are left out.

    Raises:
        MismatchError: the two are not of one model, or do not differ.
        UnsupportedError: the profile has no spelling for a change of a norm or the like.
        FileError: one of them cannot be read.
    """
    one = open_checkpoint(source, nested=nested_source, expert=expert, architecture=architecture)
    two = open_checkpoint(target, nested=nested_target, expert=expert, architecture=architecture, like=one)
    require_same_size(one.architecture, two.architecture, where=f"{one.path} and {two.path}")
    inputs = [pair for role, side in (("source", one), ("target", two)) for pair in _inputs(role, side)]
    family = one.architecture.family
    profile = profile_of(to).of(family)
    dropped = None if drop is None else dropping(drop)
    pairs = {
        param: (ref, other)
        for param, ref in one.tensors.items()
        if (other := two.tensors.get(param)) is not None and other.shape == ref.shape
        if dropped is None or not dropped.search(param)
    }
    if dropped is not None and not any(map(dropped.search, one.tensors)):
        raise nothing_dropped(dropped.pattern, str(one.path), next(iter(one.tensors)))
    layers = {
        name: shape
        for name, shape in one.architecture.layers.items()
        if f"{name}.weight" in pairs and one.architecture.role(name) == "linear"
    }
    others = {param: pair for param, pair in pairs.items() if param.removesuffix(".weight") not in layers}
    from loraport.resizing.difference import changed, strangers  # and torch: from here on numbers are looked at

    passthrough = tuple(changed(others))
    check_passthrough(passthrough, profile, family)
    weights = stored_weights(layers, profile.dialect.names, one.architecture)
    if not weights and not passthrough:
        raise MismatchError("the two checkpoints do not differ in anything that a LoRA can change", where=str(two.path))
    common = Counter(pairs[f"{name}.weight"][1].dtype for name in layers).most_common(1)
    return Task(
        what="extract",
        jobs=tuple(_job(weight, pairs) for weight in weights),
        passthrough=passthrough,
        architecture=one.architecture,
        to=to,
        dialect=None,
        dtype=_WRITTEN.get(common[0][0] if common else "F32", "bfloat16") if dtype == "same" else dtype,
        metadata=_metadata(one, two),
        warnings=(*_said(one, two, pairs), *strangers({name: pairs[f"{name}.weight"] for name in layers})),
        identities={file: file_identity(file) for _, file in inputs if file.suffix != ".json"},
        inputs=tuple(inputs),
    )


def _inputs(role: str, side: Checkpoint) -> Iterator[tuple[str, Path]]:
    for file in sorted({ref.file for ref in side.tensors.values()}):
        yield from with_settings(role, file)


def _job(weight: StoredWeight, pairs: Mapping[str, tuple[TensorRef, TensorRef]]) -> WeightJob:
    parts = tuple((rows, *pairs[f"{name}.weight"]) for name, rows in weight.places.items())
    matrix = Difference(parts, *weight.shape)
    return WeightJob(weight, matrix, weight.shape, None, peak_bytes(weight.shape, True))


def _metadata(source: Checkpoint, target: Checkpoint) -> dict[str, str]:
    title = re.sub(r"\.(safetensors|pt|pth|bin|ckpt|gguf|index\.json)$", "", as_text(target.path.name))
    return {
        "format": "pt",
        "ss_base_model_version": source.architecture.title,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": f"{title}, as a LoRA for {source.architecture.title}",
        "modelspec.implementation": "loraport",
        "loraport.version": __version__,
    }


def _said(source: Checkpoint, target: Checkpoint, pairs: Mapping[str, tuple[TensorRef, TensorRef]]) -> Iterator[str]:
    yield from source.notes
    yield from target.notes
    for role, side, other in (("source", source, target), ("target", target, source)):
        alone = [name for name in side.tensors if name not in other.tensors]
        alone += [key for name, key in side.extra.items() if name not in other.extra]
        if alone:
            yield (f"{count(len(alone), 'tensor', 'is/are')} only in the {role}, and cannot be in the LoRA: {alone[0]}")
    both = [name for name in source.tensors if name in target.tensors]
    shapes = [name for name in both if source.tensors[name].shape != target.tensors[name].shape]
    if shapes:
        yield f"{count(len(shapes), 'tensor')} with another shape in the target, left out: {shapes[0]}"
    largest = max(pairs, key=lambda name: prod(pairs[name][0].shape), default=None)
    if largest is not None:
        coarse = [ref for ref in pairs[largest] if rounding_floor(ref) > _COARSE]
        if coarse:
            yield (
                f"{coarse[0].file.name} is quantised ({coarse[0].stored_as}): its rounding is part of the "
                "difference and extracted with it; bf16 copies have less of it"
            )
