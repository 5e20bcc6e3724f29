"""The data that a visual comparison is drawn from: rows of clips with scores. No weights, no models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True)
class Score:
    """A mean over clips and its standard error."""

    mean: float
    error: float


@dataclass(frozen=True)
class Measure:
    """What a score means.

    Attributes:
        key: name in `Row.scores`.
        title: column head.
        help: one sentence for the reader.
        better: "higher" or "lower"; None when neither end is good in itself.
        low: where a bar begins.
        high: where it is full.
        digits: decimals that are printed.
    """

    key: str
    title: str
    help: str
    better: str | None = None
    low: float = 0.0
    high: float = 1.0
    digits: int = 2

    def show(self, value: float) -> str:
        """A value of this measure as printed, with a true minus sign."""
        text = f"{value:.{self.digits}f}"
        return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


@dataclass(frozen=True, eq=False)
class Row:
    """One way of making the clips.

    Attributes:
        key: short name for JSON.
        label: what the reader sees.
        note: a few words more.
        clips: uint8 pixels (clips, frames, height, width, RGB), or None for a row of numbers only.
        scores: by measure key; empty for a row that is only there to look at.
        kind: "reference" (what is aimed at), "baseline" or "result"; only the colour depends on it.
    """

    key: str
    label: str
    note: str = ""
    clips: UInt8[np.ndarray, "n f h w 3"] | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    kind: str = "baseline"


@dataclass(frozen=True)
class Curve:
    """A score over a dial, such as the LoRA's strength: points (x, score), in order of x."""

    label: str
    points: tuple[tuple[float, Score], ...]
    kind: str = "baseline"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rows over the same prompts and the same noise.

    Attributes:
        captions: one per clip that is shown, as short lines.
        rows: in the order in which they are drawn.
        measures: the scores' meanings, in column order.
        scored: number of clips behind each score (more than are shown).
        title: a few words for the corner of the pictures.
        curves: scores over a dial; `curve_measure` says which score, `curve_axis` names the dial.
    """

    captions: tuple[tuple[str, ...], ...]
    rows: tuple[Row, ...]
    measures: tuple[Measure, ...]
    scored: int
    title: str = ""
    curves: tuple[Curve, ...] = ()
    curve_measure: Measure | None = None
    curve_axis: str = ""

    def shown(self) -> tuple[Row, ...]:
        """The rows that have clips."""
        return tuple(row for row in self.rows if row.clips is not None)

    def to_json(self) -> dict[str, Any]:
        """The numbers, without the pixels."""
        return {
            "scored_clips": self.scored,
            "measures": {m.key: {"title": m.title, "help": m.help, "better": m.better} for m in self.measures},
            "rows": [
                {"key": row.key, "label": row.label, "note": row.note, "scores": _plain(row.scores)}
                for row in self.rows
                if row.scores
            ],
            "curves": [
                {"label": c.label, "points": [{"x": x, "mean": s.mean, "error": s.error} for x, s in c.points]}
                for c in self.curves
            ],
        }


def _plain(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    return {key: {"mean": score.mean, "standard_error": score.error} for key, score in scores.items()}
