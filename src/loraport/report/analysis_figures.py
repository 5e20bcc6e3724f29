"""The figures of one layer of an analysis, as in the paper: spectrum with clusters, densities, maps from cluster to
cluster, where LoRA and drift meet, what would be done about it, directions before and after, certificates."""

import itertools
from collections.abc import Sequence

from loraport.analysis.results import (
    Densities,
    LayerAnalysis,
    LoraAnalysis,
    Matrix,
    Routing,
    UpdateAnalysis,
    Window,
)
from loraport.report.charts import Colour, Drawing, Lines, Map, NumberUnit, Series
from loraport.report.content import Figure

GAUSSIAN = "a random update of the same norm"
ROUNDING = "rounding of the stored numbers"
LORAS: tuple[Colour, ...] = ("a", "d")
"""Colours of LoRAs beside the source and the drift; curves of one colour have strokes of their own."""
_CELL_AXES = ("sending cluster", "receiving cluster")


def layer_figures(layer: LayerAnalysis, *, brief: bool) -> list[Figure]:
    """Everything that one layer has to show, what matters least last.

    Args:
        layer: of a `PairAnalysis`.
        brief: without the directions after a random update, since there are very many layers.
    """
    drawn = [_spectrum(layer), _energy(layer), _rotation("the drift", layer.drift)]
    drawn += _windows("the drift", layer.drift, null=not brief)
    drawn += [_certificates(layer)] if layer.routing.certificates.shown else []
    if not layer.loras:
        drawn += [*_densities("", layer.routing), _heat("Drift from cluster to cluster", layer.routing.drift)]
    for one in layer.loras:
        drawn += [
            *_densities(f"{one.lora}: ", one.routing),
            _heat(f"Drift in the clusters of {one.lora}", one.routing.drift),
            *([_heat(f"{one.lora} from cluster to cluster", one.routing.lora)] if one.routing.lora is not None else []),
            *_met(one),
            _rotation(one.lora, one.update),
        ]
    return drawn


def _spectrum(layer: LayerAnalysis) -> Figure:
    """Singular values before and after, and the clusters."""
    index = [float(at + 1) for at in layer.at]
    series = [
        Series("source", _curve(index, layer.singular_values), "c"),
        Series("after the drift", _curve(index, layer.drift.singular_values), "b"),
    ]
    for at, one in enumerate(layer.loras):
        series.append(Series(f"after {one.lora}", _curve(index, one.update.singular_values), LORAS[at % len(LORAS)]))
    routing = layer.loras[0].routing if layer.loras else layer.routing
    ends = [0, *itertools.accumulate(routing.cells)]
    middles = [(low + high + 1) / 2 for low, high in itertools.pairwise(ends)]
    series.append(Series(f"clusters of {routing.of}", _curve(middles, routing.sigma), "null", dots=True))
    look = (
        "If lines lie on each other, singular values hardly move; dots far apart are clusters with gaps between them."
    )
    return Figure("Spectrum and clusters", look, Lines(tuple(series), "direction", "singular value", log=True))


def _energy(layer: LayerAnalysis) -> Figure:
    kept = layer.drift.energy
    series = [
        Series("drift", _curve(kept.ranks, kept.kept), "b"),
        Series(f"drift: {GAUSSIAN}", _curve(kept.ranks, kept.gaussian), "null"),
    ]
    for at, one in enumerate(layer.loras):
        energy = one.update.energy
        series.append(Series(one.lora, _curve(energy.ranks, energy.kept), LORAS[at % len(LORAS)]))
    look = "A curve near the dotted one needs nearly full rank; one that rises at once would fit into a small LoRA."
    return Figure("Energy against rank", look, Lines(tuple(series), "rank", "share of the squared norm", "share"))


def _rotation(name: str, update: UpdateAnalysis) -> Figure:
    found = update.rotation
    at = [float(first + 1) for first in found.first]
    series = (
        Series("measured", _curve(at, found.measured), "a"),
        Series("predicted to first order", _curve(at, [min(value, 1.5) for value in found.predicted]), "b"),
        Series(f"measured for {GAUSSIAN}", _curve(at, found.gaussian), "null"),
    )
    look = (
        "Where measured and predicted differ, directions are so close in strength that the routing alone cannot tell."
    )
    return Figure(f"How far {name} turns directions", look, Lines(series, "direction", "sine of the turn", level=1.0))


