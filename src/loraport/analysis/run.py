"""An analysis carried out: layers through an executor, each kept in the cache, so that the same command goes on."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from loraport.analysis.layer import LayerTensors, Stored, analyse, project
from loraport.analysis.plan import PARAMS, AnalysisJob, AnalysisPlan
from loraport.analysis.results import LayerAnalysis, PairAnalysis, checked
from loraport.containers.references import rounding_floor
from loraport.core.lowrank import LowRank
from loraport.core.operator import norm
from loraport.engine.events import LayerDone, Listener, Warnings
from loraport.engine.executor import Slot, executor_for, threads_for
from loraport.engine.inputs import joined_digests, model_files
from loraport.engine.job import LayerJob
from loraport.engine.keys import matrices_key
from loraport.engine.kinship import unrelated
from loraport.engine.layer import load_layer
from loraport.engine.on_device import with_the_cpu_behind
from loraport.engine.options import RunOptions
from loraport.engine.reading import InputReader
from loraport.engine.results import InputFile, LayerReport
from loraport.engine.run_cache import kept_layers, open_cache
from loraport.engine.surroundings import usual_torch
from loraport.errors import FileError
from loraport.machine import cores
from loraport.methods import registry
from loraport.methods.casa.routing import DriftRouting
from loraport.store.index import entry_key
from loraport.store.store import Store
from loraport.version import __version__

VERSION = 4
"""Raised whenever the same layer would give other figures than before."""


@dataclass(frozen=True)
class AnalysedLayer:
    """A finished layer.

    Attributes:
        layer: everything that is told of it.
        digests: of the tensors it was made from, by role.
        warnings: sentences for the user.
        device: where it was computed.
    """

    layer: LayerAnalysis
    digests: dict[str, str]
    warnings: tuple[str, ...]
    device: str


@dataclass(frozen=True)
class Analyser:
    """A function of one job and the slot that it is done in. Picklable.

    Args:
        store: where bases, routings and finished layers are kept.
        reader: of the input files.
        keep: layers whose decompositions go into the store.
    """

    store: Store
    reader: InputReader
    keep: frozenset[str]

    def __call__(self, job: AnalysisJob, slot: Slot) -> AnalysedLayer:
        """Do one job; the CPU takes over where a device has too little memory."""
        return with_the_cpu_behind(partial(self._run, job), slot.device, threads=threads_for(job, "cpu", cores()))[0]

    def result_keys(self, job: AnalysisJob) -> list[str | None]:
        """Under which key the job's result is kept; None where a digest is not remembered. Nothing is read."""
        digests = self.reader.known_digests(job.refs)
        return [None if digests is None else _key(job, digests)]

    def elsewhere(self, store: Store, reader: InputReader) -> "Analyser":
        """The same work on a machine that is sent what it reads."""
        return Analyser(store, reader, self.keep if store.takes("basis") else frozenset())

    def _run(self, job: AnalysisJob, device: torch.device) -> AnalysedLayer:
        began = time.perf_counter()
        if device.type == "mps":  # most of the work are decompositions, which torch has not got there
            device = torch.device("cpu")
        refs = job.refs
        try:
            digests = {role: self.reader.digest(ref, hold=role in ("source", "target")) for role, ref in refs.items()}
            key = _key(job, digests)
            layer = self._kept(key)
            cached = layer is not None
            if layer is None:
                layer = analyse(project(*self._tensors(job, digests, device), seed=int(key[:15], 16)))
                self.store.put("result", key, {}, {"analysis": json.dumps(asdict(layer))})
        finally:
            self.reader.drop(refs.values())
        layer = replace(layer, seconds=round(time.perf_counter() - began, 3), cached=cached)
        said = tuple(problem.message for problem in self.store.take_problems())
        return AnalysedLayer(layer, digests, said, str(device))

    def _kept(self, key: str) -> LayerAnalysis | None:
        kept = self.store.get("result", key, expect=None)
        try:
            return None if kept is None else checked(LayerAnalysis, json.loads(kept.meta["analysis"]))
        except (FileError, KeyError, ValueError):
            return None

    def _tensors(self, job: AnalysisJob, digests: dict[str, str], device: torch.device) -> tuple[LayerTensors, Any]:
        weights = job.weights
        method, params = registry.resolve(weights.method, weights.params)
        updates = {label: self.reader.load(update).to(device=device) for label, update in job.updates.items()}
        nothing = LowRank.zeros(*job.shape)
        keep = job.name in self.keep
        layer = load_layer(weights, method, params, digests, self.store, self.reader, device, keep, nothing).inputs
        basis = layer.require_basis()
        routing = DriftRouting.from_tensors(layer.prepared or method.prepare(layer, params))
        stored = stored_as(weights, norm(basis.S))
        return LayerTensors(job.name, job.shape, basis, routing, layer.drift, updates, stored), params


def stored_as(weights: LayerJob, size: float) -> Stored | None:
    """How the weights are stored, as far as rounding follows from it.

    Args:
        weights: the layer.
        size: norm of the source's weight.
    """
    source, target = weights.source, weights.target
    if source is None or target is None:
        return None
    rms = size / (weights.shape[0] * weights.shape[1]) ** 0.5
    floors = [rounding_floor(ref, rms) for ref in (source, target)]
    plain = source.codec == target.codec == "raw" and source.dtype == target.dtype
    return Stored(source.dtype if plain else None, ((floors[0] ** 2 + floors[1] ** 2) / 2) ** 0.5)


