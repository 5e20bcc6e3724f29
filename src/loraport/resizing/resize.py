"""A LoRA of any kind at another rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraport.adapters.adapter import LoraAdapter, check_dropped
from loraport.adapters.carried import check_passthrough
from loraport.adapters.dialect import profile_of
from loraport.adapters.header import converted_metadata
from loraport.adapters.parse import open_adapter
from loraport.adapters.shared_names import check_one_meant
from loraport.adapters.stored_weights import StoredWeight, stored_weights
from loraport.adapters.update import LayerUpdate
from loraport.containers.dtypes import written_as
from loraport.containers.names import Expert
from loraport.containers.references import TensorRef, file_identity
from loraport.models.checkpoint import AUTO, open_checkpoint
from loraport.models.placement import Rows
from loraport.resizing.job import Matrix, WeightJob, peak_bytes
from loraport.resizing.task import Task
from loraport.writable import with_settings

if TYPE_CHECKING:
    from torch import Tensor

    from loraport.core.lowrank import LowRank
    from loraport.engine.reading import InputReader


@dataclass(frozen=True)
class JoinedUpdates(Matrix):
    """The updates of the layers of one weight, as one matrix.

    Args:
        updates: each with its rows.
        rows: of the matrix.
    """

    updates: tuple[tuple[Rows, LayerUpdate], ...]
    rows: int

    @property
    def rank(self) -> int:
        """At most."""
        return sum(update.rank for _, update in self.updates)

    def refs(self) -> dict[str, TensorRef]:
        """Every tensor of the LoRA, and of its model where that counts."""
        return {f"{at}.{role}": ref for at, (_, update) in enumerate(self.updates) for role, ref in update.refs.items()}

    def identity(self) -> dict[str, Any]:
        """Kinds, scales and settings."""
        told = [[each.kind, each.scale, each.rows, dict(each.settings)] for _, each in self.updates]
        return {"updates": told}

    def read(self, reader: "InputReader") -> "LowRank | Tensor":
        """The matrix as factors. Raises NumericalError."""
        from loraport.core.lowrank import LowRank  # where there is work; a plan does without torch
        from loraport.models.joining import join_factors

        loaded = [(rows, reader.load(update)) for rows, update in self.updates]
        return LowRank(*join_factors([(rows, each.B, each.A) for rows, each in loaded], self.rows))


def plan_resize(
    path: str | Path,
    *,
    to: str = "same-as-input",
    dtype: str = "same",
    model: str | Path | None = None,
    expert: Expert | None = None,
    adapter: str | None = None,
    drop: str | None = None,
    allow_partial: bool = False,
    scale: float | None = None,
    architecture: str = AUTO,
) -> Task:
    """What it is to write a LoRA at another rank, by headers alone.

    Args:
        path: the LoRA.
        to: output profile.
        dtype: torch name of the factors' dtype; "same" for that of the input.
        model: the model it must fit; needed for kinds that are functions of the weights they were trained on.
        expert: as for `open_adapter`.
        adapter: the same.
        drop: the same.
        allow_partial: the same.
        scale: the same.
        architecture: the same.

    Raises:
        LoraportError: as `open_adapter`; UnsupportedError for what the profile has no spelling for.
    """
    known = None if model is None else open_checkpoint(model, expert=expert, architecture=architecture)
    lora = open_adapter(
        path,
        known,
        role="model",
        expert=expert,
        adapter=adapter,
        drop=drop,
        allow_partial=allow_partial,
        scale=scale,
        architecture=architecture,
    )
    check_dropped(drop, [lora])
    lora.check_weights()
    check_one_meant(lora, to)
    family = (known or lora).architecture
    inputs = list(with_settings("input LoRA", lora.path))
    if known is not None:
        inputs += [("model", file) for file in {ref.file for ref in known.tensors.values()}]
    profile = profile_of(to, lora.dialect).of(family.family)
    check_passthrough(lora.passthrough, profile, family.family)
    shapes = {name: update.shape for name, update in lora.layers.items()}
    weights = stored_weights(shapes, profile.dialect.names, family)
    return Task(
        what="resize",
        jobs=tuple(_job(weight, lora.layers) for weight in weights),
        passthrough=lora.passthrough,
        architecture=family,
        to=to,
        dialect=lora.dialect,
        dtype=written_as(lora.dtype) if dtype == "same" else dtype,
        metadata=converted_metadata(
            lora.metadata, to, alpha_stays=profile.dialect.has_alpha_tensors, header_stays=False, rank=lora.max_rank
        ),
        warnings=lora.warnings,
        identities={file: file_identity(file) for file in _files(lora)},
        inputs=tuple(inputs),
    )


def _job(weight: StoredWeight, updates: Mapping[str, LayerUpdate]) -> WeightJob:
    parts = tuple((rows, updates[name]) for name, rows in weight.places.items())
    matrix = JoinedUpdates(parts, weight.shape[0])
    dense = matrix.rank >= min(weight.shape)
    return WeightJob(weight, matrix, weight.shape, None, peak_bytes(weight.shape, dense))


def _files(lora: LoraAdapter) -> set[Path]:
    refs = [ref for layer in lora.layers.values() for ref in layer.refs.values()]
    return {lora.path, *(ref.file for ref in refs)}
