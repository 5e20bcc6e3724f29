"""The page of an analysis: what a distillation did to the weights and where LoRAs meet it, each beside its null models.

The whole model is drawn here; what a layer's row opens is in `analysis_figures.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from loraport.analysis.results import LayerAnalysis, LoraAnalysis, Measured, PairAnalysis, UpdateAnalysis
from loraport.engine.results import Column
from loraport.report.analysis_figures import GAUSSIAN, ROUNDING, layer_figures
from loraport.report.card import name_of
from loraport.report.charts import Bar, Bars, Colour, Lines, Map, NumberUnit, Series, number
from loraport.report.content import Fact, Figure, Input, Layers, Page, Words, went_in
from loraport.report.frame import render, write
from loraport.report.tables import Table, mean_by_block, model_grid
from loraport.wording import count

LORA_KINDS: tuple[Colour, ...] = ("a", "d", "c")
OF_UPDATE: tuple[tuple[str, str, NumberUnit], ...] = (
    ("relative", "norm, relative to the weight's", "share"),
    ("largest", "largest singular value, relative to the weight's", "share"),
    ("rigidity", "change of the singular values", "share"),
    ("head_concentration", "energy in the leading tenth of the head", "number"),
    ("intruders", "intruders among ten leading directions", "number"),
)
OF_MEETING: tuple[tuple[str, str, NumberUnit], ...] = (
    ("cosine", "cosine of LoRA and drift (absolute value)", "number"),
    ("head_cosine", "the same, in the head", "number"),
    ("sign_agreement", "entries with the same sign", "share"),
    ("interaction_in_head", "interaction in the head", "number"),
    ("alignment_strength", "alignment within cells (absolute value)", "number"),
)
OF_INTERVENTION: tuple[tuple[str, str, NumberUnit], ...] = (
    ("restored", "entries restored by CASA", "share"),
    ("arbitrated", "entries arbitrated", "share"),
    ("drift_undone", "energy of the drift undone", "share"),
)
MANY = 200  # layers, of which all figures would not fit on a page
BEYOND = (
    "A bar that ends at its mark shows what any change of that size does; what goes beyond it is special to this one."
)


def write_analysis_page(output: str | Path, analysis: PairAnalysis) -> Path:
    """Write the page of an analysis. Raises FileError if it cannot be written."""
    return write(output, _page(analysis))


def render_analysis_page(analysis: PairAnalysis) -> str:
    """The page of `write_analysis_page` as text."""
    return render(_page(analysis))


def _page(analysis: PairAnalysis) -> Page:
    by_name = {layer.name: layer for layer in analysis.layers}

    def own(row: Mapping[str, Any]) -> Sequence[Figure]:
        return layer_figures(by_name[row["name"]], brief=len(by_name) > MANY)

    target = name_of(analysis.target) if analysis.target else " + ".join(analysis.target_lora)
    look = "A layer's own figures are its spectrum, densities, maps, rotations and certificates."
    return Page(
        words=Words(
            title=f"What {target or 'the target'} changed in {name_of(analysis.source)}",
            lead=_lead(analysis),
            remarks=tuple(_remarks(analysis)),
        ),
        warnings=analysis.warnings,
        inputs=_inputs(analysis),
        flags=analysis.flags,
        done=(
            Fact("analysed", f"{count(len(analysis.layers), 'layer')}, in {analysis.seconds:.0f} s"),
            Fact("thresholds", " · ".join(f"{key} {value:g}" for key, value in analysis.settings.items())),
        ),
        figures=tuple(_figures(analysis)) if analysis.layers else (),
        layers=Layers(_table(analysis), own, look),
    )


def _inputs(analysis: PairAnalysis) -> tuple[Input, ...]:
    if analysis.inputs:
        return went_in(analysis.inputs)
    found = [Input("source", analysis.source, (analysis.source_title,))]
    found += [Input("target", analysis.target, (analysis.target_title,))] if analysis.target is not None else []
    found += [Input("distillation LoRA", each) for each in analysis.target_lora]
    found += [Input(f"LoRA {each.label}", each.file, (count(each.layers, "layer"),)) for each in analysis.loras]
    return tuple(found)


def _lead(analysis: PairAnalysis) -> str:
    if not analysis.layers:
        return "No layer was analysed."
    drift = [layer.drift for layer in analysis.layers]
    moved, rigid = _mean([each.relative for each in drift]), _mean([each.rigidity for each in drift])
    share, layers = number(moved.value, "share"), count(len(drift), "layer")
    said = f"The distillation moved the weights by {share} of their norm (mean over {layers})."
    if rigid.gaussian == 0:  # both models are equal
        return said
    return (
        f"{said} It moved their singular values by {number(rigid.value, 'share')}, which is "
        f"{number(rigid.value / rigid.gaussian)} times what a random change of that size does."
    )


def _remarks(analysis: PairAnalysis) -> list[str]:
    said = []
    for lora in analysis.loras:
        found = _on(analysis, lora.label)
        if not found:
            continue
        cosine = _mean([each.meeting.cosine for each in found])
        beyond = sum(abs(each.meeting.cosine.value) > 3 * each.meeting.cosine.gaussian for each in found)
        said.append(
            f"{lora.label}: the mean cosine to the drift is {number(cosine.value)}. In {beyond} of "
            f"{count(len(found), 'layer')} it is beyond three standard deviations of unrelated updates."
        )
    return said


def _on(analysis: PairAnalysis, label: str) -> list[LoraAnalysis]:
    return [each for layer in analysis.layers for each in layer.loras if each.lora == label]


def _figures(analysis: PairAnalysis) -> list[Figure]:
    drawn = [_beside("The drift", [layer.drift for layer in analysis.layers], "b"), _by_depth(analysis)]
    drawn += [
        _grid(analysis, "Drift by type and depth", _relative, "share",
              "Strong layers moved most; a strong row or column is a part that the distillation rebuilt."),
        _grid(analysis, "Rigidity over its null", _rigidity, "number",
              "1 is what a random change does; in strong layers the singular values changed by more than chance."),
        _grid(analysis, "Certified directions", _certified, "share",
              "In strong layers the gaps in the spectrum prove that clusters are the same before and after."),
    ]  # fmt: skip
    for at, lora in enumerate(analysis.loras):
        found, name = _on(analysis, lora.label), lora.label
        if not found:
            continue
        kind = LORA_KINDS[at % len(LORA_KINDS)]
        size = partial(_of_lora, name, lambda one: one.update.relative.value)
        cosine = partial(_of_lora, name, lambda one: one.meeting.cosine.value)
        undone = partial(_of_lora, name, lambda one: one.meeting.intervention.drift_undone.value)
        drawn += [
            _beside(f"{name}", [each.update for each in found], kind),
            _meeting(f"{name} and the drift", found, kind),
            _grid(analysis, f"{name} by type and depth", size, "share",
                  "The LoRA changes strong layers most."),
            _grid(analysis, f"{name}: cosine to the drift", cosine, "number",
                  "In blue-green layers the LoRA points along the drift, in orange ones against it.", diverging=True),
            _grid(analysis, f"{name}: drift that CASA undoes", undone, "share",
                  "In strong layers, converting this LoRA weakens the distillation."),
        ]  # fmt: skip
    return [each for each in drawn if each is not None]


def _relative(layer: LayerAnalysis) -> float | None:
    return layer.drift.relative.value


def _rigidity(layer: LayerAnalysis) -> float | None:
    found = layer.drift.rigidity
    return found.value / found.gaussian if found.gaussian > 0 else None


def _certified(layer: LayerAnalysis) -> float | None:
    return layer.routing.certificates.directions.value


def _of_lora(label: str, get: Callable[[LoraAnalysis], float], layer: LayerAnalysis) -> float | None:
    return next((get(each) for each in layer.loras if each.lora == label), None)


def _grid(
    analysis: PairAnalysis,
    title: str,
    get: Callable[[LayerAnalysis], float | None],
    unit: NumberUnit,
    look: str,
    *,
    diverging: bool = False,
) -> Figure | None:
    """Layer types down, blocks across."""
    found = [(layer.name, value) for layer in analysis.layers if (value := get(layer)) is not None]
    if not found:
        return None
    grid = model_grid(found)
    low = None if diverging else 0.0
    drawing = Map(grid.values, "block", "module", grid.blocks, grid.modules, unit, low, None, diverging=diverging)
    return Figure(title, look, drawing)


def _by_depth(analysis: PairAnalysis) -> Figure | None:
    """Norms over the block, in the mean over its layers."""
    changes: list[tuple[str, Colour, Callable[[LayerAnalysis], float | None]]] = [("drift", "b", _relative)]
    for at, lora in enumerate(analysis.loras):
        size = partial(_of_lora, lora.label, lambda one: one.update.relative.value)
        changes.append((lora.label, LORA_KINDS[at % len(LORA_KINDS)], size))
    series = []
    for label, kind, get in changes:
        within = [(layer.block, get(layer)) for layer in analysis.layers if layer.block is not None]
        points = mean_by_block((block, value) for block, value in within if value is not None)
        series += [Series(label, points, kind)] if len(points) > 1 else []
    if not series:
        return None
    look = "Where the drift is far above a LoRA, the distillation changed the weights more than the LoRA does."
    return Figure("Norms by depth", look, Lines(tuple(series), "block", "norm over the weight's", "share"))


def _beside(title: str, updates: Sequence[UpdateAnalysis], kind: Colour) -> Figure:
    """An update beside its null models, in the mean over layers."""
    bars = [_bar(label, [getattr(one, key) for one in updates], unit, kind) for key, label, unit in OF_UPDATE]
    return Figure(f"{title} beside its null models", BEYOND, Bars(tuple(bars), each=True))


def _meeting(title: str, found: Sequence[LoraAnalysis], kind: Colour) -> Figure:
    bars = [_bar(label, [getattr(one.meeting, key) for one in found], unit, kind) for key, label, unit in OF_MEETING]
    acts = [one.meeting.intervention for one in found]
    bars += [_bar(label, [getattr(one, key) for one in acts], unit, kind) for key, label, unit in OF_INTERVENTION]
    return Figure(title, BEYOND, Bars(tuple(bars), each=True))


def _bar(label: str, found: Sequence[Measured], unit: NumberUnit, kind: Colour) -> Bar:
    mean = _mean([replace(each, value=abs(each.value)) for each in found])
    nulls = {GAUSSIAN: mean.gaussian} | ({} if mean.rounding is None else {ROUNDING: mean.rounding})
    return Bar(label, mean.value, nulls, unit, kind)


def _mean(found: Sequence[Measured]) -> Measured:
    rounding = [each.rounding for each in found if each.rounding is not None]
    return Measured(
        sum(each.value for each in found) / len(found),
        sum(each.gaussian for each in found) / len(found),
        sum(rounding) / len(rounding) if rounding else None,
    )


def _table(analysis: PairAnalysis) -> Table:
    """A row a layer: its size, the drift, the LoRAs."""
    columns = [
        Column("name", "layer", "", "text"),
        Column("shape", "shape", "output × input features", "text"),
        Column("head", "head", "directions that hold 90 % of the squared singular values", "count"),
        Column("clusters", "clusters", "sets of directions that the drift mixes", "count"),
        Column("drift", "drift", "norm over that of the weight", "share"),
        Column("rigidity", "rigidity", "change of the singular values over the null model's; 1 is chance"),
        Column(
            "head_concentration", "in head", "the drift's energy in the leading tenth of the head, over an even spread"
        ),
        Column("intruders", "intruders", "new ones among the ten leading directions after the drift", "count"),
        Column("certified", "certified", "share of the head's directions in clusters that are provably kept", "share"),
    ]
    for at, lora in enumerate(analysis.loras):
        columns += [
            Column(f"size{at}", lora.label, f"norm of {lora.label} over that of the weight", "share"),
            Column(f"cosine{at}", f"{lora.label} · drift", f"cosine between {lora.label} and the drift"),
            Column(f"undone{at}", f"{lora.label}: undone", "energy of the drift that CASA undoes for it", "share"),
        ]
    labels = [lora.label for lora in analysis.loras]
    return Table(tuple(columns), tuple(_row(layer, labels) for layer in analysis.layers))


def _row(layer: LayerAnalysis, labels: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": layer.name,
        "shape": " × ".join(map(str, layer.shape)),
        "head": layer.head,
        "clusters": layer.routing.clusters,
        "drift": layer.drift.relative.value,
        "rigidity": _rigidity(layer),
        "head_concentration": layer.drift.head_concentration.value,
        "intruders": round(layer.drift.intruders.value),
        "certified": _certified(layer),
    }
    for one in layer.loras:
        at = labels.index(one.lora)
        row |= {
            f"size{at}": one.update.relative.value,
            f"cosine{at}": one.meeting.cosine.value,
            f"undone{at}": one.meeting.intervention.drift_undone.value,
        }
    return row
