"""The second stage: layers are read and looked at. This brings torch along."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from loraport.checking import figures
from loraport.checking.headers import Headers
from loraport.checking.look import Looker, SeenLayer, look_job
from loraport.checking.results import LayerCheck, Quantity
from loraport.checking.sample import Chosen, choose
from loraport.containers.references import common_dtype
from loraport.core.operator import norm
from loraport.engine.executor import executor_for
from loraport.engine.layer import read_weight
from loraport.engine.options import RunOptions
from loraport.engine.reading import InputReader
from loraport.engine.surroundings import usual_torch
from loraport.store.digests import DigestMemo

_ELSEWHERE = 4
"""Layers that the LoRA leaves alone, of which some are read where its own are the same in both models."""


@dataclass(frozen=True)
class Weighed:
    """What the weights say of one LoRA.

    Attributes:
        figures: over all layers that were looked at, by key.
        layers: one by one, in the model's order.
        elsewhere: drift in layers that the LoRA leaves alone; None where it was not asked or there are none.
    """

    figures: Mapping[str, Quantity]
    layers: tuple[LayerCheck, ...]
    elsewhere: float | None


@usual_torch()
def weigh(found: Mapping[int, Headers], options: RunOptions, *, deep: bool) -> dict[int, Weighed]:
    """Look at layers of several LoRAs on one pair of models. A layer that several of them change is read once.

    Args:
        found: what the first stage found, by the number of the LoRA; all of one pair of models.
        options: device, workers, memory.
        deep: all layers, decomposed.

    Raises:
        FileError: a file cannot be read, or changed meanwhile.
        NumericalError: a weight holds NaN or infinity.
        MismatchError: the source's weight is all zeros and the target's is not.
    """
    identities = {file: state for headers in found.values() for file, state in headers.plan.identities.items()}
    reader = InputReader(DigestMemo(None), identities)
    samples = {number: choose(headers.plan.jobs, deep=deep) for number, headers in found.items()}
    recipe = next(iter(found.values())).plan.recipe
    looker = Looker(reader, recipe.method, recipe.params)
    layers: dict[str, dict[int, Chosen]] = {}
    for number, sample in samples.items():
        for chosen in sample:
            layers.setdefault(chosen.job.name, {})[number] = chosen
    orders = []
    for wanted in layers.values():
        first = next(iter(wanted.values()))
        deepest = replace(first, decompose=any(chosen.decompose for chosen in wanted.values()))
        orders.append(look_job(deepest, {number: chosen.job for number, chosen in wanted.items()}))
    looked = {seen.chosen.job.name: seen for seen in executor_for(options).run(orders, looker)}
    return {number: _of_one(found[number], samples[number], looked, number, reader) for number in found}


def _of_one(
    headers: Headers, sample: Sequence[Chosen], looked: Mapping[str, SeenLayer], number: int, reader: InputReader
) -> Weighed:
    seen = [looked[chosen.job.name] for chosen in sample]
    sums = [one.pair | one.loras.get(number, {}) for one in seen]
    layers = tuple(
        LayerCheck(each.job.name, each.job.shape, each.kind, each.depth, figures.values(own), figures.nulls(own))
        for each, own in zip(sample, sums, strict=True)
    )
    pooled = {figure.key: figure for figure in figures.pooled(sums)}
    same = "drift" in pooled and pooled["drift"].value == 0.0
    return Weighed(pooled, layers, _drift_elsewhere(headers, reader) if same else None)


def _drift_elsewhere(headers: Headers, reader: InputReader) -> float | None:
    """Drift of a few layers of the model that the LoRA does not change, all together."""
    plan = headers.plan
    if plan.target is None:
        return None
    mine = {job.name for job in plan.jobs}
    others = [name for name in plan.source.architecture.layers if name not in mine]
    pairs = [(plan.source.tensors.get(f"{name}.weight"), plan.target.tensors.get(f"{name}.weight")) for name in others]
    both = [(one, two) for one, two in pairs if one is not None and two is not None and one.shape == two.shape]
    moved, whole = 0.0, 0.0
    cpu = torch.device("cpu")
    for one, two in both[:: max(len(both) // _ELSEWHERE, 1)][:_ELSEWHERE]:
        dtype = common_dtype(one, two)
        source = read_weight(reader, one, dtype, cpu)
        moved += norm(read_weight(reader, two, dtype, cpu) - source) ** 2
        whole += norm(source) ** 2
    return (moved / whole) ** 0.5 if whole > 0.0 else None
