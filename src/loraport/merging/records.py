"""What headers and indexes of a merged checkpoint say, and what follows from a LoRA that is in it already."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.header import STALE, canonical_json, read_json
from loraport.containers.codecs.belongings import texts_without
from loraport.containers.names import as_text
from loraport.containers.safetensors import read_header
from loraport.containers.shards import index_with
from loraport.containers.tensors import digest
from loraport.merging.changes import stored_beside
from loraport.merging.plan import MergePlan
from loraport.version import __version__

MERGED = "loraport.merged"  # in a header: what was merged into the file, the oldest first


def headers_of(plan: MergePlan, told: Sequence[Mapping[str, object]]) -> dict[Path, dict[str, str] | None]:
    """The texts of the header of each safetensors file: all that it had, less what is not true any more, and what was
    merged. None of a file whose header stays as it is."""
    if plan.tensors[0].ref.container != "safetensors":
        return dict.fromkeys(plan.layout.files)
    plain = [tensor.ref for tensor in plan.dequantized]
    stored = stored_beside(plain[0], plan.layout) if plain else {}
    touched = {put.ref.file for tensor in plan.tensors for put in tensor.puts} | {ref.file for ref in plan.gone}
    found: dict[Path, dict[str, str] | None] = {}
    for file in plan.layout.files:
        before = read_header(file).metadata
        texts = texts_without(before, plain, stored)
        if file in touched:
            record = json.dumps([*_records(before), *told], sort_keys=True, ensure_ascii=False)
            texts = {key: text for key, text in texts.items() if key not in STALE}
            texts |= {"loraport.version": __version__, MERGED: record}
        found[file] = texts if texts != before else None
    return found


def indexes_of(plan: MergePlan) -> dict[Path, str]:
    """The text of each index that says something of the tensors that is not true any more. Raises FileError."""
    if not plan.gone and not plan.dequantized:
        return {}
    names: dict[str, str | None] = {ref.key: None for ref in plan.gone}
    names |= {put.ref.key: put.key for tensor in plan.dequantized for put in tensor.puts}
    return {file: index_with(file, names, plan.grown_bytes) for file in plan.layout.beside if ".index" in file.name}


def _records(metadata: Mapping[str, str]) -> list[Any]:
    found = read_json(metadata, MERGED)
    return found if isinstance(found, list) else []


def told_of(plan: MergePlan) -> list[dict[str, object]]:
    """What the header says of every LoRA, and then of other changes."""
    records: list[dict[str, object]] = []
    for given, adapter, factor in plan.loras:
        refs = {f"{name}/{role}": ref for name, it in adapter.layers.items() for role, ref in it.parts.items()}
        refs |= {item.param: item.ref for item in adapter.passthrough}
        found = canonical_json({name: digest(ref) for name, ref in refs.items()})
        content = hashlib.sha256(found.encode()).hexdigest()
        records.append({"lora": as_text(Path(given.file).name), "strength": factor, "digest": content})
    return [*records, *map(dict, plan.changes)]


def counted_twice(plan: MergePlan, told: Sequence[Mapping[str, object]]) -> list[str]:
    """What to say where one of these LoRAs is there twice, or inside the checkpoint already."""
    names: dict[object, list[object]] = {}
    told = told[: len(plan.loras)]
    for one in told:
        names.setdefault(one["digest"], []).append(one["lora"])
    twins = [
        f"{' and '.join(map(str, same))} hold the same LoRA, so it counts {len(same)} times"
        for same in names.values()
        if len(same) > 1
    ]
    ref = plan.tensors[0].ref
    if ref.container != "safetensors":
        return twins
    known: dict[object, float] = {}
    for record in _records(read_header(ref.file).metadata):
        match record:  # anybody may have written it
            case {"digest": str(found), "strength": float(strength)}:
                known[found] = known.get(found, 0.0) + strength
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
        return f"as a function of the weights ({kind}) it now depends on the changed ones, and no strength removes it"
    total = factor + before
    return "it is taken out now" if abs(total) < 1e-9 * abs(before) else f"it comes to {total:g} in all"
