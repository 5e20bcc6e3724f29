"""What an analysis finds, layer by layer, and its JSON document; single quantities are in `quantities.py`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from loraport.analysis.quantities import (
    Certificate,
    Certificates,
    Curve,
    Densities,
    Energy,
    Intervention,
    Matrix,
    Measured,
    Meeting,
    Rotation,
    Routing,
    UpdateAnalysis,
    Window,
)
from loraport.engine.results import InputFile
from loraport.errors import FileError
from loraport.files import write_text

__all__ = [
    "AnalysedLora",
    "Certificate",
    "Certificates",
    "Curve",
    "Densities",
    "Energy",
    "Intervention",
    "LayerAnalysis",
    "LoraAnalysis",
    "Matrix",
    "Measured",
    "Meeting",
    "PairAnalysis",
    "Rotation",
    "Routing",
    "UpdateAnalysis",
    "Window",
    "checked",
]  # fmt: skip

SCHEMA = 2
"""Of the JSON document; raised when a name goes or changes its meaning."""


@dataclass(frozen=True)
class LoraAnalysis:
    """One LoRA in one layer.

    Attributes:
        lora: its label in `PairAnalysis.loras`.
        update: the LoRA's update by itself.
        routing: routing over the clusters that it makes.
        meeting: how it meets the drift.
    """

    lora: str
    update: UpdateAnalysis
    routing: Routing
    meeting: Meeting


@dataclass(frozen=True)
class LayerAnalysis:
    """One layer.

    Attributes:
        name: canonical name, "blocks.7.self_attn.q".
        kind: the name without the block's number, "self_attn.q".
        block: number of the block; None outside blocks.
        shape: (out, in).
        weight_norm: Frobenius norm of the source weight.
        at: indices of the singular values given.
        singular_values: singular values of the source weight at these indices.
        head: number of directions that hold 90 % of the squared singular values.
        drift: target minus source.
        routing: routing over the clusters that the drift itself makes.
        loras: the LoRAs that change this layer.
        seconds: time spent.
        cached: taken from an earlier run.
    """

    name: str
    kind: str
    block: int | None
    shape: tuple[int, int]
    weight_norm: float
    at: tuple[int, ...]
    singular_values: Curve
    head: int
    drift: UpdateAnalysis
    routing: Routing
    loras: tuple[LoraAnalysis, ...]
    seconds: float
    cached: bool


@dataclass(frozen=True)
class AnalysedLora:
    """A LoRA of an analysis.

    Attributes:
        label: how the layers name it: the name of its file, with a number if two have the same name.
        file: the file.
        layers: number of analysed layers that it changes.
    """

    label: str
    file: str
    layers: int


@dataclass(frozen=True)
class PairAnalysis:
    """An analysis of a pair of models and of LoRAs.

    Attributes:
        source: model that the LoRAs were trained on.
        source_title: that model in words.
        target: the other model; None if LoRAs make it from the source.
        target_title: that model in words.
        target_lora: the distillation LoRAs that are part of it, each with its strength.
        loras: the LoRAs analysed.
        layers: the layers, in the order of the model.
        settings: thresholds that decide figures (tau, q_dom, q_act, head_energy).
        warnings: sentences for the user.
        version: version of loraport.
        seconds: wall time.
        inputs: the inputs, with the digests of what was used of each.
        flags: what was asked for besides files, as flags.
    """

    source: str
    source_title: str
    target: str | None
    target_title: str
    target_lora: tuple[str, ...]
    loras: tuple[AnalysedLora, ...]
    layers: tuple[LayerAnalysis, ...] = field(repr=False)
    settings: dict[str, float]
    warnings: tuple[str, ...]
    version: str
    seconds: float
    inputs: tuple[InputFile, ...] = ()
    flags: tuple[str, ...] = ()

    def by_kind(self) -> dict[str, tuple[LayerAnalysis, ...]]:
        """The layers of each kind, by depth: norms and other figures by layer type and depth."""
        found: dict[str, list[LayerAnalysis]] = {}
        for layer in self.layers:
            found.setdefault(layer.kind, []).append(layer)
        return {kind: tuple(layers) for kind, layers in found.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "PairAnalysis":
        """Back from `to_json`, also after JSON made lists of its tuples. Raises FileError."""
        given = dict(document)
        schema = given.pop("schema", None)
        if schema != SCHEMA:
            raise FileError(
                "this is not an analysis that this version can read",
                values=f"schema {schema!r}, not {SCHEMA}",
                fix="make it again with loraport analyze",
            )
        return checked(cls, given)

    def write(self, path: Path) -> None:
        """As a JSON file, whole or not at all. Raises FileError."""
        write_text(path, json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False))


def checked(kind: type, document: Any) -> Any:
    """An object of one of these classes, of plain values. Raises FileError where they are not what it takes."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise FileError(
            "this is not an analysis", where=where, values=first["msg"], fix="make it again with loraport analyze"
        ) from None


@cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
