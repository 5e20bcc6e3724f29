"""Header against content: is an output file what its header says?"""

from dataclasses import dataclass
from pathlib import Path

import torch

from loraport.errors import LoraportError
from loraport.formats.checkpoint import Checkpoint
from loraport.formats.header import CONTENT, content_digest, read_json
from loraport.formats.parse import open_adapter
from loraport.formats.tensors import digest, open_tensors, read_tensor
from loraport.formats.update import LoraAdapter


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what, whether it held, and what was found."""

    name: str
    passed: bool
    found: str


def verify_adapter(path: str | Path, model: Checkpoint | None = None) -> tuple[Check, ...]:
    """Compare a LoRA with its own header, and with a model if one is given. Reads every tensor once.

    Args:
        path: the file; one written by this package can be checked in full, any other as far as it goes.
        model: the model it is meant for.

    Raises:
        FileError: it cannot be read at all.
    """
    try:
        lora = open_adapter(path, model, role="target")
    except LoraportError as error:
        if error.exit_code == 5:
            raise
        return (Check("every key is understood", False, error.message),)
    checks = [Check("every key is understood", True, f"{len(lora.keys)} keys, {len(lora.layers)} layers")]
    checks += _header(lora)
    checks += _scale(lora)
    checks += _content(lora)
    return tuple(checks)


def _header(lora: LoraAdapter) -> list[Check]:
    made = lora.metadata.get("loraport.version")
    checks = [Check("header says how it was made", made is not None, f"loraport {made}" if made else "no such header")]
    if made is None:
        return checks
    summary = read_json(lora.metadata, "loraport.summary")
    layers = summary.get("layers") if isinstance(summary, dict) else None
    if layers is not None:
        same = layers == len(lora.layers)
        checks.append(Check("every layer is there", same, f"{len(lora.layers)} layers, header {layers}"))
    stated = lora.metadata.get("ss_network_dim")
    if stated is not None and "loraport.recipe" in lora.metadata:
        checks.append(Check("rank as stated", stated == str(lora.max_rank), f"rank {lora.max_rank}, header {stated}"))
    return checks


def _scale(lora: LoraAdapter) -> list[Check]:
    ranks = sorted({layer.rank for layer in lora.layers.values() if layer.kind == "lora"})
    scales = sorted({layer.scale for layer in lora.layers.values()})
    return [
        Check("one rank in the whole file", len(ranks) <= 1, ", ".join(map(str, ranks)) or "no factors"),
        Check("strength 1 in every loader", scales in ([1.0], []), ", ".join(f"{scale:g}" for scale in scales)),
    ]


def _content(lora: LoraAdapter) -> list[Check]:
    refs = next(group for group in open_tensors(lora.path).groups.values() if lora.keys[0] in group)
    broken = [
        key
        for key, ref in refs.items()
        if (tensor := read_tensor(ref)).is_floating_point() and not torch.isfinite(tensor.float()).all()
    ]
    checks = [Check("all numbers are finite", not broken, ", ".join(broken[:5]) or f"{len(refs)} tensors")]
    stated = lora.metadata.get(CONTENT)
    if stated is not None:
        actual = content_digest({key: digest(ref) for key, ref in refs.items()})
        checks.append(Check("content as written", actual == stated, actual[:16]))
    return checks
