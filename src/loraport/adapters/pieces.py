"""Which part of which layer each key of a LoRA file is, and how the file spells them."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from loraport.adapters.dialect import PROFILES, Dialect
from loraport.adapters.grammar import SET_BIAS, Suffix, grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import AdapterKind, Piece
from loraport.adapters.saved import NONE_SAVED, Saved, SavedWhole
from loraport.containers.references import TensorRef
from loraport.errors import UsageError
from loraport.models.family import Family
from loraport.models.keymap import keymap_of
from loraport.models.keys import key_rules


def sort_keys(
    refs: Mapping[str, TensorRef], family: Family, whole: SavedWhole = NONE_SAVED
) -> tuple[list[Piece], list[str], list[str]]:
    """Keys that are parts of known modules, keys of text encoders, and the rest.

    Args:
        refs: the keys of the file.
        family: of the model.
        whole: which of them are new values of parameters; without it those count as the rest.
    """
    rules = grammar()
    pieces: list[Piece] = []
    texts: list[str] = []
    unmatched: list[str] = []
    shared: list[tuple[AdapterKind, Suffix, str]] = []
    for key, ref in refs.items():
        if key.startswith(rules.text_encoders):
            texts.append(key)
            continue
        piece = piece_of(key, ref, family, refs, whole)
        if piece is not None:
            pieces.append(piece)
            continue
        suffix = rules.split_suffix(key)
        of_all = next((kind for kind in KINDS.values() if suffix is not None and suffix.part in kind.shared), None)
        if suffix is not None and of_all is not None:
            shared.append((of_all, suffix, key))
        else:
            unmatched.append(key)
    for kind, suffix, key in shared:
        places = {piece.at.parts: piece.at for piece in pieces if piece.part in kind.essential}
        pieces += [Piece(key, refs[key], suffix.part, None, suffix.adapter, at) for at in places.values()]
        unmatched += [] if places else [key]
    prefixes = {piece.at.prefix for piece in pieces}
    if "transformer_2." in prefixes:
        # diffusers writes the pair like this; alone, "transformer." says nothing about experts.
        pieces = [
            replace(piece, at=replace(piece.at, expert="high")) if piece.at.prefix == "transformer." else piece
            for piece in pieces
        ]
    return pieces, texts, unmatched


def piece_of(
    key: str, ref: TensorRef, family: Family, refs: Mapping[str, TensorRef], whole: SavedWhole
) -> Piece | None:
    """A key as a part of a known module; None where it is none.

    Args:
        key: the raw key.
        ref: its tensor.
        family: of the model.
        refs: all keys of the file, on which some ends of keys depend.
        whole: as for `sort_keys`.
    """
    if key in whole.values:
        return _value(key, ref, whole.values[key], family)
    plain, suffix, stems = _taken_apart(key)
    if suffix is None and key.endswith(".weight") and f"{key.removesuffix('.weight')}.on_input" in refs:
        suffix, stems = Suffix("ia3_weight", None, None, len(".weight")), [plain.removesuffix(".weight")]
    if suffix is None:
        return None
    keymap, naming = keymap_of(family), family.alike_of_key(key)
    at = next((found for stem in stems if (found := keymap.resolve(stem, naming))), None)
    return None if at is None else Piece(key, ref, suffix.part, suffix.style, suffix.adapter, at)


def _value(key: str, ref: TensorRef, saved: Saved, family: Family) -> Piece | None:
    """A key that holds a parameter whole."""
    keymap, naming = keymap_of(family), family.alike_of_key(key)
    for ending, part in ((".bias", SET_BIAS), (".weight", "set_weight"), ("", "set_weight")):
        at = keymap.resolve(saved.name.removesuffix(ending), naming) if saved.name.endswith(ending) else None
        role = family.role(at.module) if at is not None else None
        if at is not None and role is not None and (ending or role == "param"):
            return Piece(key, ref, part, None, saved.adapter, at)
    return None


def stems_of(key: str) -> list[str]:
    """The paths of modules that a key may be a part of: none where it ends like no part of a LoRA."""
    return _taken_apart(key)[2]


def _taken_apart(key: str) -> tuple[str, Suffix | None, list[str]]:
    """A key without the names of wrappers, its end, and the paths before that."""
    plain = key_rules().unwrap(key)
    suffix = grammar().split_suffix(plain)
    if suffix is None:
        return plain, None, []
    stem = plain[: -suffix.length]
    # Written in the place of the parameter's own name, not after it.
    return plain, suffix, [f"{stem}.modulation", f"{stem}_modulation"] if suffix.part == "diff_m" else [stem]


def choose(pieces: Sequence[Piece], what: str, wanted: str | None, path: Path) -> tuple[list[Piece], list[str]]:
    """The pieces of one expert or one named adapter, and the keys of the others.

    Args:
        pieces: of the whole file.
        what: "expert" or "adapter".
        wanted: its name; None where the file need not name any, or one alone.
        path: the file, for messages.

    Raises:
        UsageError: there is none of that name, or there are several and none was named.
    """
    label = {piece.key: piece.at.expert if what == "expert" else piece.adapter for piece in pieces}
    names = sorted({name for name in label.values() if name is not None})
    if wanted is not None and names and wanted not in names:
        raise UsageError(f"the file has no {what} {wanted!r}", where=str(path), values=", ".join(names))
    if len(names) > 1 and wanted is None:
        raise UsageError(
            f"the file holds several LoRAs, one for each {what}; choose one",
            where=str(path),
            values=", ".join(names),
            fix=" or ".join(f"--{what} {name}" for name in names[:2]),
        )
    kept = [piece for piece in pieces if label[piece.key] in (None, wanted or (names[0] if names else None))]
    keys = {piece.key for piece in kept}
    return kept, [piece.key for piece in pieces if piece.key not in keys]


def dialect_of(pieces: Sequence[Piece], family: Family) -> Dialect:
    """How most of the pieces are spelled."""
    namings = Counter(naming for piece in pieces for naming in piece.at.namings)
    prefix, flat = Counter((piece.at.prefix, piece.at.flat) for piece in pieces).most_common(1)[0][0]
    # Where namings agree on all the layers, it is the one that goes with the prefix.
    usual = {profile.dialect.names for profile in PROFILES.values() if profile.dialect.prefix == prefix}
    styles = Counter(piece.style for piece in pieces if piece.style)
    adapters = Counter(piece.adapter for piece in pieces if piece.adapter)
    parts = {piece.part for piece in pieces}
    others = [kind for kind in KINDS.values() if parts & set(kind.essential) & set(kind.endings)]
    plain = ["plain factors"] if others and styles else []
    found = Dialect(
        prefix=prefix,
        names=max(family.namings, key=lambda name: (namings[name], name in usual)),
        style=styles.most_common(1)[0][0] if styles else "kohya" if flat else "peft",
        flat=flat,
        adapter=adapters.most_common(1)[0][0] if adapters else None,
        alpha="alpha" if "alpha" in parts else "lora_alpha" if "lora_alpha" in parts else "none",
        others=tuple(plain + [kind.title for kind in others]),
    )
    return found if styles else found.of([piece.key for piece in pieces])


def misnumbered(pieces: Sequence[Piece], names: str) -> dict[str, str]:
    """Keys of numbered norms in another naming than the rest of the file, with the reason: the same number means
    another norm there, so which one is meant is not known."""
    return {
        piece.key: f"a norm as {' or '.join(sorted(piece.at.namings))} names count them, in a file of {names} names"
        for piece in pieces
        if names not in piece.at.namings and re.search(r"(^|[._])norm\d+$", piece.at.spelled)
    }
