"""A part of the drift as a change of a checkpoint, layer by layer: computed when its turn has come, and merged in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraport.analysis.plan import AnalysisPlan
from loraport.containers.arrange import refuse_shared
from loraport.containers.dtypes import PlainFormat
from loraport.containers.layout import layout_of
from loraport.containers.locate import locate
from loraport.containers.references import file_identity
from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import Operator
from loraport.engine.events import Listener
from loraport.engine.job import LayerJob
from loraport.engine.layer import load_layer
from loraport.engine.options import RunOptions
from loraport.engine.reading import InputReader
from loraport.engine.run_cache import kept_layers, open_cache
from loraport.merging.changes import Change, Term, as_stored, gone_with
from loraport.merging.plan import MergePlan, whole_tensors
from loraport.merging.report import MergeReport
from loraport.merging.run import run_merge
from loraport.methods import registry
from loraport.methods.casa.routing import DriftRouting
from loraport.store.store import Store

Part = Callable[[SpectralBasis, DriftRouting, Operator | None], Tensor]
"""Of a layer's basis, the routing of its drift and the drift: the part that is meant, with the long side downwards."""


@dataclass(frozen=True)
class PartOfDrift(Change):
    """What an intervention adds to one layer of the target.

    Args:
        job: the two weights, as a job of CASA without a LoRA.
        what: name of the intervention, with its settings.
        part: of the drift that is meant, with the long side downwards.
        factor: how often it is added.
        store: where decompositions are kept.
        reader: of the input files.
        keep: whether this one is.
    """

    job: LayerJob
    what: str
    part: Part = field(repr=False)
    factor: float
    store: Store = field(repr=False)
    reader: InputReader = field(repr=False)
    keep: bool = field(repr=False)

    def load(self) -> LowRank:
        """The change. Raises as `engine.layer.load_layer`."""
        job, refs = self.job, self.job.refs
        digests = {role: self.reader.digest(ref, hold=True) for role, ref in refs.items()}
        method, params = registry.resolve(job.method, job.params)
        cpu = torch.device("cpu")
        try:
            nothing = LowRank.zeros(*job.shape)
            layer = load_layer(job, method, params, digests, self.store, self.reader, cpu, self.keep, nothing).inputs
            routing = DriftRouting.from_tensors(layer.prepared or method.prepare(layer, params))
        finally:
            self.reader.drop(refs.values())
        wide = job.shape[0] < job.shape[1]
        basis, drift = layer.require_basis(), layer.drift
        if wide:
            basis, drift = basis.T, None if drift is None else drift.T
        change = self.part(basis, routing, drift).mul_(self.factor)
        return LowRank.from_dense(change.T.contiguous() if wide else change)


def write(
    plan: AnalysisPlan,
    output: str | Path,
    part: Part,
    factor: float,
    record: dict[str, Any],
    quantised: tuple[bool, PlainFormat | None],
    options: RunOptions,
    on_event: Listener,
) -> MergeReport:
    """Write the target of a plan with a change of each of its layers.

    Args:
        plan: the layers.
        output: a file for a target in one file, else a folder.
        part: of the drift that the change is made of.
        factor: how often it is added.
        record: what is done, in plain values.
        quantised: whether fp8 is written anew, and the plain format of other quantised weights.
        options: cache, and `overwrite`.
        on_event: called with every event.

    Raises:
        LoraportError: as `merging.run.run_merge` and `engine.layer.load_layer`.
    """
    target, recipe = plan.pair.target, plan.recipe
    assert target is not None
    warnings = list(plan.warnings)
    store, reader = open_cache(plan.identities, options, warnings.append)
    keep = kept_layers([job.weights for job in plan.jobs], store, warnings.append)
    terms = []
    for job in plan.jobs:
        change = PartOfDrift(job.weights, str(record), part, factor, store, reader, job.name in keep)
        param = f"{job.name}.weight"
        terms.append((param, Term(job.name, target.tensors[param].rows, change, 1.0)))
    assert recipe.target is not None
    layout = layout_of(locate(recipe.target, nested=recipe.nested_target, expert=recipe.expert))
    tensors = as_stored(whole_tensors(target, terms), *quantised)
    refuse_shared([put.ref for tensor in tensors for put in tensor.puts])
    gone = gone_with(tensors, layout)
    identities = {file: file_identity(file) for file in (*layout.files, *layout.beside)}
    merge = MergePlan(
        target, (), layout, tensors, gone, (), tuple(warnings), {**plan.identities, **identities}, (record,)
    )
    try:
        return run_merge(merge, output, overwrite=options.overwrite, on_event=on_event)
    finally:
        reader.memo.flush()
