"""What the header of a merged checkpoint says of the LoRAs in it, and what follows from one that is in it already."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.header import STALE, canonical_json, read_json
from loraport.containers.safetensors import read_header
from loraport.containers.tensors import TensorRef, digest
from loraport.merging.plan import MergePlan
from loraport.version import __version__

MERGED = "loraport.merged"  # in a header: what was merged into the file, the oldest first


def header_of(file: Path, refs: Sequence[TensorRef], told: Sequence[Mapping[str, object]]) -> dict[str, str] | None:
    """The texts of a safetensors header: all that it had, less what is not true any more, and what was merged."""
    if not refs or refs[0].container != "safetensors":
        return None
    before = read_header(file).metadata
    kept = {key: text for key, text in before.items() if key not in STALE}
    record = json.dumps([*_records(before), *told], sort_keys=True, ensure_ascii=False)
    return kept | {"loraport.version": __version__, MERGED: record}


def _records(metadata: Mapping[str, str]) -> list[Any]:
    found = read_json(metadata, MERGED)
    return found if isinstance(found, list) else []


def told_of(plan: MergePlan) -> list[dict[str, object]]:
    """What the header says of every LoRA."""
    records: list[dict[str, object]] = []
    for given, adapter, factor in plan.loras:
        refs = {f"{name}/{role}": ref for name, it in adapter.layers.items() for role, ref in it.parts.items()}
        refs |= {item.param: item.ref for item in adapter.passthrough}
        found = canonical_json({name: digest(ref) for name, ref in refs.items()})
        content = hashlib.sha256(found.encode()).hexdigest()
        records.append({"lora": Path(given.file).name, "strength": factor, "digest": content})
    return records


def counted_twice(plan: MergePlan, told: Sequence[Mapping[str, object]]) -> list[str]:
    """What to say where one of these LoRAs is there twice, or inside the checkpoint already."""
    names: dict[object, list[object]] = {}
    for one in told:
        names.setdefault(one["digest"], []).append(one["lora"])
    twins = [
        f"{' and '.join(map(str, same))} hold the same LoRA, so that it counts {len(same)} times"
        for same in names.values()
        if len(same) > 1
    ]
    ref = plan.tensors[0].ref
    if ref.container != "safetensors":
        return twins
    known: dict[object, float] = {}
    for record in _records(read_header(ref.file).metadata):
        if isinstance(record, dict) and isinstance(record.get("strength"), float):
            known[record.get("digest")] = known.get(record.get("digest"), 0.0) + record["strength"]
    return twins + [
        f"the checkpoint's header says that {given.file} was merged into it before, at {known[one['digest']]:g}: "
        + _together(adapter, factor, known[one["digest"]])
        for one, (given, adapter, factor) in zip(told, plan.loras, strict=True)
        if one["digest"] in known
    ]


def _together(adapter: LoraAdapter, factor: float, before: float) -> str:
    """What a LoRA comes to that is inside the checkpoint already."""
    kind = next((layer.kind for layer in adapter.layers.values() if layer.weight), None)
    if kind is not None:
        return f"as a function of the weights ({kind}) it is now one of the changed ones, and no strength takes it out"
    total = factor + before
    return "it is taken out now" if abs(total) < 1e-9 * abs(before) else f"it comes to {total:g} in all"
