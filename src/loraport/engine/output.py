"""The output stage: may the file be written, what goes into it, and what its header says.

Checked before any work, so that nothing is computed for a file that cannot be written.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraport.adapters.header import build_metadata, canonical_json
from loraport.adapters.render import render_adapter
from loraport.engine.plan import TransferPlan
from loraport.engine.recipe import RunOptions
from loraport.engine.results import TransferReport
from loraport.engine.worker import LayerResult
from loraport.errors import FileError


def check_free(path: Path, plan: TransferPlan, options: RunOptions) -> None:
    """Raise FileError where the output exists, is a folder, or would replace an input."""
    if path.is_dir():
        raise FileError("the output is a folder", where=str(path), fix="give the name of a file")
    if path.exists() and not options.overwrite:
        raise FileError("the output file exists already", where=str(path), fix="choose another name or add --overwrite")
    for role, file in _input_files(plan):
        if path.exists() and path.resolve() == file.resolve():
            raise FileError(f"the output would replace the {role}", where=str(path), fix="choose another name")


def _input_files(plan: TransferPlan) -> Iterator[tuple[str, Path]]:
    yield "input LoRA", plan.adapter.path
    if plan.distill is not None:
        yield "distillation LoRA", plan.distill.path
    for role, side in (("source", plan.source), ("target", plan.target)):
        for file in {ref.file for ref in side.tensors.values()} if side is not None else ():
            yield role, file


def render_output(
    plan: TransferPlan, results: list[LayerResult], report: TransferReport
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The output's tensors, at one rank so that no loader mis-scales a layer, and its header."""
    rank = max(result.update.rank for result in results)
    layers = {result.report.name: result.update.padded(rank) for result in results}
    dtype = getattr(torch, plan.dtype)
    tensors = render_adapter(
        layers, plan.carried, plan.recipe.to, plan.source.architecture, plan.adapter.dialect, dtype
    )
    told = ("layers", "rank_in", "rank_out", "energy_kept_min", "energy_kept_mean", "energy_kept_total")
    metadata = build_metadata(
        input_metadata=plan.adapter.metadata,
        recipe=_identity(plan),
        inputs=_input_digests(plan, results),
        method=plan.method,
        summary={name: report.summary[name] for name in told} | {"dropped": list(plan.dropped)},
        rank=rank,
        target_title=(plan.target or plan.source).architecture.title,
    )
    return tensors, metadata


def _identity(plan: TransferPlan) -> dict[str, Any]:
    """The settings that decide the result, without paths or anything else of this machine."""
    recipe = plan.recipe
    strength = recipe.target_lora_parts()
    return {
        "method": plan.method,
        "params": plan.params,
        "rank": str(plan.rank),
        "amount": recipe.amount,
        "layers": recipe.layers,
        "drop": recipe.drop,
        "to": recipe.to,
        "dtype": plan.dtype,
        "target_lora_strength": None if strength is None else strength[1],
        "allow_partial": recipe.allow_partial,
        "expert": recipe.expert,
        "adapter": recipe.adapter,
    }


def _input_digests(plan: TransferPlan, results: list[LayerResult]) -> dict[str, str]:
    """One SHA-256 for the tensors of each input that were used, over the digests of the tensors by name."""
    roles: dict[str, dict[str, str]] = {}
    for result in results:
        for role, digest in result.digests.items():
            owner = role if role in ("source", "target") else "target_lora" if role.startswith("distill") else "lora"
            roles.setdefault(owner, {})[f"{result.report.name}/{role}"] = digest
    return {owner: hashlib.sha256(canonical_json(found).encode()).hexdigest() for owner, found in roles.items()}
