"""What opening a LoRA says when it refuses or has doubts: one sentence, the keys, and what to do."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import prod
from pathlib import Path

from loraport.adapters.dialect import Dialect
from loraport.adapters.grammar import grammar
from loraport.adapters.kinds.base import Piece
from loraport.adapters.peft_config import AdapterConfig
from loraport.adapters.scale import BY_HAND, FROM_CONFIG, FROM_HEADER
from loraport.adapters.update import LayerUpdate
from loraport.containers.references import TensorRef, refusal
from loraport.errors import MismatchError, UnmatchedKeysError, UnsupportedError
from loraport.models.architecture import Architecture
from loraport.models.families import families, foreign
from loraport.models.family import Family
from loraport.models.keymap import keymap_of
from loraport.models.keys import MAX_LOOKED_AT, key_rules
from loraport.wording import count

NO_EXPERT = "no name in the file mentions an expert"
SHOWN = 3  # how many modules with unmatched keys a message names


def refuse_kinds(path: Path, refs: Mapping[str, TensorRef]) -> None:
    """Raise UnsupportedError, by name, for adapters that are no plain LoRA and for quantised ones."""
    rules = grammar()
    for key, ref in refs.items():
        reason = _unreadable(key, ref)
        if reason is not None and ref.codec == "raw":
            raise UnsupportedError(
                f"{key} cannot be read as a part of a LoRA: {reason}",
                where=str(path),
                values=f"{ref.dtype} {list(ref.shape)}",
                fix="export the LoRA in float32, float16 or bfloat16",
            )
        kind = rules.kind_refused(key) or (reason and f"quantised ({reason})")
        if kind:
            raise UnsupportedError(
                f"this is not a plain LoRA but {kind}, which is not supported yet",
                where=str(path),
                values=f"first such key {key}",
                fix="export it as a plain LoRA (A and B, or down and up)",
            )


def _unreadable(key: str, ref: TensorRef) -> str | None:
    """Why a tensor cannot be read. A number by itself (alpha, rank) may be an integer, and so may what is no part."""
    reason = refusal(ref)
    if reason is None or ref.codec != "raw":
        return reason
    return reason if prod(ref.shape) != 1 and grammar().split_suffix(key) else None


def idle_choices(pieces: Sequence[Piece], expert: str | None, adapter: str | None) -> list[str]:
    """A choice in a file that offers none is not wrong, but may be a mistake."""
    found = []
    if expert is not None and all(piece.at.expert is None for piece in pieces):
        found.append(f"{NO_EXPERT}, so {expert!r} selects nothing")
    if adapter is not None and all(piece.adapter is None for piece in pieces):
        found.append(f"the file names no adapters, so {adapter!r} selects nothing")
    return found


def scale_doubts(
    layers: Iterable[LayerUpdate], config: AdapterConfig | None, dialect: Dialect, metadata: Mapping[str, str]
) -> list[str]:
    """Where the scale comes from, whenever it is not 1 and not in the file itself; and what contradicts it."""
    found = []
    scales: dict[str, set[float]] = {}
    for layer in layers:
        scales.setdefault(layer.scale_source, set()).add(layer.scale)
    for source in (BY_HAND, FROM_HEADER, FROM_CONFIG):
        if scales.get(source, {1.0}) != {1.0}:
            low, high = min(scales[source]), max(scales[source])
            span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            way_out = "; --scale 1 leaves it out" if source != BY_HAND else ""
            found.append(f"the scale {span} was taken from: {source}{way_out}")
    if BY_HAND in scales:
        return found
    if config is not None and config.source != FROM_HEADER and dialect.alpha != "none":
        found.append(f"the alpha tensors were used; the {config.source} was not looked at")
    alpha, rank = (metadata.get(f"ss_network_{name}", "None")[:20] for name in ("alpha", "dim"))
    if config is None and dialect.alpha == "none" and alpha != "None" and alpha.removesuffix(".0") != rank:
        found.append(f"the header states ss_network_alpha = {alpha}, but there is no alpha tensor; scale 1 was used")
    return found


def doubts(pieces: Sequence[Piece], gone: Sequence[str]) -> list[str]:
    """What the user should know of a file that is read all the same.

    Args:
        pieces: its keys.
        gone: those that had to be left out.
    """
    found = []
    prefixes = sorted({piece.at.prefix or "(none)" for piece in pieces})
    if len(prefixes) > 1:
        found.append(f"the LoRA mixes prefixes: {', '.join(prefixes)}")
    if gone:
        found.append(f"{count(len(gone), 'key', 'was/were')} left out, e.g. {gone[0]}")
    return found


def nearest_key(key: str, family: Family) -> str:
    """The known key most like an unknown one, or what else it is part of, as the end of a message."""
    rules = grammar()
    explained = rules.explanation(key)
    if explained:
        return explained
    plain = key_rules().unwrap(key)
    suffix = rules.split_suffix(plain)
    stem = plain[: -suffix.length] if suffix else plain
    title = key_rules().kind_foreign([key])
    if title:
        return f"a part of {title}"
    near = keymap_of(family).nearest(stem)
    return f"nearest known: {near}{plain[len(stem) :]}" if near else "no similar key is known"


def unmatched_keys(
    path: Path,
    problems: Mapping[str, str],
    total: int,
    role: str,
    architecture: Architecture | None,
    family: Family,
) -> UnmatchedKeysError:
    """The error for keys that name no layer, or are half of a pair.

    Args:
        path: the file.
        problems: key -> what is wrong with it; "" for one that names no layer.
        total: keys of the file.
        role: what the model is called.
        architecture: the model, None where there is none to fit.
        family: of models, for the nearest names.
    """
    rules = grammar()
    stems: dict[str, str] = {}  # one key of each module tells enough
    for key in problems:
        suffix = rules.split_suffix(key)
        stems.setdefault(key[: -suffix.length] if suffix else key, key)
        if len(stems) == SHOWN:
            break
    shown = [f"{key} ({problems[key] or nearest_key(key, family)})" for key in stems.values()]
    more = f"; and {len(problems) - len(stems)} more" if len(problems) > len(stems) else ""
    model = f"the {role} ({architecture.title})" if architecture else "a known model"
    partial = "" if len(problems) == total else ", or leave such keys out with --allow-partial"
    return UnmatchedKeysError(
        f"{len(problems):,} of {count(total, 'key')} of the LoRA cannot be matched to {model}",
        where=str(path),
        values="; ".join(shown) + more,
        fix=f"check that file and model belong together{partial}",
    )


def not_a_lora(
    path: Path,
    refs: Mapping[str, TensorRef],
    architecture: Architecture | None,
    role: str,
    title: str | None,
    asked: Family | None = None,
) -> MismatchError:
    """The error for a file without a single layer that is known here: say what it is instead, as far as that shows.

    Args:
        path: the file.
        refs: its keys.
        architecture: the model that it should fit, None where there is none.
        role: what that is called.
        title: the model of another known family that it is for.
        asked: without a model, the family that it should be for, None where any will do.
    """
    rules = grammar()
    plain = [key for key in islice(refs, MAX_LOOKED_AT) if rules.split_suffix(key) is None]
    stems = [key_rules().unwrap(key).rpartition(".")[0] for key in plain]
    for family in families().values():
        if any(map(keymap_of(family).resolve, stems)):
            return MismatchError(
                "a LoRA is needed here, but this file is a checkpoint",
                where=str(path),
                values=f"{count(len(refs), 'tensor')}, e.g. {next(iter(refs))}",
                fix="give the LoRA's own file",
            )
    title = title or foreign(refs)
    if title is None and any(rules.split_suffix(key) for key in islice(refs, MAX_LOOKED_AT)):
        family = architecture.family if architecture else asked or next(iter(families().values()))
        return unmatched_keys(path, dict.fromkeys(refs, ""), len(refs), role, architecture, family)
    known = ", ".join(each.title for each in families().values())
    what = f"This LoRA is for {title}, " if title else "This is not a LoRA of a known model, "
    if architecture:
        why, fix = f"the {role} is {architecture.title}.", f"give a LoRA that was trained on the {role}"
    elif asked:
        why, fix = f"one for {asked.title} is needed.", f"give a LoRA for {asked.title}"
    else:
        why, fix = "which is not supported.", f"give a LoRA of one of these: {known}"
    return MismatchError(
        what + why, where=str(path), values=f"{count(len(refs), 'key')}, e.g. {next(iter(refs))}", fix=fix
    )
