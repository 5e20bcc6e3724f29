"""What a run reports: one `LayerReport` a layer, gathered in a `TransferReport`."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loraport.methods.columns import Column

Stat = float | int | str | bool

COLUMNS = (
    Column("rank_in", "rank in", "rank of the LoRA's update in the input", "count"),
    Column("rank_out", "rank out", "rank of the new update, before all layers are padded to one", "count"),
    Column(
        "energy_kept", "energy kept", "share of the exact update's squared norm that the output rank holds", "share"
    ),
    Column("update_rel", "update", "Frobenius norm of the LoRA's update over that of the source weight", "share"),
    Column("drift_rel", "drift", "Frobenius norm of target minus source over that of the source weight", "share"),
)
"""What the engine itself says about a layer, whatever the method; the last two where the method has both weights."""


def layer_columns(methods: Iterable[str]) -> tuple[Column, ...]:
    """The engine's columns, then those that these methods declare, each key once."""
    from loraport.methods import registry  # brings torch along

    found = {column.key: column for column in COLUMNS}
    for name in methods:
        found |= {column.key: column for column in registry.get(name).columns if column.key not in found}
    return tuple(found.values())


@dataclass(frozen=True)
class LayerReport:
    """One layer of the output, in numbers.

    Attributes:
        name: canonical layer name. shape: (out, in).
        method: what was done to it (`direct` for layers that `layers` left out).
        rank_in, rank_out: rank of the input's update and of the output's, before padding to one rank.
        energy_kept: share of the squared norm of the exact update that the output rank holds.
        stats: the method's own figures and the engine's `update_rel` and `drift_rel`; `layer_columns` says what
            each of them means, and so does `loraport methods NAME`.
        seconds: time spent.
        cached: taken from an earlier run.
        device: where it was computed, by this run or the earlier one; the CPU where a GPU ran out of memory.
    """

    name: str
    shape: tuple[int, int]
    method: str
    rank_in: int
    rank_out: int
    energy_kept: float
    stats: dict[str, Stat]
    seconds: float
    cached: bool
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"shape": list(self.shape)}


@dataclass(frozen=True)
class TransferReport:
    """The outcome of a transfer; `to_json()` is what `--json` prints.

    Attributes:
        output: the file written, or None when the run was asked to write nothing.
        layers: one report a transferred layer, in the order of the model.
        carried: keys taken over unchanged. dropped: keys left out, by request or by `allow_partial`.
        warnings: sentences for the user.
        summary: totals (rank, energy, time, cache use, recipe, inputs).
    """

    output: Path | None
    layers: tuple[LayerReport, ...]
    carried: tuple[str, ...]
    dropped: tuple[str, ...]
    warnings: tuple[str, ...]
    summary: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "output": None if self.output is None else str(self.output),
            "summary": self.summary,
            "warnings": list(self.warnings),
            "carried": list(self.carried),
            "dropped": list(self.dropped),
            "layers": [layer.to_json() for layer in self.layers],
        }


def energy_kept_in_total(layers: tuple[LayerReport, ...]) -> float:
    """Share of the squared norm of all exact updates together that the output holds."""
    whole = sum(float(layer.stats["exact_norm"]) ** 2 for layer in layers)
    kept = sum(float(layer.stats["exact_norm"]) ** 2 * layer.energy_kept for layer in layers)
    return kept / whole if whole > 0 else 1.0
