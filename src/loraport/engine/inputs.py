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
from loraport.containers.references import TensorRef, place
from loraport.engine.keys import ADDED
from loraport.engine.match import Pair
from loraport.engine.plan import TransferPlan
from loraport.engine.results import InputFile
from loraport.models.checkpoint import Checkpoint
from loraport.wording import count

if TYPE_CHECKING:
    from loraport.engine.worker import LayerResult  # and torch

KINDS_TOLD = 3


def inputs_of(plan: TransferPlan, digests: Mapping[str, str]) -> Iterator[InputFile]:
    """Every input of a run.

    Args:
        plan: the run.
        digests: of `input_digests`, as far as they are known.
    """
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
    return joined_digests((result.report.name, result.digests) for result in results)


def joined_digests(layers: Iterable[tuple[str, Mapping[str, str]]]) -> dict[str, str]:
    """The digests of `input_digests`, by input: "source", "target", "lora", "target_lora.0".

    Args:
        layers: name of a layer, and the digests of its tensors by role.
    """
    owners: dict[str, dict[str, str]] = {}
    for name, digests in layers:
        for role, digest in digests.items():
            owner = owner_of(role)
            owners.setdefault(owner, {})[f"{name}/{role.removeprefix(f'{owner}.')}"] = digest
    return {owner: hashlib.sha256(canonical_json(found).encode()).hexdigest() for owner, found in owners.items()}


def owner_of(role: str) -> str:
    """The input that a tensor is of, by its role in a job."""
    if role.startswith(ADDED):
        return ".".join(role.split(".")[:2])
    return role if role in ("source", "target") else "lora"


def lora_file(role: str, adapter: LoraAdapter, strength: float, digest: str | None) -> InputFile:
    """One LoRA.

    Args:
        role: as in `InputFile`.
        adapter: the LoRA, opened.
        strength: at which it is taken.
        digest: of what was used of it, where that is known.
    """
    kinds = Counter(_kind(layer) for layer in adapter.layers.values())
    kind = "; ".join(f"{each} in {count(number, 'layer')}" for each, number in kinds.most_common(KINDS_TOLD))
    kind += f"; and {len(kinds) - KINDS_TOLD} others" if len(kinds) > KINDS_TOLD else ""
    refs = [ref for layer in adapter.layers.values() for ref in layer.parts.values()]
    files, header = {adapter.path} | {ref.file for ref in refs}, None if digest else _header(refs)
    return InputFile(role, str(adapter.path), adapter.architecture.title, kind, _bytes(files), digest, strength, header)


def _kind(layer: LayerUpdate) -> str:
    size = layer.size
    if size.isdigit():
        return f"{KINDS[layer.kind].title} of rank {size}"
    return f"rank {size}" if size[:1].isdigit() else size


def _model(role: str, model: Checkpoint, digests: Mapping[str, str]) -> InputFile:
    files = {ref.file for ref in model.tensors.values()}
    formats = Counter(ref.stored_as for ref in model.tensors.values())
    kind = f"checkpoint in {formats.most_common(1)[0][0]}" if formats else "checkpoint"
    digest, header = digests.get(role), None if role in digests else _header(model.tensors.values())
    return InputFile(role, str(model.path), model.architecture.title, kind, _bytes(files), digest, None, header)


def _header(refs: Iterable[TensorRef]) -> str:
    """What headers tell a file by: names, number formats and shapes of its tensors, but not their numbers."""
    told = sorted([place(ref), ref.stored_as, list(ref.shape)] for ref in refs)
    return hashlib.sha256(canonical_json({"tensors": told}).encode()).hexdigest()


def _bytes(files: Iterable[Path]) -> int | None:
    try:
        return sum(file.stat().st_size for file in files)
    except OSError:
        return None
