"""What a resize or an extraction did, as plain values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraport.engine.results import LayerReport


@dataclass(frozen=True)
class Resized:
    """A LoRA that was cut by a rule.

    Attributes:
        output: the file written.
        rule: the rule that was asked for.
        layers: a report for each stored weight in it; fused layers count as one.
        left_out: weights without a term: unchanged, or not worth their bytes.
        passthrough: keys or parameters whose change is written as it is.
        energy_kept: share of the squared norm kept over all weights together.
        size: size of the file in bytes.
        dtype: torch name of the factors' dtype.
        to: output profile.
        load: how to load it, one program a line.
        warnings: sentences for the user.
        seconds: wall time.
    """

    output: Path
    rule: str
    layers: tuple[LayerReport, ...] = field(repr=False)
    left_out: tuple[str, ...]
    passthrough: tuple[str, ...] = field(repr=False)
    energy_kept: float
    size: int
    dtype: str
    to: str
    load: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return values | lists | {"output": str(self.output), "layers": [layer.to_json() for layer in self.layers]}
