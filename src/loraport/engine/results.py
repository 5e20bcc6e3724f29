"""What a run reports: one `LayerReport` a layer, gathered in a `TransferReport`."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loraport.engine.small_maps import SmallMap
from loraport.methods import registry
from loraport.methods.columns import Column
from loraport.methods.maps import LayerMap

Stat = float | int | str | bool

SCHEMA = 3
"""Of the JSON document and the run log; raised when a name goes or changes its meaning. 1 had no number."""

COLUMNS = (
    Column("rank_in", "rank in", "rank of the LoRA's update in the input", "count"),
    Column("rank_out", "rank out", "rank of the new update, before all layers are padded to one", "count"),
    Column(
        "energy_kept", "energy kept", "share of the exact update's squared norm that the output rank holds", "share"
    ),
    Column("update_rel", "update", "Frobenius norm of the LoRA's update over that of the source weight", "share"),
    Column("drift_rel", "drift", "Frobenius norm of target minus source over that of the source weight", "share"),
    Column(
        "drift_rounding",
        "rounding",
        "share of the drift's squared norm explained by rounding of the stored weights, if one per cent or more",
        "share",
    ),
)
"""What the engine itself says about a layer, whatever the method; the last three where the method has both weights."""


def layer_columns(methods: Iterable[str]) -> tuple[Column, ...]:
    """The engine's columns, then those that these methods declare, each key once."""
    found = {column.key: column for column in COLUMNS}
    for name in methods:
        found |= {column.key: column for column in registry.get(name).columns if column.key not in found}
    return tuple(found.values())


def layer_maps(methods: Iterable[str]) -> tuple[LayerMap, ...]:
    """What these methods can draw of a layer, each key once."""
    found: dict[str, LayerMap] = {}
    for name in methods:
        found |= {each.key: each for each in registry.get(name).maps if each.key not in found}
    return tuple(found.values())


