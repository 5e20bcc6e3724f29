"""Whether a PEFT configuration is a LoRA file's own, or merely lies beside it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from loraport.adapters.kinds.base import Claim, Piece
from loraport.adapters.pattern import Patterns
from loraport.adapters.peft_config import PEFT_FILE, PEFT_PREFIX, AdapterConfig
from loraport.adapters.scale import FROM_CONFIG
from loraport.errors import UnsupportedError
from loraport.models.family import Family

OF_CONFIG = {"OFT": "oft", "BOFT": "oft", "IA3": "ia3", "VERA": "vera"}  # PEFT's name -> kind


def own_config(
    config: AdapterConfig,
    layers: Sequence[tuple[Mapping[str, Piece], str, Claim]],
    family: Family,
    path: Path,
    *,
    judged: bool,
) -> tuple[AdapterConfig | None, list[str]]:
    """The configuration, if it is the file's own, and what to tell where it is not.

    Args:
        config: found in or beside the file.
        layers: the parts of each update, its kind, and how that understands them.
        family: of the model.
        path: the file.
        judged: whether it is doubted at all; not where the scale is stated by hand.

    Raises:
        UnsupportedError: it must be the file's own, and speaks of another kind.
    """
    kinds = {kind for _, kind, _ in layers}
    if judged:
        why = why_stray(config, [(parts, claim) for parts, _, claim in layers], family, path)
        kind = OF_CONFIG.get(config.kind)
        if kind is not None and kinds and kind not in kinds:
            other = f"it is for {config.kind}, and the file holds none"
            if not why and (config.source != FROM_CONFIG or _is_pefts(path, [parts for parts, _, _ in layers])):
                raise UnsupportedError(
                    f"the {config.source} does not belong to the file: {other}",
                    where=str(path),
                    values=f"peft_type {config.kind}",
                    fix="use the LoRA together with its own configuration",
                )
            why = why or other
        if why:
            return None, [f"{config.source} does not belong to the file ({why}), so it was ignored"]
    if config.dora and kinds and "dora" not in kinds:
        raise UnsupportedError(
            "the configuration is for DoRA, but the file has no magnitudes",
            where=str(path),
            values=f"use_dora in the {config.source}",
            fix="use a complete copy of the LoRA, or move the configuration away if it belongs to another LoRA",
        )
    return config, []


def why_stray(
    config: AdapterConfig, layers: Sequence[tuple[Mapping[str, Piece], Claim]], family: Family, path: Path
) -> str:
    """Why a configuration beside the file cannot be the file's own; "" where it may be.

    Files of PEFT lie beside their configuration by name. Any other file may merely share the folder with one: such
    a configuration is believed only if it fits the file in its kind, its rank and the modules it speaks of.
    """
    layers = [(parts, claim) for parts, claim in layers if not claim.fixed]  # whole weights tell nothing of it
    pieces = [parts[claim.used[0]] for parts, claim in layers]
    if config.source != FROM_CONFIG or not layers:
        return ""
    if _is_pefts(path, [parts for parts, _ in layers]):
        return ""
    ranks = [claim.divisor for _, claim in layers if claim.divisor is not None]
    try:
        stated = [config.stated_rank(wrapped_paths(piece)) for piece in pieces]
        fitting = [
            rank is None or claim.divisor in (None, rank) for rank, (_, claim) in zip(stated, layers, strict=True)
        ]
        if not any(fitting):
            return f"it states rank {stated[0]:g}, the factors have {ranks[0]}"
        if config.targets is not None and not any(_trained(config.targets, piece, family) for piece in pieces):
            named = next(iter(config.targets.values)).replace("\\", "")
            return f"it is for modules like {named}"
    except UnsupportedError:
        return ""  # a pattern that cannot be evaluated: refused where a scale hangs on it
    return ""


def wrapped_paths(piece: Piece) -> list[str]:
    """The path of a piece's module inside the model that PEFT wrapped.

    Keys of PEFT's own state dictionary say it: it is what follows `base_model.model.`, a further prefix included.
    Otherwise the trainer wrote a prefix of its own, and a pattern may have been made with it or without.
    """
    whole = piece.at.prefix + piece.at.spelled
    if whole.startswith(PEFT_PREFIX):
        return [whole.removeprefix(PEFT_PREFIX)]
    return [piece.at.spelled] if whole == piece.at.spelled else [piece.at.spelled, whole]


def _is_pefts(path: Path, modules: Iterable[Mapping[str, Piece]]) -> bool:
    """Whether a file is PEFT's own, by its name or its keys, so that a configuration beside it is its own too."""
    keys = (piece for parts in modules for piece in parts.values())
    return path.stem == PEFT_FILE or any(piece.at.prefix.startswith(PEFT_PREFIX) for piece in keys)


def _trained(targets: Patterns, piece: Piece, family: Family) -> bool:
    # Trainers rename modules when they save, so the configuration may know them by any name.
    spelled = {family.spell(piece.at.module, naming) for naming in family.namings}
    return targets.find([*wrapped_paths(piece), *spelled]) is not None
