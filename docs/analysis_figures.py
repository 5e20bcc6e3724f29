"""Makes the figures of analysis.md and its table of observations, from the bundled models:

    python docs/analysis_figures.py

Other models and LoRAs by `--source`, `--target` and `--loras`, as for `loraport analyze`.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import loraport
from loraport.analysis.results import LayerAnalysis, LoraAnalysis, Measured, PairAnalysis
from loraport.engine.options import RunOptions
from loraport.zoo import catalogue

DOCS = Path(__file__).parent
PAGE, IMAGES = DOCS / "analysis.md", DOCS / "images"
BEGIN, END = "<!-- made by docs/analysis_figures.py -->", "<!-- end -->"
DRIFT, LORA, NULL, ROUNDING = "#c2571a", "#1f6f8b", "#8a8a8a", "#b59f3b"


def main() -> None:
    """Analyse, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = catalogue.models()
    parser.add_argument("--source", default=f"zoo:{models[0]}")
    parser.add_argument("--target", default=f"zoo:{'dmd' if 'dmd' in models else models[-1]}")
    parser.add_argument("--loras", nargs="*", default=[f"zoo:{name}" for name in catalogue.loras()])
    given = parser.parse_args()
    found = loraport.analyze(given.source, given.target, given.loras, options=RunOptions(cache="off", workers=1))
    IMAGES.mkdir(exist_ok=True)
    layer = shown(found)
    for name, figure in figures(found, layer).items():
        figure.savefig(IMAGES / f"analysis-{name}.png", dpi=72, bbox_inches="tight")
        plt.close(figure)
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{told(found, layer, given)}\n\n{END}{after}", encoding="utf-8")