@dataclass(frozen=True)
class LayerReport:
    """One layer of the output, in numbers.

    Attributes:
        name: canonical layer name.
        shape: (out, in).
        method: what was done to it (`direct` for layers that `layers` left out).
        rank_in: rank of the input's update.
        rank_out: rank of the output's, before all layers are padded to one.
        energy_kept: share of the squared norm of the exact update that the output rank holds.
        stats: the method's own figures and the engine's `update_rel` and `drift_rel`; `layer_columns` says what
            each of them means, and so does `loraport methods NAME`.
        seconds: time spent.
        cached: taken from an earlier run.
        device: where it was computed, by this run or the earlier one; the CPU where a GPU ran out of memory.
        maps: what the method can draw of the layer; `layer_maps` says what each map shows.
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
    maps: dict[str, SmallMap] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        maps = {key: each.to_json() for key, each in self.maps.items()}
        return asdict(self) | {"shape": list(self.shape), "maps": maps}


@dataclass(frozen=True)
class UsedWith:
    """A LoRA that is part of the target, so that the output must be used together with it; or one of the source.

    Attributes:
        file: the LoRA.
        strength: strength at which it was taken, and must be used.
        expert: which of its LoRAs, if it holds those of both Wan2.2 experts.
        adapter: which of its LoRAs, if it holds several by name.
        usage: steps, guidance and the like, if the LoRA says how it is sampled.
    """

    file: str
    strength: float
    expert: str | None = None
    adapter: str | None = None
    usage: str | None = None

    def __str__(self) -> str:
        chosen = [f"its {self.expert} noise half"] if self.expert else []
        chosen += [f"its adapter {self.adapter}"] if self.adapter else []
        return f"{self.file}{''.join(f' ({each})' for each in chosen)} at strength {self.strength:g}"


@dataclass(frozen=True)
class InputFile:
    """A file, or a folder, that went into a transfer.

    Attributes:
        role: "LoRA", "source", "target", "distillation LoRA" or "LoRA of the source".
        file: as it was opened.
        title: the model in words; for a LoRA, the model that it fits.
        kind: what it is: "checkpoint", or the kinds of its adapters with their ranks.
        bytes: size of its files together; None if one no longer exists.
        digest: SHA-256 over the digests of the tensors used, by name, as in the output's header; None if none was used.
        strength: strength of a LoRA.
        header: if there is no digest: SHA-256 over names, number formats and shapes of all its tensors.
    """

    role: str
    file: str
    title: str
    kind: str
    bytes: int | None
    digest: str | None
    strength: float | None
    header: str | None = None


@dataclass(frozen=True)
class KnownModel:
    """A well-known distilled model that a target is, judging by its name, and how its authors sample it.

    Attributes:
        name: for people.
        how: steps or times, shift, guidance, in words.
        seen: who says so.
        made: how it was made from its source; None if nobody says so.
        made_seen: who says that.
        ways: program -> what to type or click there; empty for a program that cannot sample it this way.
    """

    name: str
    how: str
    seen: str
    made: str | None
    made_seen: str | None
    ways: dict[str, str]

    def __str__(self) -> str:
        return f"judging by its name, it is {self.name}: {self.how} ({self.seen})"


@dataclass(frozen=True)
class Summary:
    """The totals of a run, and what was asked for.

    Attributes:
        method: method as resolved; for a preset, the preset's method.
        params: all of its parameters.
        amount: 0 is direct reuse, 1 the full method.
        strength: factor on the whole LoRA, before the method.
        scale: the LoRA's own scale, if it was given by hand.
        layers: number of layers in the output.
        rank_in: largest rank in the input.
        rank_out: rank of the output, the same in every layer.
        rank_rule: what was asked for (`auto`, `48`, `energy=0.99`).
        energy_kept_min: share of the squared norm of the exact update that the rank holds, in the worst layer.
        energy_kept_mean: the same for the mean over layers.
        energy_kept_total: the same for all exact updates together.
        dtype: torch name of the output's number format.
        to: output profile.
        lora: the LoRA file.
        training: what its header says about its training: trainer, base, steps, ... (`adapters.training.Training`).
        source: the model it was trained on.
        source_title: that model in words.
        target: the distilled model; None if LoRAs make it from the source.
        target_title: that model in words.
        target_usage: how it is sampled (steps, guidance, scheduler), if a file beside it says so.
        source_lora: the LoRAs that the LoRA was trained on top of; they are not part of the target.
        target_lora: the distillation LoRAs that make the target, from the source or from `target`.
        extra_source: weights that only the source has.
        extra_target: weights that only the target has.
        cached_layers: layers taken from an earlier run.
        seconds: wall time.
        target_known: the well-known model that the target is, judging by its name; None if it is none, or says itself
            how it is sampled.
        flags: what was asked for besides files, as flags; () for the usual settings.
    """

    method: str
    params: dict[str, Any]
    amount: float
    strength: float
    scale: float | None
    layers: int
    rank_in: int
    rank_out: int
    rank_rule: str
    energy_kept_min: float
    energy_kept_mean: float
    energy_kept_total: float
    dtype: str
    to: str
    lora: str
    training: dict[str, Any]
    source: str
    source_title: str
    target: str | None
    target_title: str
    target_usage: str | None
    source_lora: tuple[UsedWith, ...]
    target_lora: tuple[UsedWith, ...]
    extra_source: tuple[str, ...]
    extra_target: tuple[str, ...]
    cached_layers: int
    seconds: float
    target_known: KnownModel | None = None
    flags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class TransferReport:
    """The outcome of a transfer; `to_json()` is what `--json` prints (docs/report.md). A calibration adds a section.

    Attributes:
        output: the file written, or None when the run was asked to write nothing.
        summary: totals and settings.
        columns: what the figures of the layers mean, as far as any layer has them.
        maps: what the maps of the layers show, likewise.
        layers: one report per transferred layer, in the order of the model.
        passthrough: keys passed on unchanged.
        dropped: keys left out, by request or by `allow_partial`; and biases of zero of layers that have none.
        load: how to load the output, one program a line.
        warnings: sentences for the user.
        inputs: the input files.
    """

    output: Path | None
    summary: Summary
    columns: tuple[Column, ...] = field(repr=False)
    layers: tuple[LayerReport, ...] = field(repr=False)
    passthrough: tuple[str, ...]
    dropped: tuple[str, ...]
    load: tuple[str, ...]
    warnings: tuple[str, ...]
    inputs: tuple[InputFile, ...] = ()
    maps: tuple[LayerMap, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "schema": SCHEMA,
            "output": None if self.output is None else str(self.output),
            "inputs": [asdict(each) for each in self.inputs],
            "summary": self.summary.to_json(),
            "columns": [asdict(column) for column in self.columns],
            "maps": [each.to_json() for each in self.maps],
            "layers": [layer.to_json() for layer in self.layers],
            "passthrough": list(self.passthrough),
            "dropped": list(self.dropped),
            "load": list(self.load),
            "warnings": list(self.warnings),
        }


def energy_kept_in_total(layers: tuple[LayerReport, ...]) -> float:
    """Share of the squared norm of all exact updates together that the output holds.

    It stands in the header, and Python 3.12 adds up otherwise than 3.11 does; `fsum` is exact in both.
    """
    whole = math.fsum(float(layer.stats["exact_norm"]) ** 2 for layer in layers)
    kept = math.fsum(float(layer.stats["exact_norm"]) ** 2 * layer.energy_kept for layer in layers)
    return kept / whole if whole > 0 else 1.0
