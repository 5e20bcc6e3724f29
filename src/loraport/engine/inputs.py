"""What went into a transfer: files, what they are, how large, and the digests of what was used of them."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.header import canonical_json
from loraport.adapters.kinds import KINDS
from loraport.adapters.update import LayerUpdate
from loraport.engine.keys import ADDED
from loraport.engine.match import Pair
from loraport.engine.plan import TransferPlan
from loraport.engine.results import InputFile
from loraport.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from loraport.engine.worker import LayerResult  # and torch

KINDS_TOLD = 3


def inputs_of(plan: TransferPlan, results: "Iterable[LayerResult]") -> Iterator[InputFile]:
    """Every input of a run.

    Args:
        plan: the run.
        results: its layers; without any, no digests are known.
    """
    digests = input_digests(results)
    yield lora_file("LoRA", plan.adapter, plan.recipe.strength, digests.get("lora"))
    yield from model_files(plan, digests)


def model_files(pair: Pair | TransferPlan, digests: Mapping[str, str]) -> Iterator[InputFile]:
    """The two models, each followed by the LoRAs that are a part of it.

    Args:
        pair: the models.
        digests: of `input_digests`, as far as they are known.
    """
    yield _model("source", pair.source, digests)
    for at, each in enumerate(pair.source_added):
        yield lora_file("LoRA of the source", each.adapter, each.given.strength, digests.get(f"source_lora.{at}"))
    if pair.target is not None:
        yield _model("target", pair.target, digests)
    for at, each in enumerate(pair.added):
        yield lora_file("distillation LoRA", each.adapter, each.given.strength, digests.get(f"target_lora.{at}"))


def input_digests(results: "Iterable[LayerResult]") -> dict[str, str]:
    """One SHA-256 for the tensors of each input that were used, over the digests of the tensors by name."""
    owners: dict[str, dict[str, str]] = {}
    for result in results:
        for role, digest in result.digests.items():
            owner = role if role in ("source", "target") else "lora"
            if role.startswith(ADDED):
                owner = ".".join(role.split(".")[:2])
            part = role.removeprefix(f"{owner}.")
            owners.setdefault(owner, {})[f"{result.report.name}/{part}"] = digest
    return {owner: hashlib.sha256(canonical_json(found).encode()).hexdigest() for owner, found in owners.items()}


def lora_file(role: str, adapter: LoraAdapter, strength: float, digest: str | None) -> InputFile:
    """One LoRA.

    Args:
        role: as in `InputFile`.
        adapter: the LoRA, opened.
        strength: at which it is taken.
        digest: of what was used of it, where that is known.
    """
    kinds = Counter(_kind(layer) for layer in adapter.layers.values())
    kind = "; ".join(f"{each} in {count} layers" for each, count in kinds.most_common(KINDS_TOLD))
    kind += f"; and {len(kinds) - KINDS_TOLD} others" if len(kinds) > KINDS_TOLD else ""
    files = {adapter.path} | {ref.file for layer in adapter.layers.values() for ref in layer.parts.values()}
    return InputFile(role, str(adapter.path), adapter.architecture.title, kind, _bytes(files), digest, strength)


def _kind(layer: LayerUpdate) -> str:
    size = layer.size
    if size.isdigit():
        return f"{KINDS[layer.kind].title} of rank {size}"
    return f"rank {size}" if size[:1].isdigit() else size


def _model(role: str, model: Checkpoint, digests: Mapping[str, str]) -> InputFile:
    files = {ref.file for ref in model.tensors.values()}
    formats = Counter(ref.stored_as for ref in model.tensors.values())
    kind = f"checkpoint in {formats.most_common(1)[0][0]}" if formats else "checkpoint"
    return InputFile(
        role, str(model.path), model.architecture.title, kind, _bytes(files), digests.get(role), strength=None
    )


def _bytes(files: Iterable[Path]) -> int | None:
    try:
        return sum(file.stat().st_size for file in files)
    except OSError:
        return None
