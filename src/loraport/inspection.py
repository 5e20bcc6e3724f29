"""What a file is, from its header alone: a LoRA or a model, in which spelling, of which size, and what is odd."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loraport.errors import MismatchError, UnmatchedKeysError, UnsupportedError
from loraport.formats.adapter import LoraAdapter, open_adapter
from loraport.formats.checkpoint import Checkpoint, open_checkpoint
from loraport.formats.header import read_json

SUSPICIOUS_SCALE = 4.0  # a LoRA that is multiplied by more than this, or less than its inverse, is mostly an accident
_SHOWN = 200  # characters of a header field
_TRAINING = ("modelspec.title", "modelspec.trigger_phrase", "ss_output_name", "ss_base_model_version", "ss_network_dim",
             "ss_network_alpha", "ss_network_module", "ss_training_comment")  # fmt: skip


@dataclass(frozen=True)
class Inspection:
    """A file described.

    Attributes:
        path: the file or folder. kind: `lora` or `model`.
        title: the architecture, for people.
        facts: what else is known, by name: spelling, number formats, ranks, scales, sizes.
        header: fields of the header that say something about training or origin.
        findings: sentences about what is odd and what to do about it; empty for an ordinary file.
    """

    path: Path
    kind: str
    title: str
    facts: Mapping[str, Any]
    header: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self) | {"path": str(self.path), "findings": list(self.findings)}


def inspect(path: Path | str, *, nested: str | None = None) -> Inspection:
    """Describe a LoRA or a model without reading its weights.

    Args:
        path: anything that `transfer` takes: a file, a diffusers folder, a hub id.
        nested: part of a torch file to look at.

    Raises:
        FileError: missing, damaged or unsafe to open.
        MismatchError, UnsupportedError: neither a LoRA nor a model of a known kind.
    """
    try:
        return _model(open_checkpoint(path, nested=nested))
    except UnsupportedError:
        raise
    except MismatchError as no_model:
        try:
            return _lora(_open_lora(path))
        except UnsupportedError:
            raise
        except UnmatchedKeysError:
            raise no_model from None


def _open_lora(path: Path | str) -> tuple[LoraAdapter, str | None]:
    """The adapter, and what is wrong with its keys if something is."""
    try:
        return open_adapter(path), None
    except UnmatchedKeysError as error:
        complaint = error.what + (f" ({error.values})" if error.values else "")
        return open_adapter(path, allow_partial=True), complaint


def _lora(opened: tuple[LoraAdapter, str | None]) -> Inspection:
    adapter, complaint = opened
    layers = list(adapter.layers.values())
    ranks = Counter(layer.rank for layer in layers if layer.kind == "lora")
    scales = Counter((layer.scale, layer.scale_source) for layer in layers)
    carried = Counter(item.kind for item in adapter.carried)
    facts = {
        "names": adapter.dialect.title,
        "dtype": adapter.dtype,
        "keys": len(adapter.keys),
        "layers": len(layers),
        "full_matrices": sum(layer.kind == "diff" for layer in layers),
        "ranks": {str(rank): number for rank, number in sorted(ranks.items())},
        "scales": [{"scale": s, "from": where, "layers": n} for (s, where), n in sorted(scales.items())],
        "carried": dict(sorted(carried.items())),
    }
    findings = list(adapter.warnings)
    if complaint is not None:
        findings.append(f"{complaint}; a transfer refuses this file unless --allow-partial is given")
    findings += _odd_scales(scales) + _odd_coverage(adapter)
    origin = read_json(adapter.metadata, "loraport.recipe")
    if isinstance(origin, dict):
        facts["made_by"] = f"loraport {adapter.metadata.get('loraport.version', '?')}"
        findings.append("this LoRA was carried over to a distilled model already; carry over the original instead")
    return Inspection(
        adapter.path, "lora", adapter.architecture.title, facts, _header(adapter.metadata), tuple(findings)
    )


def _odd_scales(scales: Counter) -> list[str]:
    odd = sorted({scale for scale, _ in scales if not 1 / SUSPICIOUS_SCALE <= scale <= SUSPICIOUS_SCALE})
    findings = [
        f"alpha / rank is {scale:g}: correct if it was trained with that alpha, otherwise the LoRA is that much "
        f"too {'strong' if scale > 1 else 'weak'}"
        for scale in odd
    ]
    if len({scale for scale, _ in scales}) > 1:
        findings.append("the scale differs between layers")
    return findings


def _odd_coverage(adapter: LoraAdapter) -> list[str]:
    """Layers that some blocks have and others have not: a sign of a file that was cut down or half converted."""
    blocks: dict[str, set[str]] = {}
    for name in adapter.layers:
        parts = name.split(".")
        if parts[0] == "blocks" and len(parts) > 2:
            blocks.setdefault(parts[1], set()).add(".".join(parts[2:]))
    every = set().union(*blocks.values()) if blocks else set()
    partial = [number for number, names in blocks.items() if names != every]
    if not partial:
        return []
    return [f"{len(partial)} of {len(blocks)} blocks lack layers that other blocks have (block {partial[0]} for one)"]


def _model(checkpoint: Checkpoint) -> Inspection:
    refs = list(checkpoint.tensors.values())
    facts = {
        "names": f"{checkpoint.prefix or '(no prefix)'} + {checkpoint.naming} names",
        "dtypes": dict(Counter(ref.dtype for ref in refs).most_common()),
        "tensors": len(refs),
        "bytes": sum(ref.nbytes for ref in refs),
        "files": len({ref.file for ref in refs}),
        "linear_layers": len(checkpoint.architecture.layers),
        "dimensions": dict(checkpoint.architecture.dimensions),
        "unknown": list(checkpoint.unknown),
        "missing": list(checkpoint.missing),
    }
    if checkpoint.nested:
        facts["nested"] = checkpoint.nested
    findings = list(checkpoint.notes)
    if checkpoint.unknown:
        findings.append(
            f"{len(checkpoint.unknown)} tensors are no part of the architecture, {checkpoint.unknown[0]} for one"
        )
    if checkpoint.missing:
        findings.append(f"{len(checkpoint.missing)} modules are missing, {checkpoint.missing[0]} for one")
    return Inspection(checkpoint.path, "model", checkpoint.architecture.title, facts, {}, tuple(findings))


def _header(metadata: Mapping[str, str]) -> dict[str, str]:
    wanted = [key for key in metadata if key in _TRAINING or key.startswith("loraport.")]
    return {key: metadata[key] if len(metadata[key]) <= _SHOWN else metadata[key][:_SHOWN] + "..." for key in wanted}
