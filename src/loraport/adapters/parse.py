"""Opening a LoRA file: recognise every key, refuse what is not understood, by name."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.assemble import Assembled, assemble
from loraport.adapters.belonging import doubts_about_family, families_of, title_in, title_of
from loraport.adapters.dialect import Dialect
from loraport.adapters.fit import check_fit
from loraport.adapters.grammar import grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import Piece
from loraport.adapters.known import ModelFacts
from loraport.adapters.opened import open_file
from loraport.adapters.passthrough import Passthrough
from loraport.adapters.pattern import dropping
from loraport.adapters.peft_config import PEFT_FILE, AdapterConfig, read_config
from loraport.adapters.pieces import choose, dialect_of, misnumbered, piece_of, sort_keys
from loraport.adapters.refusals import (
    doubts,
    idle_choices,
    not_a_lora,
    refuse_kinds,
    scale_doubts,
    unmatched_keys,
)
from loraport.adapters.saved import SavedWhole, said_of_saved, saved_whole
from loraport.adapters.scale import FROM_CONFIG, FROM_HEADER, FROM_METADATA, check_factor
from loraport.adapters.shared_names import shared_title
from loraport.containers.names import Expert, named_path
from loraport.containers.references import TensorRef, all_zero, refusal
from loraport.errors import FileError, MismatchError, UsageError
from loraport.models.architecture import Architecture, detect
from loraport.models.checkpoint import AUTO, Checkpoint
from loraport.models.family import Family
from loraport.models.keys import key_rules
from loraport.wording import count


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
    possible = [known.family] if known else families_of(refs, path, architecture)
    family = possible[0]
    asked = None if architecture == AUTO else family
    if family.only_recognised:
        raise not_a_lora(path, refs, known, role, title_in(refs, family, path))
    whole = saved_whole(refs, path, metadata)
    dropped = _dropped(refs, family, drop, whole)
    hit, left_out = bool(dropped), {*dropped, *whole.idle}
    pieces, texts, unmatched = sort_keys({key: ref for key, ref in refs.items() if key not in left_out}, family, whole)
    if not pieces and len(dropped) == len(refs):
        raise UsageError("drop leaves nothing of the LoRA", where=str(path), values=str(drop))
    if not pieces:
        if path.stem == PEFT_FILE:
            read_config(path, metadata, "")  # an adapter that is not read is refused by its own name
        raise not_a_lora(path, refs, known, role, title_of(refs, family, path), asked)
    if known is not None and unmatched and (title := title_of(refs, family, path)):
        # Names that families share are not enough: another one knows the rest as well.
        raise not_a_lora(path, refs, known, role, title)
    idle = idle_choices(pieces, expert, adapter)
    pieces, others = choose(pieces, "expert", expert, path)
    pieces, strangers = choose(pieces, "adapter", adapter, path)
    dropped += others + strangers + [key for key in whole.idle if key not in dropped]
    dialect = dialect_of(pieces, family)
    config = _config(path, metadata, dialect, scale)
    done = assemble(pieces, family, config if dialect.alpha == "none" else None, path, scale, _known(model))
    spared = drop is not None and not _drop_layers(done, drop) and not hit
    besides = _besides(unmatched, family) if layers_alone else []
    unmatched = [key for key in unmatched if key not in besides]
    problems = {**dict.fromkeys(unmatched, ""), **misnumbered(pieces, dialect.names), **done.leftover}
    own = detect({name: layer.shape for name, layer in done.layers.items()}, family)
    _check_shapes(own, path)
    if len(possible) > 1:
        own = replace(own, title=shared_title([own.title, *(title_in(refs, each, path) for each in possible[1:])]))
    if known is not None:
        misfits = check_fit(done, own, model if model is not None else known, role, path)
        homeless = [item for item in done.passthrough if misfits.keys() & set(item.keys)]
        if layers_alone:
            besides += [key for item in homeless for key in item.keys]
        else:
            homeless = _blank(homeless)
            dropped += [key for item in homeless for key in item.keys if key not in dropped]
        done.passthrough = [item for item in done.passthrough if item not in homeless]
        problems.update({key: why for key, why in misfits.items() if key not in (*besides, *dropped)})
    if problems and not allow_partial:
        raise unmatched_keys(path, problems, len(refs), role, known, family)
    done, gone = _without(done, problems)
    if not done.layers and not done.passthrough:
        raise unmatched_keys(path, problems, len(refs), role, known, family)
    texts_passed = tuple(Passthrough((key,), key, "text_encoder", refs[key]) for key in texts)
    return LoraAdapter(
        path=path,
        dialect=replace(dialect, alpha=_alpha_place(dialect, config, done)),
        architecture=own,
        layers={name: done.layers[name] for name in own.expected if name in done.layers},
        passthrough=(*done.passthrough, *texts_passed),
        dropped=(*dropped, *besides, *gone),
        metadata=metadata,
        dtype=_common_dtype(pieces),
        keys=tuple(refs),
        warnings=(
            *opened.notes,
            *idle,
            *doubts_about_family(possible),
            *done.warnings,
            *scale_doubts(done.layers.values(), config, dialect, metadata),
            *said_of_saved(whole),
            *doubts(pieces, gone),
            *_said(besides),
        ),
        expert=next((piece.at.expert for piece in pieces if piece.at.expert), None),
        nest=opened.nest,
        others=tuple(possible[1:]),
        spared=spared,
    )


def experts_in(path: str | Path) -> frozenset[Expert]:
    """The experts of Wan2.2 that the keys of a LoRA name: "high", "low". Raises FileError, MismatchError.

    Args:
        path: as for `open_adapter`.
    """
    return frozenset(expert_of_keys(open_file(named_path(path)).refs).values())


def expert_of_keys(keys: Iterable[str]) -> dict[str, Expert]:
    """The keys that name an expert of Wan2.2, with its name."""
    keys = list(keys)
    found = {key: expert for key in keys for prefix, expert in key_rules().experts.items() if key.startswith(prefix)}
    if "low" in found.values():  # as diffusers writes the pair
        found |= {key: "high" for key in keys if key.startswith("transformer.")}
    return found


def _known(model: Checkpoint | Architecture | None) -> ModelFacts:
    if isinstance(model, Checkpoint):
        return ModelFacts(model.architecture.modules, model.tensors)
    return ModelFacts() if model is None else ModelFacts(model.modules)


def _config(path: Path, metadata: Mapping[str, str], dialect: Dialect, scale: float | None) -> AdapterConfig | None:
    try:
        return read_config(path, metadata, dialect.prefix)
    except FileError:
        if scale is None:
            raise
        return None  # damaged, and not needed


def _besides(keys: Sequence[str], family: Family) -> list[str]:
    """Keys of parts that variants of the family have besides its own layers."""
    return [key for key in keys if any(has.search(key) for has in family.additions.values())]


def _blank(passthrough: Sequence[Passthrough]) -> list[Passthrough]:
    """Biases of zero, which files for diffusers have for every layer, whether or not the layer has a bias."""
    zero = [item for item in passthrough if item.as_stored and item.param.endswith(".bias") and all_zero(item.ref)]
    other = {key for item in passthrough if item not in zero for key in item.keys}  # of a fused weight
    return [item for item in zero if not other & set(item.keys)]


def _said(besides: Sequence[str]) -> list[str]:
    if not besides:
        return []
    what = count(len(besides), "key", "changes/change")
    return [f"{what} what the model does not have in that form, and no layer of it: {besides[0]}"]


def _check_shapes(own: Architecture, path: Path) -> None:
    """A LoRA of one model has layers whose sizes agree."""
    if own.lookalike is not None:
        raise MismatchError(f"This LoRA is for {own.title}, which is not supported.", where=str(path))
    if own.misfits:
        name, wrong = next(iter(own.misfits.items()))
        raise MismatchError(
            f"the sizes contradict each other at {name}", where=str(path), values=wrong,
            fix="the file is damaged, or joined of LoRAs for different models; --drop leaves layers out",
        )  # fmt: skip


def _dropped(refs: Mapping[str, TensorRef], family: Family, drop: str | None, whole: SavedWhole) -> list[str]:
    if drop is None:
        return []
    found = dropping(drop).search
    parts = {key: piece.at.parts for key, ref in refs.items() if (piece := piece_of(key, ref, family, refs, whole))}
    return [key for key in refs if found(key) or (key in parts and all(found(part.module) for part in parts[key]))]


def _drop_layers(done: Assembled, drop: str) -> bool:
    """Leave out single layers of a fused weight, where the key stays for the others; whether there are any."""
    before, found = len(done.layers) + len(done.passthrough), re.compile(drop).search
    done.layers = {name: layer for name, layer in done.layers.items() if not found(name)}
    done.passthrough = [item for item in done.passthrough if not found(item.module)]
    return len(done.layers) + len(done.passthrough) < before


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


def _common_dtype(pieces: Sequence[Piece]) -> str:
    # Whole matrices are mostly of small layers, often in another dtype.
    essential = {part for kind in KINDS.values() for part in kind.essential if part not in grammar().changes}
    numbers = [piece for piece in pieces if refusal(piece.ref) is None] or pieces
    factors = Counter(piece.ref.dtype for piece in numbers if piece.part in essential)
    return (factors or Counter(piece.ref.dtype for piece in numbers)).most_common(1)[0][0]
