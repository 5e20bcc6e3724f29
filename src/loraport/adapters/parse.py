"""Opening a LoRA file: recognise every key, refuse what is not understood, by name."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.assemble import Assembled, assemble
from loraport.adapters.dialect import PROFILES, Dialect
from loraport.adapters.fit import check_fit
from loraport.adapters.grammar import Suffix, grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import AdapterKind, Piece
from loraport.adapters.known import Model
from loraport.adapters.opened import PEFT_FILE, open_file
from loraport.adapters.passthrough import Passthrough
from loraport.adapters.pattern import Search
from loraport.adapters.refusals import (
    doubts,
    idle_choices,
    not_a_lora,
    refuse_kinds,
    scale_doubts,
    unmatched_keys,
)
from loraport.adapters.scale import FROM_CONFIG, FROM_HEADER, FROM_METADATA, AdapterConfig, check_factor, read_config
from loraport.adapters.shared_names import shared_title
from loraport.containers.names import Expert, named_path
from loraport.containers.tensors import TensorRef, refusal
from loraport.errors import FileError, LoraportError, MismatchError, UsageError
from loraport.models.architecture import Architecture, detect
from loraport.models.checkpoint import ANY, AUTO, Checkpoint, check_architecture
from loraport.models.family import Family, families, recognised
from loraport.models.keymap import keymap_of, known_to
from loraport.models.keys import MAX_LOOKED_AT, key_rules


def open_adapter(
    path: str | Path,
    model: Checkpoint | Architecture | None = None,
    *,
    role: str = "source",
    expert: str | None = None,
    adapter: str | None = None,
    drop: str | None = None,
    allow_partial: bool = False,
    scale: float | None = None,
    layers_alone: bool = False,
    architecture: str = AUTO,
) -> LoraAdapter:
    """Open a LoRA by its header; alphas are read, factors are not.

    Args:
        path: a safetensors or torch file, a folder that holds one adapter, or `zoo:NAME`.
        model: what it must fit; without it only the family is required.
        role: what the model is called in messages.
        expert: "high" or "low", for files that hold the LoRAs of both Wan2.2 experts.
        adapter: which adapter, for files that name several, in their keys or as parts of a torch file.
        drop: regular expression; keys and canonical layers in which it is found are left out.
        allow_partial: leave unmatched keys and half pairs out (listed in `dropped`) instead of refusing the file.
        scale: alpha / rank stated by hand; wins over everything in or beside the file, and every layer's
            `scale_source` says so. Whole matrices have no scale and stay as they are.
        layers_alone: only linear layers matter, as of a LoRA that makes a target: other changes that do not fit the
            model, and those of parts that variants of its family have besides, are left out with a warning.
        architecture: without a model, the family it is for; "auto" to recognise it.

    Raises:
        FileError: missing, damaged or unsafe.
        UnmatchedKeysError: keys that name no layer, or half pairs; with the nearest known ones.
        UnsupportedError: what is recognised and not read, by name.
        MismatchError: a checkpoint, another family, another size.
        NumericalError: an alpha that is negative or not finite.
        UsageError: `scale` is not above zero; `drop` is no regular expression or leaves nothing; several LoRAs
            and none is named.
    """
    if scale is not None:
        check_factor(scale, "scale")
    opened = open_file(named_path(path), adapter)
    path, refs, metadata = opened.path, opened.refs, opened.metadata
    adapter = None if opened.chosen else adapter
    known = model.architecture if isinstance(model, Checkpoint) else model
    refuse_kinds(path, refs)
    possible = [known.family] if known else _families_of(refs, path, architecture)
    family = possible[0]
    if family.only_recognised:
        raise not_a_lora(path, refs, known, role, _title_in(refs, family, path))
    dropped = _dropped(refs, family, drop)
    left_out = set(dropped)
    pieces, texts, unmatched = _sort({key: ref for key, ref in refs.items() if key not in left_out}, family)
    if not pieces and len(dropped) == len(refs):
        raise UsageError("drop leaves nothing of the LoRA", where=str(path), values=str(drop))
    if not pieces:
        if path.stem == PEFT_FILE:
            read_config(path, metadata, "")  # an adapter that is not read is refused by its own name
        raise not_a_lora(path, refs, known, role, _title_of(refs, family, path))
    if known is not None and unmatched and (title := _title_of(refs, family, path)):
        # Names that families share are not enough: another one knows the rest as well.
        raise not_a_lora(path, refs, known, role, title)
    idle = idle_choices(pieces, expert, adapter)
    pieces, others = _choose(pieces, "expert", expert, path)
    pieces, strangers = _choose(pieces, "adapter", adapter, path)
    dropped += others + strangers
    dialect = _dialect(pieces, family)
    config = _config(path, metadata, dialect, scale)
    done = assemble(pieces, family, config if dialect.alpha == "none" else None, path, scale, _known(model))
    _drop_layers(done, drop)
    besides = _besides(unmatched, family) if layers_alone else []
    unmatched = [key for key in unmatched if key not in besides]
    problems = {**dict.fromkeys(unmatched, ""), **_misnumbered(pieces, dialect.names), **done.leftover}
    own = detect({name: layer.shape for name, layer in done.layers.items()}, family)
    _check_shapes(own, path)
    if len(possible) > 1:
        own = replace(own, title=shared_title([own.title, *(_title_in(refs, each, path) for each in possible[1:])]))
    if known is not None:
        misfits = check_fit(done, own, model if model is not None else known, role, path)
        if layers_alone:
            besides += [key for item in done.passthrough for key in item.keys if key in misfits]
            done.passthrough = [item for item in done.passthrough if not misfits.keys() & set(item.keys)]
        problems.update({key: why for key, why in misfits.items() if key not in besides})
    if problems and not allow_partial:
        raise unmatched_keys(path, problems, len(refs), role, known, family)
    done, gone = _without(done, problems)
    if not done.layers and not done.passthrough:
        raise unmatched_keys(path, problems, len(refs), role, known, family)
    texts_passed = tuple(Passthrough((key,), key, "text_encoder", refs[key]) for key in texts)
    return LoraAdapter(
        path,
        replace(dialect, alpha=_alpha_place(dialect, config, done)),
        own,
        {name: done.layers[name] for name in own.expected if name in done.layers},
        tuple(done.passthrough) + texts_passed,
        tuple(dropped) + tuple(besides) + tuple(gone),
        metadata,
        _common_dtype(done, pieces),
        tuple(refs),
        tuple(
            list(opened.notes)
            + idle
            + _other_families(possible)
            + done.warnings
            + scale_doubts(done.layers.values(), config, dialect, metadata)
            + doubts(pieces, gone)
            + _said(besides)
        ),
        next((piece.at.expert for piece in pieces if piece.at.expert), None),
        opened.nest,
        tuple(possible[1:]),
    )


def experts_in(path: str | Path) -> frozenset[Expert]:
    """The experts of Wan2.2 that the keys of a LoRA name: "high", "low". Raises FileError, MismatchError.

    Args:
        path: as for `open_adapter`.
    """
    keys = open_file(named_path(path)).refs
    found = {expert for key in keys for prefix, expert in key_rules().experts.items() if key.startswith(prefix)}
    if "low" in found and any(key.startswith("transformer.") for key in keys):  # as diffusers writes the pair
        found.add("high")
    return frozenset(found)


def _known(model: Checkpoint | Architecture | None) -> Model:
    if isinstance(model, Checkpoint):
        return Model(model.architecture.modules, model.tensors)
    return Model() if model is None else Model(model.modules)


def _config(path: Path, metadata: Mapping[str, str], dialect: Dialect, scale: float | None) -> AdapterConfig | None:
    try:
        return read_config(path, metadata, dialect.prefix)
    except FileError:
        if scale is None:
            raise
        return None  # damaged, and not needed


def _families_of(refs: Mapping[str, TensorRef], path: Path, stated: str = AUTO) -> list[Family]:
    """The family that a LoRA is for, and those that it may as well be for; some of them only recognised.

    It is the one that knows most of the keys; in a file of very many, most of some thousand of them. Where several
    know as many (layers of the attention are called the same in many families), sizes decide.
    """
    check_architecture(stated)
    if stated == ANY:
        raise UsageError(
            "names alone tell nothing without a model that has them",
            where=str(path),
            fix="name the model with --model, or leave --architecture any out",
        )
    if stated != AUTO:
        return [families()[stated]]
    sample = dict(islice(refs.items(), 0, None, 1 + len(refs) // MAX_LOOKED_AT))
    counts = Counter(name for key in sample for name in _known_to(key))
    best: list[Family] = []
    for count in sorted(set(counts.values()), reverse=True):
        most = [family for family in families().values() if counts[family.name] == count]
        best = [family for family in most if family.lookalike(sample) is None]
        best += [family for family in recognised().values() if counts[family.name] == count]
        if best:
            break
    if not best:
        # Betrayed by a name or a size, or nothing is known at all: what is said of it depends on neither.
        possible = [family for family in families().values() if family.lookalike(sample) is None]
        return (possible or list(families().values()))[:1]
    if len(best) > 1:
        fits = {family.name: _own(_sort(sample, family)[0], family, path) for family in best}
        plausible = {name: own.plausible if own else (False, False, False) for name, own in fits.items()}
        best = [family for family in best if plausible[family.name] == max(plausible.values())]
        # Named first is the family of which most is there.
        covered = {name: own.covered if own else 0.0 for name, own in fits.items()}
        best.sort(key=lambda family: (family.only_recognised, -covered[family.name]))
    return best


def _known_to(key: str) -> frozenset[str]:
    """The names of the families that a key may belong to."""
    if key.startswith(grammar().text_encoders):
        return frozenset()
    stems = _stems(key)
    return frozenset().union(*map(known_to, stems))


def _other_families(possible: Sequence[Family]) -> list[str]:
    if len(possible) < 2:
        return []
    others = " or ".join(family.title for family in possible[1:])
    return [
        f"taken for a LoRA of {possible[0].title}; by its names and sizes it may be one of {others} (--model decides)"
    ]


def _own(pieces: Sequence[Piece], family: Family, path: Path) -> Architecture | None:
    """What a LoRA shows of its model, if the keys are of that family; None where its parts do not fit each other."""
    try:
        done = assemble(pieces, family, None, path, scale=1.0)
    except LoraportError:
        return None
    return detect({name: layer.shape for name, layer in done.layers.items()}, family)


def _title_of(refs: Mapping[str, TensorRef], tried: Family, path: Path) -> str | None:
    """What model a LoRA is for of which another family knows more keys than this one, or each that it may be for;
    None if none does."""
    found = _families_of(refs, path)
    if len(_sort(refs, found[0])[0]) <= len(_sort(refs, tried)[0]):
        return None
    return shared_title(_title_in(refs, family, path) for family in found)


def _title_in(refs: Mapping[str, TensorRef], family: Family, path: Path) -> str:
    own = _own(_sort(refs, family)[0], family, path)
    return family.title if own is None else own.title


def _besides(keys: Sequence[str], family: Family) -> list[str]:
    """Keys of parts that variants of the family have besides its own layers."""
    return [key for key in keys if any(has.search(key) for has in family.additions.values())]


def _said(besides: Sequence[str]) -> list[str]:
    if not besides:
        return []
    return [f"{len(besides)} keys change what the model does not have in that form, and no layer of it: {besides[0]}"]


def _check_shapes(own: Architecture, path: Path) -> None:
    """A LoRA of one model has layers whose sizes agree."""
    if own.lookalike is not None:
        raise MismatchError(f"This LoRA is for {own.title}, which is not supported.", where=str(path))
    if own.misfits:
        name, wrong = next(iter(own.misfits.items()))
        raise MismatchError(f"the sizes contradict each other at {name}", where=str(path), values=wrong)


def _dropped(refs: Mapping[str, TensorRef], family: Family, drop: str | None) -> list[str]:
    if drop is None:
        return []
    try:
        re.compile(drop)
    except re.error as error:
        raise UsageError("drop is no regular expression", values=f"{drop}: {error}") from error
    found = Search(drop)
    parts = {key: piece.at.parts for key, ref in refs.items() if (piece := _piece(key, ref, family, refs))}
    return [key for key in refs if found(key) or (key in parts and all(found(part.module) for part in parts[key]))]


def _drop_layers(done: Assembled, drop: str | None) -> None:
    """Leave out single layers of a fused weight; the key stays for the others."""
    if drop is not None:
        done.layers = {name: layer for name, layer in done.layers.items() if not Search(drop)(name)}
        done.passthrough = [item for item in done.passthrough if not Search(drop)(item.module)]


def _sort(refs: Mapping[str, TensorRef], family: Family) -> tuple[list[Piece], list[str], list[str]]:
    """Keys that are parts of known modules, keys of text encoders, and the rest."""
    rules = grammar()
    pieces: list[Piece] = []
    texts: list[str] = []
    unmatched: list[str] = []
    shared: list[tuple[AdapterKind, Suffix, str]] = []
    for key, ref in refs.items():
        if key.startswith(rules.text_encoders):
            texts.append(key)
            continue
        piece = _piece(key, ref, family, refs)
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
    if "transformer_2." in prefixes and "transformer." in prefixes:
        # diffusers writes the pair like this; alone, "transformer." says nothing about experts.
        pieces = [
            replace(piece, at=replace(piece.at, expert="high")) if piece.at.prefix == "transformer." else piece
            for piece in pieces
        ]
    return pieces, texts, unmatched


def _piece(key: str, ref: TensorRef, family: Family, refs: Mapping[str, TensorRef]) -> Piece | None:
    """A key as a part of a known module. `refs`: all keys of the file, which some ends of keys depend on."""
    plain, stems = key_rules().unwrap(key), _stems(key)
    suffix = grammar().split_suffix(plain)
    if suffix is None and key.endswith(".weight") and f"{key.removesuffix('.weight')}.on_input" in refs:
        suffix, stems = Suffix("ia3_weight", None, None, len(".weight")), [plain.removesuffix(".weight")]
    if suffix is None:
        return None
    keymap, naming = keymap_of(family), family.alike_of_key(key)
    at = next((found for stem in stems if (found := keymap.resolve(stem, naming))), None)
    return None if at is None else Piece(key, ref, suffix.part, suffix.style, suffix.adapter, at)


def _stems(key: str) -> list[str]:
    """The paths of modules that a key may be a part of: none where it ends like no part of a LoRA."""
    plain = key_rules().unwrap(key)
    suffix = grammar().split_suffix(plain)
    if suffix is None:
        return []
    stem = plain[: -suffix.length]
    # Written in the place of the parameter's own name, not after it.
    return [f"{stem}.modulation", f"{stem}_modulation"] if suffix.part == "diff_m" else [stem]


def _choose(pieces: Sequence[Piece], what: str, wanted: str | None, path: Path) -> tuple[list[Piece], list[str]]:
    """Keep the pieces of one expert or one named adapter; the keys of the others."""
    label = {piece.key: piece.at.expert if what == "expert" else piece.adapter for piece in pieces}
    names = sorted({name for name in label.values() if name is not None})
    if wanted is not None and names and wanted not in names:
        raise UsageError(f"the file has no {what} {wanted!r}", where=str(path), values=", ".join(names))
    if len(names) > 1 and wanted is None:
        raise UsageError(
            f"the file holds several LoRAs, one for each {what}; name the one that is meant",
            where=str(path),
            values=", ".join(names),
            fix=f"{what}={names[0]} (on the command line --{what} {names[0]})",
        )
    kept = [piece for piece in pieces if label[piece.key] in (None, wanted or (names[0] if names else None))]
    keys = {piece.key for piece in kept}
    return kept, [piece.key for piece in pieces if piece.key not in keys]


def _dialect(pieces: Sequence[Piece], family: Family) -> Dialect:
    namings = Counter(naming for piece in pieces for naming in piece.at.namings)
    prefix, flat = Counter((piece.at.prefix, piece.at.flat) for piece in pieces).most_common(1)[0][0]
    # Where namings agree on all the layers, it is the one that goes with the prefix.
    usual = {profile.dialect.names for profile in PROFILES.values() if profile.dialect.prefix == prefix}
    styles = Counter(piece.style for piece in pieces if piece.style)
    adapters = Counter(piece.adapter for piece in pieces if piece.adapter)
    parts = {piece.part for piece in pieces}
    others = [kind for kind in KINDS.values() if parts & set(kind.essential) & set(kind.endings)]
    plain = ["plain factors"] if others and styles else []
    return Dialect(
        prefix=prefix,
        names=max(family.namings, key=lambda name: (namings[name], name in usual)),
        style=styles.most_common(1)[0][0] if styles else "kohya" if flat else "peft",
        flat=flat,
        adapter=adapters.most_common(1)[0][0] if adapters else None,
        alpha="alpha" if "alpha" in parts else "lora_alpha" if "lora_alpha" in parts else "none",
        others=tuple(plain + [kind.title for kind in others]),
    )


def _misnumbered(pieces: Sequence[Piece], names: str) -> dict[str, str]:
    """Keys of numbered norms in another naming than the rest of the file, with the reason: the same number means
    another norm there, so which one is meant is not known."""
    return {
        piece.key: f"a norm as {' or '.join(sorted(piece.at.namings))} names count them, in a file of {names} names"
        for piece in pieces
        if names not in piece.at.namings and re.search(r"(^|[._])norm\d+$", piece.at.spelled)
    }


def _alpha_place(dialect: Dialect, config: AdapterConfig | None, done: Assembled) -> str:
    if dialect.alpha != "none" or config is None:
        return dialect.alpha
    used = {layer.scale_source for layer in done.layers.values()}
    places = {FROM_METADATA: "metadata", FROM_HEADER: "header", FROM_CONFIG: "config"}
    return next((name for source, name in places.items() if source in used), "none")


def _without(done: Assembled, problems: Mapping[str, str]) -> tuple[Assembled, list[str]]:
    """Leave out whatever has a key with a problem, whole."""
    layers = {name: layer for name, layer in done.layers.items() if not set(layer.keys) & problems.keys()}
    passthrough = [item for item in done.passthrough if not set(item.keys) & problems.keys()]
    gone = [key for name, layer in done.layers.items() if name not in layers for key in layer.keys]
    kept = {key for layer in layers.values() for key in layer.keys} | {key for item in passthrough for key in item.keys}
    gone = list(dict.fromkeys([*gone, *(key for key in problems if key not in kept)]))
    return Assembled(layers, passthrough, warnings=done.warnings), gone


def _common_dtype(done: Assembled, pieces: Sequence[Piece]) -> str:
    # Whole matrices are mostly of small layers, often in another dtype.
    essential = {part for kind in KINDS.values() for part in kind.essential if part not in grammar().changes}
    numbers = [piece for piece in pieces if refusal(piece.ref) is None] or pieces
    factors = Counter(piece.ref.dtype for piece in numbers if piece.part in essential)
    return (factors or Counter(piece.ref.dtype for piece in numbers)).most_common(1)[0][0]
