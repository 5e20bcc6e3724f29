"""A comparison as the page plays it: strips of clips, bars behind scores, curves over a dial."""

import base64
from typing import TYPE_CHECKING, Any

from loraport.report import figures
from loraport.report.charts import Lines, Series
from loraport.report.comparison import Comparison, Curve, Measure, Row, Score

if TYPE_CHECKING:
    from markupsafe import Markup

ARROWS = {None: "", "higher": " ↑", "lower": " ↓"}


def shown(comparison: Comparison) -> dict[str, Any]:
    """What the template needs of a comparison."""
    strips, frames = [], 0
    for row in comparison.shown():
        assert row.clips is not None
        count, frames, high, wide, _ = row.clips.shape
        png = base64_of(figures.strip(row.clips))
        strips.append({"row": row, "png": png, "aspect": f"{count * (wide + 1) - 1}/{high}"})
    return {
        "strips": strips,
        "frames": frames,
        "captions": comparison.captions,
        "measures": comparison.measures,
        "arrows": ARROWS,
        "scored": [_scored(row, comparison) for row in comparison.rows if row.scores],
        "clips": comparison.scored,
        "curves": _curves(comparison),
        "curves_title": "" if comparison.curve_measure is None else comparison.curve_measure.title,
        "curves_help": "" if comparison.curve_measure is None else comparison.curve_measure.help,
    }


def base64_of(data: bytes) -> "Markup":
    """Bytes as letters, none of which means anything in HTML: neither escaped nor cut."""
    from markupsafe import Markup

    return Markup(base64.b64encode(data).decode("ascii"))


def bar(score: Score, measure: Measure) -> dict[str, float]:
    """The bar of a score over the measure's range, with a whisker of one standard error; places from 0 to 100."""

    def place(value: float) -> float:
        return round(100 * min(max((value - measure.low) / (measure.high - measure.low), 0.0), 1.0), 2)

    start, end = sorted((place(0.0), place(score.mean)))
    low, high = place(score.mean - score.error), place(score.mean + score.error)
    return {"start": start, "width": round(end - start, 2), "low": low, "high": high}


def _scored(row: Row, comparison: Comparison) -> dict[str, Any]:
    cells = []
    for measure in comparison.measures:
        score = row.scores.get(measure.key)
        text = "" if score is None else f"{measure.show(score.mean)} ± {measure.show(score.error)}"
        cells.append(None if score is None else {"text": text, "bar": bar(score, measure)})
    return {"row": row, "cells": cells}


def _curves(comparison: Comparison) -> Lines | None:
    if not comparison.curves or comparison.curve_measure is None:
        return None
    return Lines(tuple(map(_series, comparison.curves)), comparison.curve_axis, comparison.curve_measure.title)


def _series(curve: Curve) -> Series:
    points = tuple((x, score.mean) for x, score in curve.points)
    return Series(curve.label, points, curve.kind, tuple(score.error for _, score in curve.points))  # type: ignore[arg-type]
