"""What a file is, for `inspect`: from its header, and the factors of a LoRA only to see whether they are zero."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.grammar import grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.opened import FILES, in_folder, open_file
from loraport.adapters.parse import open_adapter
from loraport.adapters.scale import ASSUMED
from loraport.adapters.training import Training, read_training
from loraport.adapters.update import LayerUpdate
from loraport.containers.access import kind_of
from loraport.containers.locate import locate
from loraport.containers.names import named_path
from loraport.containers.references import open_tensors
from loraport.errors import FileError, LoraportError, MismatchError, UnsupportedError, UsageError
from loraport.models.checkpoint import open_checkpoint

LARGE_SCALE = 4.0
SMALL_SCALE = 1 / 8


@dataclass(frozen=True)
class FileDescription:
    """A LoRA or a checkpoint in words and counts.

    Args:
        path: the file or folder.
        kind: "lora", "checkpoint", or "unknown".
        title: the model.
        dialect: how names are spelled.
        dtypes: stored dtype -> number of tensors.
        layers: number of linear layers.
        ranks: rank, or what a layer has instead -> number of layers (LoRA).
        scales: scale -> number of layers (LoRA).
        scale_sources: where it comes from -> number of layers (LoRA).
        passthrough: kind -> raw keys that are passed on (LoRA).
        unknown: raw keys of no known layer.
        missing: canonical modules that are not there (checkpoint).
        nbytes: size of all tensors.
        metadata: the header's text.
        training: what it says of the training (LoRA).
        trained: the same in one line.
        findings: sentences worth knowing.
        refused: why it cannot be used, "" if it can.
        exit_code: of the refusal, 0 if there is none.
    """

    path: str
    kind: str
    title: str = ""
    dialect: str = ""
    dtypes: dict[str, int] = field(default_factory=dict)
    layers: int = 0
    ranks: dict[str, int] = field(default_factory=dict)
    scales: dict[str, int] = field(default_factory=dict)
    scale_sources: dict[str, int] = field(default_factory=dict)
    passthrough: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    nbytes: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    trained: str = ""
    findings: list[str] = field(default_factory=list)
    refused: str = ""
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return asdict(self)


def describe(path: str | Path) -> FileDescription:
    """Say what a file is: from its header, its alphas, and of a LoRA whether its factors are zero.

    A file that is recognised and refused (LoHa, another family, an unmatched key) is described as far as
    possible, with the reason in `refused`.

    Raises:
        FileError: missing, damaged or unsafe.
    """
    if _looks_like_lora(path):
        return _lora(path)
    return _checkpoint(path)


def _looks_like_lora(path: str | Path) -> bool:
    path = named_path(path)
    kind = kind_of(path)
    if kind == "folder":
        if any(kind_of(path / name) == "file" for name in FILES):
            return True
        try:
            path = in_folder(path)
        except FileError:
            return False
    elif kind != "file" or path.suffix == ".json":
        return False
    rules = grammar()
    keys = [key for group in open_tensors(path).groups.values() for key in group]
    return any(rules.split_suffix(key) is not None or rules.kind_refused(key) for key in keys)


def _lora(path: str | Path) -> FileDescription:
    try:
        lora = open_adapter(path)
    except (MismatchError, UsageError) as error:
        refused, code = error.message, error.exit_code
        if isinstance(error, UnsupportedError | UsageError):
            return _raw(path, "lora", error)
        try:
            lora = open_adapter(path, allow_partial=True)
        except LoraportError:
            return _raw(path, "lora", error)
    except FileError as error:
        open_file(named_path(path))  # raises where it is the file that is damaged, not what its header says
        return _raw(path, "lora", error)
    else:
        refused, code = "", 0
    refs = open_tensors(lora.path).groups[lora.nest]
    passthrough: dict[str, list[str]] = {}
    for item in lora.passthrough:
        passthrough.setdefault(item.kind, []).extend(item.keys)
    layers = list(lora.layers.values())
    return FileDescription(
        path=str(path),
        kind="lora",
        title=lora.architecture.title,
        dialect=lora.dialect.title,
        dtypes=dict(Counter(ref.stored_as for ref in refs.values())),
        layers=len(layers),
        ranks=_counts(layer.size for layer in layers),
        scales=_counts(f"{layer.scale:g}" for layer in layers),
        scale_sources=_counts(layer.scale_source for layer in layers),
        passthrough=passthrough,
        unknown=list(lora.dropped),
        nbytes=sum(ref.nbytes for ref in refs.values()),
        metadata=lora.metadata,
        training=lora.training.to_json(),
        trained=lora.training.sentence(),
        findings=_findings(lora, left_out=bool(refused)),
        refused=refused,
        exit_code=code,
    )


def _findings(lora: LoraAdapter, left_out: bool) -> list[str]:
    # A look leaves nothing out; what would have to be is in `unknown`.
    found = [text for text in lora.warnings if not (left_out and " left out, " in text)]
    layers = list(lora.layers.values())
    ranks = sorted({layer.rank for layer in layers if layer.factored})
    scales = sorted({layer.scale for layer in layers})
    if len(ranks) > 1:
        found.append(
            f"ranks differ from layer to layer, {ranks[0]} to {ranks[-1]}: diffusers before 0.40 scales this wrongly"
        )
    ours = "loraport.version" in lora.metadata  # then the scale is inside, and no alpha is missing
    if not ours and any(layer.scale_source == ASSUMED for layer in layers):
        found.append("there is no alpha, so scale 1 is assumed, as every loader does")
    if scales and scales[-1] >= LARGE_SCALE:
        found.append(f"alpha / rank is {scales[-1]:g}, which is unusually large")
    if scales and scales[0] <= SMALL_SCALE:
        factor = f"{1 / scales[0]:.0f} times too strongly"
        found.append(f"alpha / rank is {scales[0]:g}: a loader that ignores alpha applies the LoRA {factor}")
    if len(scales) > 1:
        found.append(f"the scale differs from layer to layer, {scales[0]:g} to {scales[-1]:g}")
    whole = [layer.name for layer in layers if not layer.factored]
    if whole:
        found.append(f"layers with a whole matrix instead of factors: {len(whole)}, e.g. {whole[0]}")
    on_source = sorted({KINDS[layer.kind].title for layer in layers if layer.needs_source})
    if not on_source and any(None in item.source for item in lora.passthrough):
        on_source = ["a parameter that is saved whole"]
    if on_source:
        found.append(
            f"{' and '.join(on_source)} changes the weights by a function of the original weights: convert needs "
            "the model it was trained on (--model SOURCE); transfer has it"
        )
    found += _empty(layers)
    oversized = [layer.name for layer in layers if layer.rank > min(layer.shape)]
    if oversized:
        found.append(f"layers smaller than their rank: {len(oversized)}, e.g. {oversized[0]}")
    if (expert := lora.training.expert) and lora.architecture.family.name == "wan":
        found.append(f"trained only on the time steps of Wan2.2's {expert}-noise expert: --expert {expert}")
    if "loraport.recipe" in lora.metadata:
        found.append("this LoRA was made by loraport: transfer the original instead, or the drift is undone twice")
    return found


def _empty(layers: list[LayerUpdate]) -> list[str]:
    zero = [layer.name for layer in layers if layer.is_zero()]
    if not zero:
        return []
    if len(zero) == len(layers):
        return ["the LoRA is empty: every update is zero, it does nothing"]
    return [f"layers whose update is zero: {len(zero)}, e.g. {zero[0]}"]


def _checkpoint(path: str | Path) -> FileDescription:
    try:
        model = open_checkpoint(path)
    except (MismatchError, UsageError) as error:
        return _raw(path, "checkpoint" if isinstance(error, UnsupportedError | UsageError) else "unknown", error)
    refs = model.tensors.values()
    prefix = f"{model.prefix or '(no prefix)'} + {model.naming} names"
    findings = list(model.notes)
    if model.unknown:
        findings.append(
            f"tensors that are not part of the known architecture: {len(model.unknown)}, e.g. {model.unknown[0]}"
        )
    if model.missing:
        findings.append(f"missing modules: {len(model.missing)}, e.g. {model.missing[0]}")
    return FileDescription(
        path=str(path),
        kind="checkpoint",
        title=model.architecture.title,
        dialect=prefix + (f", under {model.nested}" if model.nested else ""),
        dtypes=dict(Counter(ref.stored_as for ref in refs)),
        layers=len(model.architecture.layers),
        unknown=list(model.unknown),
        missing=list(model.missing),
        nbytes=sum(ref.nbytes for ref in refs),
        metadata=locate(path, nested=model.nested or None).metadata,
        findings=findings,
    )


def _raw(path: str | Path, kind: str, error: LoraportError) -> FileDescription:
    found = locate(path) if kind != "lora" or kind_of(named_path(path)) == "file" else None
    groups = found.groups if found else {}
    training = read_training(found.path, found.metadata) if found and kind == "lora" else Training()
    refs = [ref for group in groups.values() for ref in group.values()]
    return FileDescription(
        path=str(path),
        kind=kind,
        dtypes=dict(Counter(ref.stored_as for ref in refs)),
        nbytes=sum(ref.nbytes for ref in refs),
        metadata=found.metadata if found else {},
        training=training.to_json(),
        trained=training.sentence(),
        refused=error.message,
        exit_code=error.exit_code,
    )


def _counts(values: Any) -> dict[str, int]:
    return {str(value): count for value, count in Counter(values).most_common()}