def _windows(name: str, update: UpdateAnalysis, *, null: bool) -> list[Figure]:
    looks = {
        "head": "A clean diagonal means that the strongest directions stay what they were.",
        "middle": "Blocks are directions of nearly equal strength, which mix only with each other.",
        "tail": "A wide band means that weak directions are no longer what they were.",
    }
    drawn = []
    for window in update.windows:
        drawn.append(
            _window(f"Directions before and after {name}: {window.place}", looks[window.place], window, null=False)
        )
        if null and window.place == "middle":
            look = "Blocks that also appear here say nothing about the distillation."
            drawn.append(_window(f"The {window.place} after a random update of the same norm", look, window, null=True))
    return drawn


def _window(title: str, look: str, window: Window, *, null: bool) -> Figure:
    values = window.similarity_gaussian if null else window.similarity
    names = tuple(str(window.first + 1 + at) for at in range(len(values)))
    drawing = Map(values, "after", "before", names, names, low=0.0, high=1.0, square=True)
    return Figure(title, look, drawing)


def _certificates(layer: LayerAnalysis) -> Figure:
    shown = layer.routing.certificates.shown
    at = [float(each.first + 1) for each in shown]
    bounds = tuple((x, each.bound) for x, each in zip(at, shown, strict=True) if each.bound is not None)
    series = (
        Series("certain bound (Wedin)", bounds, "c", dots=True),
        Series("measured", _curve(at, [each.measured for each in shown]), "a", dots=True),
        Series("predicted to first order", _curve(at, [each.predicted for each in shown]), "b", dots=True),
    )
    look = "A bound below the dashed line proves that the cluster is still there; without a dot nothing is certain."
    drawing = Lines(series, "first direction of the cluster", "turn of the cluster", log=True, level=1.0)
    return Figure("Certificates of the leading clusters", look, drawing)


def _densities(prefix: str, routing: Routing) -> list[Figure]:
    """What each cluster sends and receives, of the drift and of the LoRA."""
    drawn = []
    for side, what in (("send", "sends"), ("receive", "receives")):
        series = [Series("drift", _curve(None, getattr(routing.drift, side)), "b")]
        rounding = getattr(routing.drift, f"{side}_rounding")
        series += [_across("drift, by chance", routing.drift.gaussian, len(routing.cells))]
        series += [Series("rounding", _curve(None, rounding), "c")] if rounding is not None else []
        if routing.lora is not None:
            series.append(Series("LoRA", _curve(None, getattr(routing.lora, side)), "a"))
            series.append(_across("LoRA, by chance", routing.lora.gaussian, len(routing.cells)))
        look = f"A curve that falls from left to right means that the head {what} most; a flat one, that all do alike."
        drawing = Lines(tuple(series), "cluster, strongest first", "density", log=True)
        drawn.append(Figure(f"{prefix}what a cluster {what}" if prefix else f"What a cluster {what}", look, drawing))
    return drawn


def _heat(title: str, found: Densities) -> Figure:
    look = (
        f"Strong upper and left edges mean a change of the head; chance would give {found.map_gaussian:.2g} everywhere."
    )
    return Figure(title, look, _cells(found.map, low=0.0))


def _met(one: LoraAnalysis) -> list[Figure]:
    """Where the LoRA and the drift meet, and what CASA would do there."""
    meeting, acts = one.meeting, one.meeting.intervention
    restored = f"Strong cells go back to the source, in all {100 * acts.restored.value:.0f} % of the entries."
    arbitrated = (
        f"In strong cells only the larger change stays, in all for {100 * acts.arbitrated.value:.0f} % of the entries."
    )
    return [
        Figure(
            "Interaction strength", "In strong cells LoRA and drift are both large.", _cells(meeting.interaction, 0.0)
        ),
        Figure(
            "Alignment",
            "Blue-green cells pull together, orange cells apart; without a pattern there is no bias.",
            _cells(meeting.alignment, diverging=True, high=1.0),
        ),
        Figure(f"{one.lora}: restored", restored, _cells(acts.restored_map, 0.0, 1.0, unit="share")),
        Figure(f"{one.lora}: arbitrated", arbitrated, _cells(acts.arbitrated_map, 0.0, 1.0, unit="share")),
    ]


def _cells(
    values: Matrix,
    low: float | None = None,
    high: float | None = None,
    *,
    unit: NumberUnit = "number",
    diverging: bool = False,
) -> Drawing:
    return Map(values, *_CELL_AXES, unit=unit, low=low, high=high, diverging=diverging, square=True)


def _across(label: str, value: float, count: int) -> Series:
    kind: Colour = "null"
    return Series(label, ((1.0, value), (float(max(count, 2)), value)), kind)


def _curve(xs: Sequence[float] | None, ys: Sequence[float]) -> tuple[tuple[float, float], ...]:
    places = [float(at + 1) for at in range(len(ys))] if xs is None else [float(x) for x in xs]
    return tuple(zip(places, ys, strict=True))
