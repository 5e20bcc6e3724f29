"""The output stage: may the file be written, what goes into it, and what its header says.

Checked before any work, so that nothing is computed for a file that cannot be written.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraport.adapters.header import build_metadata, canonical_json
from loraport.engine.inputs import input_digests
from loraport.engine.keys import ADDED
from loraport.engine.options import RunOptions
from loraport.engine.plan import TransferPlan
from loraport.engine.results import TransferReport
from loraport.writable import check_apart, check_output, with_settings

if TYPE_CHECKING:
    from torch import Tensor

    from loraport.engine.worker import LayerResult

LOG = "run log"


def check_outputs(
    path: Path | None,
    plan: TransferPlan,
    options: RunOptions,
    also: Iterable[tuple[str, Path]] = (),
    beside: Mapping[str, Path] | None = None,
) -> None:
    """Raise FileError where one of the files to be written would replace another, an input, or one that nobody gave up.

    Args:
        path: the output, if one is written.
        plan: its files are inputs.
        options: where the run log goes, and whether existing files may be replaced.
        also: further files that the command reads, as (role, path).
        beside: what else is written, by its role.
    """
    inputs, written = [*input_files(plan), *also], list(written_files(path, options, beside))
    for role, file in written:
        check_output(file, inputs, overwrite=options.overwrite, what=role, log=role == LOG)
    check_apart(written)


def written_files(
    path: Path | None, options: RunOptions, beside: Mapping[str, Path] | None
) -> Iterator[tuple[str, Path]]:
    """The files that a run writes, as (role, path): output, run log, and those of `beside`. Arguments as above."""
    for role, file in {"output": path, LOG: log_path(path, options), **(beside or {})}.items():
        if file is not None:
            yield role, file


def log_path(path: Path | None, options: RunOptions) -> Path | None:
    """Where the run log goes: where it was told to, else beside the output; None for none."""
    if options.log == "off" or (path is None and options.log is None):
        return None
    if options.log is not None:
        return Path(options.log)
    assert path is not None
    return path.with_name(f"{path.stem}.run.jsonl")


def input_files(plan: TransferPlan) -> Iterator[tuple[str, Path]]:
    """Every file that the run reads, and what lies beside it and was read for it."""
    yield from with_settings("input LoRA", plan.adapter.path)
    for role, added in (("distillation LoRA", plan.added), ("LoRA of the source", plan.source_added)):
        for each in added:
            yield from with_settings(role, each.adapter.path)
    for role, side in (("source", plan.source), ("target", plan.target)):
        for file in {side.path} | {ref.file for ref in side.tensors.values()} if side is not None else ():
            yield from with_settings(role, file)


def render_output(
    plan: TransferPlan, results: "list[LayerResult]", report: TransferReport
) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """The output's tensors, at one rank so that no loader mis-scales a layer, and its header."""
    import torch  # which what is asked before the work has no need of

    from loraport.adapters.render import render_adapter

    rank = max(result.update.rank for result in results)
    layers = {result.report.name: result.update.padded(rank) for result in results}
    dtype = getattr(torch, plan.dtype)
    tensors = render_adapter(
        layers, plan.passthrough, plan.recipe.to, plan.source.architecture, plan.adapter.dialect, dtype
    )
    inputs = input_digests(results)
    told = ("layers", "rank_in", "rank_out", "energy_kept_min", "energy_kept_mean", "energy_kept_total")
    metadata = build_metadata(
        input_metadata=plan.adapter.metadata,
        recipe=_identity(plan, inputs),
        inputs=_told(inputs),
        method=plan.method,
        summary={name: getattr(report.summary, name) for name in told} | {"dropped": list(plan.dropped)},
        rank=rank,
        target_title=(plan.target or plan.source).architecture.title,
        expert=plan.recipe.expert,
    )
    return tensors, metadata


def _identity(plan: TransferPlan, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The settings that decide the result, without paths or anything else of this machine.

    Distillation LoRAs stand in it with the digest of what was used of each, so that their order does not matter.
    """
    recipe = plan.recipe
    sides = {"target_lora": plan.added, "source_lora": plan.source_added}
    added: dict[str, list[dict[str, Any]]] = {}
    for side, found in sides.items():
        told = [each.given.values() | {"digest": inputs.get(f"{side}.{at}")} for at, each in enumerate(found)]
        added[side] = sorted(
            ({name: value for name, value in each.items() if name != "file"} for each in told), key=canonical_json
        )
    own = {"source_lora": added["source_lora"]} if plan.source_added else {}
    return own | {
        "method": plan.method,
        "params": plan.params,
        "rank": str(plan.rank),
        "amount": recipe.amount,
        "strength": recipe.strength,
        "scale": recipe.scale,
        "layers": recipe.layers,
        "drop": recipe.drop,
        "to": recipe.to,
        "dtype": plan.dtype,
        "target_lora": added["target_lora"],
        "allow_partial": recipe.allow_partial,
        "expert": recipe.expert,
        "adapter": recipe.adapter,
    }


def _told(inputs: Mapping[str, str]) -> dict[str, str]:
    """The digests as the header has them: of several distillation LoRAs all, in whatever order they were given."""
    told = {role: digest for role, digest in inputs.items() if not role.startswith(ADDED)}
    for side in ADDED:
        added = sorted(digest for role, digest in inputs.items() if role.startswith(side))
        told |= {side.rstrip("."): " ".join(added)} if added else {}
    return told