def _key(job: AnalysisJob, digests: dict[str, str]) -> str:
    method, params = registry.resolve(job.weights.method, job.weights.params)
    loras = [
        {
            "label": label,
            "digests": {role: digests[f"lora {label} {role}"] for role in update.refs},
            "read": [update.kind, update.scale, update.rows, dict(update.settings)],
        }
        for label, update in job.updates.items()
    ]
    return entry_key(
        {
            "analysis": VERSION,
            "name": job.name,
            "pair": matrices_key(method, params, job.weights, digests),
            "stored": [ref.dtype for ref in (job.weights.source, job.weights.target) if ref is not None],
            "loras": loras,
        }
    )


@usual_torch()
def run_analysis(plan: AnalysisPlan, options: RunOptions, on_event: Listener) -> PairAnalysis:
    """Look at every layer.

    Args:
        plan: what is looked at.
        options: how to use the machine.
        on_event: told about every step, from this thread.

    Raises:
        NumericalError: a tensor holds NaN or infinity, or no decomposition succeeded.
        MismatchError: the source's weight is all zeros and the target's is not.
        FileError: an input changed meanwhile.
    """
    began = time.perf_counter()
    warn = Warnings(on_event)
    for message in plan.warnings:
        warn(message)
    executor = executor_for(options, on_event)
    store, reader = open_cache(plan.identities, options, warn)
    work = Analyser(store, reader, kept_layers([job.weights for job in plan.jobs], store, warn))
    jobs = {job.name: job for job in plan.jobs}
    total, done = sum(job.cost for job in plan.jobs), 0.0
    found: dict[str, LayerAnalysis] = {}
    digests: dict[str, dict[str, str]] = {}
    try:
        for result in executor.run(plan.jobs, work):
            job = jobs[result.layer.name]
            found[job.name], digests[job.name] = result.layer, result.digests
            done += job.cost
            for message in result.warnings:
                warn(message)
            on_event(LayerDone(_report(job, result), len(found), len(jobs), done, total))
        reader.check_unchanged()
    except BaseException:
        store.sweep()
        raise
    finally:
        reader.memo.flush()
    layers = tuple(found[job.name] for job in plan.jobs)
    for message in _doubts(layers):
        warn(message)
    inputs = _with_digests(plan, digests)
    return _pair(plan, layers, inputs, tuple(warn.told), time.perf_counter() - began)


def _doubts(layers: tuple[LayerAnalysis, ...]) -> list[str]:
    drifts = {layer.name: layer.drift.relative.value for layer in layers}
    if not any(drifts.values()):
        return ["source and target are equal in every layer that was looked at; did you name the same model twice?"]
    said = unrelated(drifts)
    if said is None:
        return []
    return [f"source and target do not look like versions of one model, so the figures mean little: {said}"]


def _report(job: AnalysisJob, result: AnalysedLayer) -> LayerReport:
    """For the progress bar, which knows layers by it."""
    return LayerReport(
        name=job.name,
        shape=job.shape,
        method="analyze",
        rank_in=max((update.rank for update in job.updates.values()), default=0),
        rank_out=0,
        energy_kept=1.0,
        stats={"drift_rel": result.layer.drift.relative.value},
        seconds=result.layer.seconds,
        cached=result.layer.cached,
        device=result.device,
    )


def _with_digests(plan: AnalysisPlan, layers: Mapping[str, Mapping[str, str]]) -> tuple[InputFile, ...]:
    """What went in, with the digests of what was used of it, as a transfer has them: layer -> role -> digest."""
    of_models = ((job.name, {role: layers[job.name][role] for role in job.weights.refs}) for job in plan.jobs)
    files = list(model_files(plan.pair, joined_digests(of_models)))
    for lora, told in zip(plan.loras, plan.inputs[len(files) :], strict=True):
        own = [(job.name, job.updates[lora.label].refs) for job in plan.jobs if lora.label in job.updates]
        of_lora = ((name, {role: layers[name][f"lora {lora.label} {role}"] for role in refs}) for name, refs in own)
        found = joined_digests(of_lora)
        files.append(replace(told, digest=found["lora"], header=None) if "lora" in found else told)
    return tuple(files)


def _pair(
    plan: AnalysisPlan,
    layers: tuple[LayerAnalysis, ...],
    inputs: tuple[InputFile, ...],
    warnings: tuple[str, ...],
    seconds: float,
) -> PairAnalysis:
    pair = plan.pair
    return PairAnalysis(
        source=str(pair.source.path),
        source_title=pair.source.architecture.title,
        target=None if pair.target is None else str(pair.target.path),
        target_title=(pair.target or pair.source).architecture.title,
        target_lora=tuple(f"{each.given.file} at strength {each.given.strength:g}" for each in pair.added),
        loras=plan.loras,
        layers=layers,
        settings={name: float(getattr(PARAMS, name)) for name in ("tau", "q_dom", "q_act", "head_energy")},
        warnings=warnings,
        version=__version__,
        seconds=round(seconds, 3),
        inputs=inputs,
        flags=plan.recipe.flags("method", "to", "force"),
    )