def shown(found: PairAnalysis) -> LayerAnalysis:
    """The layer whose maps are drawn: a square one, in the middle, in which LoRAs are."""
    square = [layer for layer in found.layers if layer.shape[0] == layer.shape[1] and layer.loras]
    values = [layer for layer in square if layer.kind.endswith("self_attn.v")] or square or list(found.layers)
    return values[len(values) // 2]


# Figures


def figures(found: PairAnalysis, layer: LayerAnalysis) -> dict[str, Figure]:
    """All of them by name."""
    return {
        "rigidity": rigidity(found),
        "windows": windows(layer),
        "densities": densities(layer),
        "maps": maps(layer),
        "intervention": intervention(layer),
        "norms": norms(found),
        "rotation": rotation(layer),
        "energy": energy(layer),
        "certificates": certificates(found),
    }


def updates(found: PairAnalysis) -> list[LoraAnalysis]:
    """Of all LoRAs in all layers."""
    return [each for layer in found.layers for each in layer.loras]


def rigidity(found: PairAnalysis) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    points(left, [layer.drift.rigidity for layer in found.layers], "drift", DRIFT)
    points(left, [each.update.rigidity for each in updates(found)], "LoRAs", LORA)
    titled(left, "a random update of the same norm", "change of the singular values", log=True)
    points(right, [layer.drift.head_concentration for layer in found.layers], "drift", DRIFT)
    points(right, [each.update.head_concentration for each in updates(found)], "LoRAs", LORA)
    titled(right, "a random update of the same norm", "energy in the head's leading tenth", log=True)
    return figure


def points(axes: Axes, figures: Iterable[Measured], label: str, colour: str) -> None:
    """Measured against the Gaussian null, and the line where they are equal."""
    kept = list(figures)
    x, y = [max(each.gaussian, 1e-9) for each in kept], [max(each.value, 1e-9) for each in kept]
    axes.scatter(x, y, s=10, color=colour, alpha=0.6, label=label)
    ends = [min(x + y), max(x + y)]
    axes.plot(ends, ends, color=NULL, linewidth=1)


def titled(axes: Axes, x: str, y: str, *, log: bool = False, legend: bool = True) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    if legend:
        axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def windows(layer: LayerAnalysis) -> Figure:
    rows = [("drift", [w.similarity for w in layer.drift.windows])]
    rows.append(("random", [w.similarity_gaussian for w in layer.drift.windows]))
    rows += [(each.lora, [w.similarity for w in each.update.windows]) for each in layer.loras[:1]]
    figure, grid = plt.subplots(len(rows), 3, figsize=(6.5, 2.1 * len(rows)))
    for line, (name, pictures) in zip(grid, rows, strict=True):
        for axes, window, picture in zip(line, layer.drift.windows, pictures, strict=True):
            last = window.first + len(window.similarity)
            image(axes, picture, f"{name}, {window.place} {window.first} to {last - 1}", high=1.0)
    return figure


def image(
    axes: Axes, picture: object, title: str, *, high: float | None = None, low: float = 0.0, hue: str = "magma"
) -> None:
    axes.imshow(np.array(picture), vmin=low, vmax=high, cmap=hue, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def densities(layer: LayerAnalysis) -> Figure:
    routing = layer.loras[0].routing if layer.loras else layer.routing
    figure, grid = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axes, side in zip(grid, ("send", "receive"), strict=True):
        axes.plot(getattr(routing.drift, side), color=DRIFT, marker="o", markersize=3, label="drift")
        axes.axhline(routing.drift.gaussian, color=DRIFT, linestyle=":", label="random drift")
        if routing.lora is not None:
            axes.plot(getattr(routing.lora, side), color=LORA, marker="o", markersize=3, label=routing.of)
            axes.axhline(routing.lora.gaussian, color=LORA, linestyle=":", label="random, like the LoRA")
        rounded = getattr(routing.drift, f"{side}_rounding")
        if rounded is not None:
            axes.plot(rounded, color=ROUNDING, label="rounding alone")
        titled(axes, "cells of clusters, largest singular values first", f"mean norm, {side}", legend=side == "send")
    return figure


def maps(layer: LayerAnalysis) -> Figure:
    lora = layer.loras[0]
    figure, grid = plt.subplots(1, 4, figsize=(11, 3))
    assert lora.routing.lora is not None
    image(grid[0], lora.routing.drift.map, "drift")
    image(grid[1], lora.routing.lora.map, lora.lora)
    image(grid[2], lora.meeting.interaction, "interaction")
    image(grid[3], lora.meeting.alignment, "alignment, -1 to 1", low=-1.0, high=1.0, hue="RdBu_r")
    return figure


def intervention(layer: LayerAnalysis) -> Figure:
    figure, grid = plt.subplots(1, 2, figsize=(6, 3))
    chosen = layer.loras[0].meeting.intervention
    image(grid[0], chosen.restored_map, "restored (last: beyond the head)", high=1.0)
    image(grid[1], chosen.arbitrated_map, "arbitrated")
    return figure


def norms(found: PairAnalysis) -> Figure:
    kinds = found.by_kind()
    figure, grid = plt.subplots(1, 2, figsize=(10, 3.2))
    for at, (kind, layers) in enumerate(kinds.items()):
        colour = plt.get_cmap("tab20")(at % 20)
        depth = [layer.block or 0 for layer in layers]
        grid[0].plot(
            depth, [x.drift.relative.value for x in layers], marker="o", markersize=3, color=colour, label=kind
        )
        with_loras = [layer for layer in layers if layer.loras]
        middle = [median(each.update.relative.value for each in layer.loras) for layer in with_loras]
        grid[1].plot([layer.block or 0 for layer in with_loras], middle, marker="o", markersize=3, color=colour)
    titled(grid[0], "block", "drift over weight")
    titled(grid[1], "block", "LoRAs over weight (median)", legend=False)
    return figure


def rotation(layer: LayerAnalysis) -> Figure:
    figure, grid = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    named = [("drift", layer.drift)] + [(each.lora, each.update) for each in layer.loras[:1]]
    for axes, (name, update) in zip(grid, named, strict=False):
        turned = update.rotation
        axes.plot(turned.first, turned.measured, color=DRIFT, marker="o", markersize=3, label="measured")
        axes.plot(turned.first, turned.predicted, color=LORA, label="predicted")
        axes.plot(turned.first, turned.gaussian, color=NULL, linestyle=":", label="random")
        titled(axes, f"direction ({name})", "sine of the angle out of the group")
    return figure


def energy(layer: LayerAnalysis) -> Figure:
    figure, axes = plt.subplots(figsize=(4.5, 3))
    named = [("drift", layer.drift.energy, DRIFT)]
    named += [(each.lora, each.update.energy, LORA) for each in layer.loras[:1]]
    for name, curve, colour in named:
        axes.plot(curve.ranks, curve.kept, color=colour, marker="o", markersize=3, label=name)
        axes.plot(curve.ranks, curve.gaussian, color=colour, linestyle=":", label=f"random, like {name}")
    axes.set_xscale("log", base=2)
    titled(axes, "rank", "share of the squared norm")
    return figure


def certificates(found: PairAnalysis) -> Figure:
    figure, axes = plt.subplots(figsize=(4.5, 3))
    rows = [row for layer in found.layers for row in layer.routing.certificates.shown]
    rows += [row for each in updates(found) for row in each.routing.certificates.shown]
    proven = [row for row in rows if row.bound is not None]
    x = [max(row.measured, 1e-4) for row in rows]
    axes.scatter(x, [max(row.predicted, 1e-4) for row in rows], s=4, color=LORA, alpha=0.4, label="predicted")
    if proven:
        axes.scatter(
            [max(row.measured, 1e-4) for row in proven], [row.bound for row in proven], s=8, color=DRIFT, label="bound"
        )
    axes.plot([min(x), max(x)], [min(x), max(x)], color=NULL, linewidth=1)
    titled(axes, "measured", "bound, predicted", log=True)
    return figure


# Numbers


def told(found: PairAnalysis, layer: LayerAnalysis, given: argparse.Namespace) -> str:
    """The table of observations."""
    loras = updates(found)
    head = (
        f"`{Path(given.source).name or given.source}` to `{Path(given.target).name or given.target}` with "
        f"{', '.join(f'`{lora.label}`' for lora in found.loras)}: {len(found.layers)} layers. Maps are those of "
        f"`{layer.name}`"
        + (f" with `{layer.loras[0].lora}`" if layer.loras else "")
        + ". Medians over layers (and LoRAs); in brackets the tenth and the ninetieth percentile. *beyond* is the "
        "share of layers in which the figure lies to that side of the random update's by a tenth, or by two standard "
        "deviations."
    )
    rows = [row(*each) for each in observations(found, loras)]
    lines = ["| | measured | random | rounding | beyond |", "|---|---:|---:|---:|---:|", *rows]
    return head + "\n\n" + "\n".join(lines)


def above(each: Measured) -> bool:
    """More than the null model has, by a tenth."""
    return each.value > 1.1 * each.gaussian


def below(each: Measured) -> bool:
    """Less, by a tenth."""
    return each.value < 0.9 * each.gaussian


def aside(each: Measured) -> bool:
    """More than two standard deviations from zero, of which the null model has one."""
    return abs(each.value) > 2 * each.gaussian


def observations(
    found: PairAnalysis, loras: Sequence[LoraAnalysis]
) -> Iterable[tuple[str, list[Measured], Callable[[Measured], bool]]]:
    drifts = [layer.drift for layer in found.layers]
    yield "drift: rigidity", [each.rigidity for each in drifts], below
    yield "LoRAs: rigidity", [each.update.rigidity for each in loras], below
    yield "drift: head concentration", [each.head_concentration for each in drifts], above
    yield "LoRAs: head concentration", [each.update.head_concentration for each in loras], above
    for place, at in (("head", 0), ("middle", 1), ("tail", 2)):
        yield f"drift: aligned, {place}", [each.windows[at].aligned for each in drifts], below
        yield f"LoRAs: aligned, {place}", [each.update.windows[at].aligned for each in loras], below
        yield f"drift: inside the window, {place}", [each.windows[at].inside for each in drifts], above
    yield "drift: largest singular value", [each.largest for each in drifts], above
    yield "drift: intruders", [each.intruders for each in drifts], above
    yield "LoRAs: intruders", [each.update.intruders for each in loras], above
    yield "cosine of LoRA and drift", [each.meeting.cosine for each in loras], aside
    yield "the same within the head", [each.meeting.head_cosine for each in loras], aside
    yield "sign agreement", [each.meeting.sign_agreement for each in loras], above
    yield "interaction in the head", [each.meeting.interaction_in_head for each in loras], above
    yield "strength of alignment", [each.meeting.alignment_strength for each in loras], above
    yield "restored share", [each.meeting.intervention.restored for each in loras], above
    yield "arbitrated share", [each.meeting.intervention.arbitrated for each in loras], above
    yield "drift undone by CASA", [each.meeting.intervention.drift_undone for each in loras], below
    yield "directions with a certificate", [layer.routing.certificates.directions for layer in found.layers], above


def row(name: str, figures: list[Measured], beyond: Callable[[Measured], bool]) -> str:
    if not figures:
        return f"| {name} | | | | |"
    rounding = [each.rounding for each in figures if each.rounding is not None]
    return (
        f"| {name} | {spread([each.value for each in figures])} | {median(each.gaussian for each in figures):.3g} | "
        f"{f'{median(rounding):.3g}' if rounding else ''} | "
        f"{beyond.__name__} in {100 * sum(map(beyond, figures)) / len(figures):.0f} % |"
    )


def spread(values: list[float]) -> str:
    low, high = np.quantile(values, [0.1, 0.9])
    return f"{median(values):.3g} ({low:.2g} to {high:.2g})"


if __name__ == "__main__":
    main()
