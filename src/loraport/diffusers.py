"""Transfer a LoRA to a diffusers pipeline in memory and load it there, in one call.

    from loraport.diffusers import load_transferred_lora

    report = load_transferred_lora(pipe, "style.safetensors", source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    pipe.set_adapters("style", 0.8)

This writes the pipeline's weights to a temporary file, calls `loraport.transfer`, and gives the result to the
pipeline's own loader. Whatever is not described here is as in `loraport.transfer`.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from loraport.api import transfer_experts
from loraport.arguments import check_arguments
from loraport.containers.names import EXPERTS, Expert
from loraport.engine.events import Listener, ignore
from loraport.engine.experts.asked import Experts, outputs_of
from loraport.engine.experts.report import ExpertsReport
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe
from loraport.engine.results import TransferReport
from loraport.engine.run import run
from loraport.errors import MismatchError, UsageError, first_line
from loraport.sampling.in_memory import activate, active_adapters, write_network
from loraport.writable import check_output

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

    Pipeline: TypeAlias = DiffusionPipeline
    Network: TypeAlias = ModelMixin
else:
    Pipeline = Network = object  # named for type checkers only, so that diffusers loads late

PathLike = str | Path
PARTS: dict[Expert, str] = {"high": "transformer", "low": "transformer_2"}


def load_transferred_lora(
    pipe: Pipeline,
    lora: PathLike,
    *,
    source: PathLike,
    target: PathLike | None = None,
    adapter_name: str | None = None,
    hotswap: bool = False,
    expert: Literal["high", "low"] | None = None,
    experts: Experts | None = None,
    output: PathLike | None = None,
    settings: Mapping[str, Any] | None = None,
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> TransferReport | ExpertsReport:
    """Transfer a LoRA to the model of a pipeline and load it there, as an adapter at strength 1.

    The target is the pipeline as it computes now, with the adapters active on it, such as a distillation LoRA. They
    stay active beside the new one. Afterwards `set_adapters`, `fuse_lora`, `unload_lora_weights` and the like work as
    for any LoRA. The pipeline may be offloaded or quantised. Meanwhile its weights are written to a temporary folder
    (set by the environment variable TMPDIR), which takes as much space as the unquantised model, unless `target` names
    files that hold them.

    Args:
        pipe: diffusers pipeline with a transformer, of a family that loraport knows.
        lora: LoRA, as in `loraport.transfer`.
        source: model that the LoRA was trained on: files or a hub id.
        target: files or a hub id with the weights of the pipeline, if you have them unquantised, or have no room for
            the temporary ones. Nobody checks that they are the same.
        adapter_name: name of the new adapter. By default, the name of the LoRA's file, with _ for everything but
            letters and digits.
        hotswap: replace the adapter of this name, as the argument of `load_lora_weights` does. That adapter is then not
            part of the target.
        expert: the only expert of Wan2.2 to get a LoRA. By default, each transformer of the pipeline gets one.
        experts: separate files for the low-noise expert, as in `loraport.transfer_experts`.
        output: also keep the file; for a pair, named as `loraport.transfer_experts` names them.
        settings: further arguments of `loraport.transfer` by name, such as `{"method": "direct", "rank": 64}`.
        options: how to use the machine.
        on_event: called with every `loraport.engine.events.Event`.

    Returns:
        The report of the transfer; for a pipeline with two transformers, that of both. Its `load` says how the adapter
        is named.

    Raises:
        UsageError: not a pipeline with a transformer and LoRAs, or the name is taken or not valid.
        LoraportError: as `loraport.transfer`. The pipeline is then as it was.
    """
    check_arguments(load_transferred_lora, locals())
    options, parts = options or RunOptions(), _parts(pipe, expert)
    name = re.sub(r"\W", "_", Path(lora).stem) if adapter_name is None else adapter_name
    _check_name(name, parts, hotswap=hotswap)
    before = {part: active_adapters(network) for part, network in parts.items()}
    if target is not None and any(set(found) - {name} for found in before.values()):
        raise UsageError(
            "the pipeline has active adapters that are not in the files of the target",
            values=", ".join(dict.fromkeys(one for found in before.values() for one in found)),
            fix="leave target out, so that they count, or call disable_lora() first",
        )
    kept = None if output is None else Path(output)
    both = len(parts) == 2
    if kept is not None:  # before anything is written for it
        for path in outputs_of(kept).values() if both else (kept,):
            check_output(path, [("input LoRA", Path(lora))], overwrite=options.overwrite)
    given = {"lora": lora, "source": source, "target": target, "expert": expert, **(settings or {})}
    # What was loaded of a file may be mapped from it still, and then Windows does not remove it.
    with tempfile.TemporaryDirectory(prefix="loraport-", ignore_cleanup_errors=True) as place:
        notes: tuple[str, ...] = ()
        if target is None:
            for part, network in parts.items():
                notes += write_network(network, Path(place, "target", part), without=name if hotswap else None)
            given["target"] = Path(place, "target") if both else Path(place, "target", next(iter(parts)))
        recipe = Recipe.build(given)
        path = Path(place, "lora.safetensors") if kept is None else kept
        if kept is None and options.log is None:
            options = options.model_copy(update={"log": "off"})
        profile = recipe.model_copy(update={"to": "diffusers"}) if "to" not in (settings or {}) else recipe
        reports: dict[str, TransferReport]
        if both:
            found = transfer_experts(profile, experts, output=path, options=options, on_event=on_event)
            reports = {PARTS[one]: report for one, report in found.reports.items()}
        else:
            reports = {next(iter(parts)): run(make_plan(profile), path, options, on_event)}
        _load(pipe, parts, reports, name, hotswap=hotswap)
        for part, network in parts.items():
            activate(network, tuple(dict.fromkeys((*before[part], name))))
    told = {part: _told(report, name, kept, notes) for part, report in reports.items()}
    if both:
        return replace(found, reports={one: told[PARTS[one]] for one in EXPERTS}, warnings=(*found.warnings, *notes))
    return next(iter(told.values()))


def _parts(pipe: Pipeline, expert: Expert | None) -> dict[str, Network]:
    """The transformers that get a LoRA, by their names in the pipeline."""
    found = {part: getattr(pipe, part, None) for part in PARTS.values()}
    there = {part: network for part, network in found.items() if network is not None}
    if not there or not hasattr(pipe, "load_lora_weights"):
        raise UsageError(
            "this is not a pipeline with a transformer and a LoRA loader",
            values=f"a {type(pipe).__module__}.{type(pipe).__name__}",
            fix="give a diffusers pipeline of a family that loraport knows",
        )
    if expert is not None and len(there) == 2:
        return {PARTS[expert]: there[PARTS[expert]]}
    return there


def _check_name(name: str, parts: Mapping[str, Network], *, hotswap: bool) -> None:
    if not name or "." in name:
        raise UsageError(
            "no adapter can have this name", values=repr(name), fix="give a name without dots: adapter_name="
        )
    taken = [part for part, network in parts.items() if name in (getattr(network, "peft_config", None) or {})]
    if taken and not hotswap:
        raise UsageError(
            "the pipeline already has an adapter of this name", where=", ".join(taken), values=name,
            fix="choose another with adapter_name=, replace it with hotswap=True, or call delete_adapters first",
        )  # fmt: skip
    if hotswap and len(taken) < len(parts):
        raise UsageError(
            "the pipeline has no adapter of this name to replace", values=name,
            fix="name an existing one with adapter_name=, or leave hotswap out",
        )  # fmt: skip


def _load(
    pipe: Pipeline, parts: Mapping[str, Network], reports: Mapping[str, TransferReport], name: str, *, hotswap: bool
) -> None:
    """Have the pipeline load the files, all or none."""
    for part, report in reports.items():
        assert report.output is not None
        second = {"load_into_transformer_2": True} if part == PARTS["low"] else {}
        try:
            pipe.load_lora_weights(
                str(report.output.parent), weight_name=report.output.name, adapter_name=name, hotswap=hotswap, **second
            )
        except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
            for other in () if hotswap else parts.values():
                if name in (getattr(other, "peft_config", None) or {}):
                    other.delete_adapters(name)
            raise MismatchError(
                "diffusers does not load the transferred LoRA", where=part,
                values=first_line(error)[:200],
                fix=
                    "call pipe.enable_lora_hotswap(target_rank=...) before the first LoRA, or use the same rank "
                    "for both"
                if hotswap
                else "keep the file with output= and report this, with the versions of diffusers and peft",
            ) from error  # fmt: skip


def _told(report: TransferReport, name: str, kept: Path | None, notes: tuple[str, ...]) -> TransferReport:
    """The report, with what is true of it now that the LoRA is on the pipeline."""
    return replace(
        report,
        output=None if kept is None else report.output,
        load=(f"diffusers: loaded as {name!r}: pipe.set_adapters({name!r}, 1.0)",),
        warnings=(*report.warnings, *notes),
    )
