"""What an analysis will look at, by headers alone: a job for each layer, with the updates of all LoRAs on it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.adapters.update import LayerUpdate
from loraport.analysis.depth import by_depth
from loraport.analysis.results import AnalysedLora
from loraport.containers.locate import expert_folders
from loraport.containers.references import TensorRef, common_dtype
from loraport.engine.inputs import lora_file, model_files
from loraport.engine.job import SMALL_CHANGE, Job, LayerJob
from loraport.engine.match import Pair, expert_meant, open_inputs, open_pair, weights_of
from loraport.engine.rank import RankRule
from loraport.engine.recipe import Recipe
from loraport.engine.results import InputFile
from loraport.errors import MismatchError, UsageError
from loraport.methods import cost as costs
from loraport.methods.casa.params import CasaParams

METHOD = "casa"
"""Whose basis and routing of the drift are used, and found in the cache where a transfer left them."""
PARAMS = CasaParams()


@dataclass(frozen=True)
class AnalysisJob(Job):
    """Work on one layer.

    Attributes:
        shape: (out, in) of the weight.
        peak_bytes: memory expected meanwhile.
        weights: the two weights, as a job of CASA without a LoRA.
        updates: of the LoRAs that change the layer, by label.
    """

    shape: tuple[int, int]
    peak_bytes: int
    weights: LayerJob
    updates: Mapping[str, LayerUpdate]

    @property
    def name(self) -> str:
        """Canonical name of the layer."""
        return self.weights.name

    @property
    def refs(self) -> dict[str, TensorRef]:
        """Those of the weights, and of each LoRA with its label."""
        refs = dict(self.weights.refs)
        for label, update in self.updates.items():
            refs |= {f"lora {label} {role}": ref for role, ref in update.refs.items()}
        return refs

    @property
    def cost(self) -> float:
        """Operations, roughly: decompositions of the source, the target and each LoRA, and a third of it for nulls."""
        p, m, n = min(self.shape), *self.shape
        return (2.8 + 1.3 * len(self.updates)) * 9.0 * p**3 + 6.0 * p * m * n


@dataclass(frozen=True)
class AnalysisPlan:
    """What an analysis will look at.

    Attributes:
        recipe: the models, and what was said of them; its LoRA is one of them, or nothing.
        pair: the models, opened.
        loras: what is analysed on them.
        jobs: one a layer, in the order of the model.
        warnings: sentences for the user.
        identities: file -> its `file_identity` of every file that is read.
        inputs: what went in, in words.
    """

    recipe: Recipe
    pair: Pair
    loras: tuple[AnalysedLora, ...]
    jobs: tuple[AnalysisJob, ...]
    warnings: tuple[str, ...]
    identities: Mapping[Path, str]
    inputs: tuple[InputFile, ...]


def make_analysis_plan(loras: Sequence[str], settings: Mapping[str, Any]) -> AnalysisPlan:
    """Match models and LoRAs against each other.

    Args:
        loras: files; without any, all linear layers of the models are looked at, else those that one of them changes.
        settings: of a `Recipe`, by name, without the LoRA.

    Raises:
        LoraportError: as `engine.plan.make_plan`; UsageError where `layers` matches nothing.
    """
    recipes = [_recipe(lora, settings) for lora in loras]
    alone = not recipes
    first = _recipe("", settings) if alone else recipes[0]
    pair = open_pair(first, _expert(first) if alone else expert_meant(first))
    warnings = [*pair.source.notes, *(pair.target.notes if pair.target is not None else ())]
    updates: dict[str, dict[str, LayerUpdate]] = {}
    identities = dict(pair.identities)
    told, went_in = [], list(model_files(pair, {}))
    for label, recipe in zip(_labels(loras), recipes, strict=True):
        inputs = open_inputs(recipe, pair)
        warnings += [note for note in inputs.notes if note not in warnings]
        identities |= inputs.identities
        found = 0
        for name, update in inputs.adapter.layers.items():
            if weights_of(name, update, inputs, recipe) is not None and _wanted(recipe, name):
                updates.setdefault(name, {})[label] = update
                found += 1
        told.append(AnalysedLora(label, recipe.lora, found))
        went_in.append(lora_file(f"LoRA {label}", inputs.adapter, recipe.strength, None))
    known = _linear(pair)
    names = sorted((name for name in known if (alone and _wanted(first, name)) or name in updates), key=by_depth)
    if not names:
        raise _nothing(first, list(known))
    return AnalysisPlan(
        first,
        pair,
        tuple(told),
        tuple(_job(name, known[name], pair, updates.get(name, {})) for name in names),
        tuple(dict.fromkeys(warnings)),
        identities,
        tuple(went_in),
    )


def _recipe(lora: str, settings: Mapping[str, Any]) -> Recipe:
    """Nothing is written, so what is odd about a LoRA is no reason to refuse it."""
    more = {"lora": lora, "method": METHOD, "force": True, "to": "same-as-input"}
    return Recipe.build({**settings, **more})


def _expert(recipe: Recipe) -> Any:
    """Which expert of Wan2.2, where no LoRA says it. Raises UsageError."""
    if recipe.expert is None and recipe.nested_source is None and len(expert_folders(recipe.source)) > 1:
        raise UsageError(
            "the source has two experts, and none is chosen",
            where=recipe.source,
            values=", ".join(folder.name for folder in expert_folders(recipe.source).values()),
            fix="use --expert high or low",
        )
    return recipe.expert


def _labels(loras: Sequence[str]) -> list[str]:
    """The names of the files, numbered where two are called the same."""
    stems = [Path(lora.removeprefix("zoo:")).stem for lora in loras]
    labels = [
        stem if stems.count(stem) == 1 else f"{stem} {stems[: at + 1].count(stem)}" for at, stem in enumerate(stems)
    ]
    if len(set(labels)) == len(labels):
        return labels
    return [f"{number} {stem}" for number, stem in enumerate(stems, start=1)]  # a file is called "style 1" by itself


def _wanted(recipe: Recipe, name: str) -> bool:
    return recipe.layers is None or re.search(recipe.layers, name) is not None


def _linear(pair: Pair) -> dict[str, tuple[int, int]]:
    """The linear layers that both models have, with their shapes."""
    source, target = pair.source, pair.target
    found = {}
    for name, shape in source.architecture.layers.items():
        param = f"{name}.weight"
        there = param in source.tensors and (target is None or param in target.tensors)
        alike = there and (target is None or target.tensors[param].shape == source.tensors[param].shape)
        if alike and source.architecture.role(name) in ("linear", None):
            found[name] = shape
    return found


def _nothing(recipe: Recipe, known: Sequence[str]) -> UsageError | MismatchError:
    if recipe.layers is not None:
        return UsageError(
            "no layer matches --layers",
            values=f"{recipe.layers!r}; layers are named like {', '.join(known[:4])}",
            fix="give a regular expression that matches such names, such as self_attn or ^blocks\\.0\\.",
        )
    return MismatchError("source and target have no linear layer in common", where=f"{recipe.source}, {recipe.target}")


def _job(name: str, shape: tuple[int, int], pair: Pair, updates: Mapping[str, LayerUpdate]) -> AnalysisJob:
    source = pair.source.tensors[f"{name}.weight"]
    target = None if pair.target is None else pair.target.tensors[f"{name}.weight"]
    added = {at: more for at, each in enumerate(pair.added) if (more := each.update(name)) is not None}
    own = {at: more for at, each in enumerate(pair.source_added) if (more := each.update(name)) is not None}
    weights = LayerJob(
        name=name,
        shape=shape,
        method=METHOD,
        params=PARAMS.model_dump(mode="json"),
        update=LayerUpdate(name, "lora", {}, 1.0, "", 0, (), shape),
        source=source,
        target=target,
        target_updates=added,
        source_updates=own,
        has_drift=target is not None or bool(added) or bool(own),
        round_to=None if target is None else common_dtype(source, target),
        rank=RankRule("fixed", 1),
        amount=1.0,
        dtype="float32",
        cost=0.0,
        peak_bytes=0,
    )
    return AnalysisJob(shape, _peak_bytes(shape, len(updates)), weights, updates)


def _peak_bytes(shape: tuple[int, int], loras: int) -> int:
    """While the weights are read and decomposed, or afterwards, in matrices of the shorter side alone."""
    (m, n), p = shape, min(shape)
    reading = max(costs.matrix_bytes(m, n, 4) + costs.matrix_bytes(p, p, 6), costs.matrix_bytes(m, n, 5))
    return max(reading, costs.matrix_bytes(p, p, 22 + 2 * loras)) + SMALL_CHANGE
