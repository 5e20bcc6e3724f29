"""Checkpoints in which a part of the drift is taken away or made stronger, layer by layer, in the target's own layout.

The files are written as a merge writes them: all of them or none, the same command again goes on, and what is not
touched stays bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraport.analysis.interventions import nondominant_drift, strongest_head_blocks
from loraport.analysis.plan import AnalysisPlan, make_analysis_plan
from loraport.containers.dtypes import PlainFormat
from loraport.containers.layout import layout_of
from loraport.containers.locate import locate
from loraport.containers.references import file_identity
from loraport.containers.rewrite import refuse_shared
from loraport.core.basis import SpectralBasis
from loraport.core.lowrank import LowRank
from loraport.core.operators import Operator
from loraport.engine.events import Listener, ignore
from loraport.engine.job import LayerJob
from loraport.engine.keys import references
from loraport.engine.layer import load_layer
from loraport.engine.reading import InputReader
from loraport.engine.recipe import RunOptions
from loraport.engine.run import kept_layers, open_cache
from loraport.errors import UsageError
from loraport.merging.changes import Change, Term, as_stored, gone_with
from loraport.merging.plan import MergePlan, whole_tensors
from loraport.merging.run import MergeReport, run_merge
from loraport.methods import registry
from loraport.methods.casa.routing import DriftRouting
from loraport.store.store import Store

PathLike = str | Path
Part = Callable[[SpectralBasis, DriftRouting, Operator | None], Tensor]


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
        job, refs = self.job, references(self.job)
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


def remove_drift(
    source: PathLike,
    target: PathLike,
    output: PathLike,
    *,
    quantile: float = 0.5,
    nested_source: str | None = None,
    nested_target: str | None = None,
    architecture: str = "auto",
    expert: str | None = None,
    layers: str | None = None,
    requantize: bool = False,
    dequantize: PlainFormat | None = None,
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> MergeReport:
    """Write the target without the drift outside of its dominant directions (Eq. 22 of the paper).

    Args:
        source: the model that the target was made from.
        target: the distilled model, a checkpoint.
        output: a file for a target in one file, else a folder.
        quantile: of the head directions' densities; what is below counts as non-dominant.
        nested_source: part of the source to read.
        nested_target: part of the target to change.
        architecture: family of both, where that is not to be recognised.
        expert: which expert of Wan2.2, of folders that hold two.
        layers: regular expression; other layers stay as they are.
        requantize: also write weights of fp8, which are rounded anew.
        dequantize: the format in which other quantised weights are written, as plain numbers.
        options: cache, and `overwrite`.
        on_event: called with every `loraport.engine.events.Event`.

    Raises:
        LoraportError: see `loraport.errors`; what stood under the output's names then still does.
    """
    _check_share("quantile", quantile)

    def part(basis: SpectralBasis, routing: DriftRouting, drift: Operator | None) -> Tensor:
        return nondominant_drift(basis, routing, drift, quantile)

    plan = make_analysis_plan([], _settings(source, target, nested_source, nested_target, architecture, expert, layers))
    record = {"intervention": "remove-drift", "quantile": quantile, "layers": layers}
    return _write(plan, output, part, -1.0, record, (requantize, dequantize), options or RunOptions(), on_event)


def amplify_head(
    source: PathLike,
    target: PathLike,
    output: PathLike,
    *,
    share: float = 0.05,
    factor: float = 2.0,
    nested_source: str | None = None,
    nested_target: str | None = None,
    architecture: str = "auto",
    expert: str | None = None,
    layers: str | None = None,
    requantize: bool = False,
    dequantize: PlainFormat | None = None,
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> MergeReport:
    """Write the target with the strongest entries of the drift within the head made stronger (B.2.2 of the paper).

    Args:
        source: the model that the target was made from.
        target: the distilled model, a checkpoint.
        output: a file for a target in one file, else a folder.
        share: of the entries within the head, those of the largest energy.
        factor: what they are multiplied by; 1 changes nothing, 0 takes them out. The paper does not say its own.
        nested_source: part of the source to read.
        nested_target: part of the target to change.
        architecture: family of both, where that is not to be recognised.
        expert: which expert of Wan2.2, of folders that hold two.
        layers: regular expression; other layers stay as they are.
        requantize: also write weights of fp8, which are rounded anew.
        dequantize: the format in which other quantised weights are written, as plain numbers.
        options: cache, and `overwrite`.
        on_event: called with every `loraport.engine.events.Event`.

    Raises:
        LoraportError: see `loraport.errors`; what stood under the output's names then still does.
    """
    _check_share("share", share)

    def part(basis: SpectralBasis, routing: DriftRouting, drift: Operator | None) -> Tensor:
        return strongest_head_blocks(basis, routing, share)

    plan = make_analysis_plan([], _settings(source, target, nested_source, nested_target, architecture, expert, layers))
    record = {"intervention": "amplify-head", "share": share, "factor": factor, "layers": layers}
    return _write(plan, output, part, factor - 1.0, record, (requantize, dequantize), options or RunOptions(), on_event)


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"the {name} is a share", values=f"{value:g}", fix=f"give a {name} from 0 to 1")


def _settings(
    source: PathLike,
    target: PathLike,
    nested_source: str | None,
    nested_target: str | None,
    architecture: str,
    expert: str | None,
    layers: str | None,
) -> dict[str, Any]:
    return {
        "source": source,
        "target": target,
        "nested_source": nested_source,
        "nested_target": nested_target,
        "architecture": architecture,
        "expert": expert,
        "layers": layers,
    }


def _write(
    plan: AnalysisPlan,
    output: PathLike,
    part: Part,
    factor: float,
    record: dict[str, Any],
    quantised: tuple[bool, PlainFormat | None],
    options: RunOptions,
    on_event: Listener,
) -> MergeReport:
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
