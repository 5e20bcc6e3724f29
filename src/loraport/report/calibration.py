"""What a calibration adds to the page of the transfer that it chose: the answer, what was tried, how much arrives."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loraport.engine.results import Column
from loraport.report.charts import Colour, Lines, Series
from loraport.report.content import Answer, Fact, Figure, Page
from loraport.report.tables import Table
from loraport.wording import count

KINDS: tuple[Colour, ...] = ("a", "d", "c")  # of methods; the LoRA as it is has its own colour
COLUMNS = (
    Column("name", "candidate", "method, and strength of the LoRA", "text"),
    Column("gap", "gap", "distance from what the source shows with the LoRA; smaller is nearer"),
    Column("error", "error", "standard error of the gap, over samples"),
    Column("share_in_clips", "shown", "share of the source's change that finished clips show", "share"),
    Column("latents", "latents", "mean squared difference of finished latents from source + LoRA"),
)
SHARE = "share of the source's change"
STEPS = {
    "share": (
        "How much arrives, step by step",
        SHARE,
        "At the dashed line the target shows as much of the LoRA as the source does.",
    ),
    "cosine": (
        "Direction, step by step",
        "cosine to the source's change",
        "Near 1 it is the same change, whatever its size.",
    ),
}


def add(page: Page, told: Mapping[str, Any]) -> Page:
    """The page of a transfer with what its calibration says of it.

    Args:
        page: of the transfer.
        told: the section "calibration" of `CalibrationReport.to_json()`.
    """
    ranking, chosen = told["ranking"], told["chosen"]
    passes = ", ".join(f"{count} of the {model}" for model, count in told["passes"].items())
    done = (
        Fact("gap", told["measure"]),
        Fact("tried", count(len(ranking), "candidate")),
        Fact("forward passes", f"{passes}, in {told['seconds'].get('all', 0):.0f} s"),
    )
    table = Table(COLUMNS, tuple({**each, "name": each["label"]} for each in ranking))
    why = f"{chosen['label']} was chosen: {told['reason']}."
    taken = "the LoRA as it is" if chosen["method"] == "direct" else _called(chosen)
    return replace(
        page,
        words=replace(page.words, lead=f"{why} {told['diagnosis']['sentence']} {page.words.lead}"),
        verdict=Answer(f"{taken}, strength {chosen['strength']:g}", "good"),
        warnings=tuple(dict.fromkeys((*page.warnings, *told["warnings"]))),
        done=(*done, *page.done),
        figures=(_gaps(ranking, chosen), *_steps(told["diagnosis"]), *page.figures),
        tables=(
            *page.tables,
            (
                "What was tried",
                f"{chosen['label']} was chosen. Below it are the others, the nearest to source + LoRA first.",
                table,
            ),
        ),
    )


def _gaps(ranking: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> Figure:
    """A line a method, over the strength of the LoRA."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for each in sorted(ranking, key=lambda one: one["strength"]):
        found.setdefault(_called(each), []).append(each)
    series, others = [], 0
    for label, rows in found.items():
        kind: Colour = "b" if label == "direct" else KINDS[others % len(KINDS)]
        others += label != "direct"
        points = tuple((row["strength"], row["gap"]) for row in rows)
        name = "the LoRA as it is" if label == "direct" else label
        series.append(Series(name, points, kind, tuple(row["error"] for row in rows)))
    drawing = Lines(tuple(series), "strength of the LoRA", "gap to source + LoRA", level=chosen["gap"])
    look = "The dashed line marks the choice; methods whose bands reach it are as near within the noise."
    return Figure("Gap of each candidate", look, drawing)


def _called(candidate: Mapping[str, Any]) -> str:
    amount = candidate.get("amount", 1.0)
    return candidate["method"] if amount == 1.0 else f"{candidate['method']}, amount {amount:g}"


def _steps(diagnosis: Mapping[str, Any]) -> list[Figure]:
    """Before and after, at each time step; nothing where steps were not measured."""
    sides = (("the LoRA as it is", "before", "b"), ("as chosen", "after", "a"))
    names = tuple(step["where"] for step in diagnosis["before"]["steps"])
    if not names:
        return []
    drawn = []
    for key, (title, unit, look) in STEPS.items():
        series = tuple(
            Series(label, tuple((float(at), step[key]) for at, step in enumerate(diagnosis[side]["steps"])), kind)  # type: ignore[arg-type]
            for label, side, kind in sides
        )
        drawing = Lines(series, "time step of the target, noise to clip", unit, names=names, level=1.0)
        drawn.append(Figure(title, look, drawing))
    return drawn
