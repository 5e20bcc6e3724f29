"""What the keys of one module are: whether they make an update, of which kind, and at which scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loraport.adapters.grammar import NOTES, grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import Claim, Piece
from loraport.adapters.ownership import wrapped_paths
from loraport.adapters.peft_config import AdapterConfig
from loraport.adapters.scale import ASSUMED, BY_HAND, read_alpha, read_number, scale_of
from loraport.errors import UnsupportedError


@dataclass(frozen=True)
class Scales:
    """What speaks of scales besides the tensors: a PEFT configuration, and the user."""

    config: AdapterConfig | None
    stated: float | None


def has_update(parts: Mapping[str, Piece]) -> bool:
    """Whether there are factors of whatever kind, not just a change or an alpha."""
    return any(part not in NOTES and part not in grammar().changes for part in parts)


def claim_of(module: str, parts: Mapping[str, Piece], path: Path, leftover: dict[str, str]) -> tuple[str, Claim] | None:
    """What the keys of a linear layer are: a kind and its claim; None where there is no update, or a part of one.

    Args:
        module: what to call it in messages.
        parts: part -> its key, all keys of the module.
        path: the file, for messages.
        leftover: key -> what is wrong with it; halves of a pair are added.

    Raises:
        MismatchError: parts that do not fit each other.
        UnsupportedError: two kinds of update, or a variant that is recognised and refused.
    """
    claims: dict[str, Claim] = {}
    for kind in KINDS.values():
        claim = kind.claim(module, parts)
        if isinstance(claim, Claim):
            claims[kind.name] = claim
        elif claim is not None:
            mine = [parts[part] for part in parts if part in kind.essential]
            why = f"its other half {_spelled(mine[0], claim)} is missing"
            leftover.update({piece.key: why for piece in mine})
    # Factors below a magnitude are that kind's own, and no update beside it.
    claims = {
        name: claim
        for name, claim in claims.items()
        if not any(set(claim.used) < set(other.used) for other in claims.values())
    }
    if len(claims) > 1:
        raise UnsupportedError(
            f"{module} has updates of several kinds: {' and '.join(claims)}",
            where=str(path),
            values=", ".join(parts[claim.used[0]].key for claim in claims.values()),
            fix="keep one of them, and leave the other out with --drop",
        )
    return next(iter(claims.items()), None)


def scale_of_claim(parts: Mapping[str, Piece], claim: Claim, scales: Scales) -> tuple[float, str]:
    """What an update is multiplied with, and where that comes from, for people.

    Args:
        parts: part -> its key, all keys of the module.
        claim: on them.
        scales: what else speaks of it.

    Raises:
        NumericalError: a number that is no scale.
        FileError: an alpha that is not one number.
        MismatchError: a configuration that states another rank.
        UnsupportedError: a kind that leaves its scale to a configuration, which is missing.
    """
    factor, source = _scale(parts, claim, scales)
    if "scalar" in parts and not claim.fixed and scales.stated is None:
        factor *= read_number(parts["scalar"].ref)
        source += " times .scalar"
    return factor, source


def _scale(parts: Mapping[str, Piece], claim: Claim, scales: Scales) -> tuple[float, str]:
    if claim.fixed:
        return 1.0, claim.unscaled
    if scales.stated is not None:
        return scales.stated, BY_HAND
    for part in ("alpha", "lora_alpha"):
        if part in parts and claim.divisor is not None:
            piece = parts[part]
            return scale_of(read_alpha(piece.ref), claim.divisor, where=piece.ref.name), f".{part} tensor"
    if scales.config is not None:
        piece = parts[claim.used[0]]
        configured = scales.config.scale(wrapped_paths(piece), claim.divisor, str(piece.ref.file))
        if configured is not None:
            return configured, scales.config.source
    kind = next(kind for kind in KINDS.values() if claim.used[0] in kind.essential)
    if kind.scale_unsaid:
        piece = parts[claim.used[0]]
        raise UnsupportedError(
            f"a {kind.title} does not say how strong it is",
            where=str(piece.ref.file),
            values=f"rank {claim.divisor}, {piece.key}",
            fix="give lora_alpha / r of its training with --scale (of transfer, check and convert); if lora_alpha was "
            "not set, it is 1, so use "
            f"--scale {1 / (claim.divisor or 1):g}",
        )
    return 1.0, claim.unscaled or ASSUMED


def _spelled(piece: Piece, part: str) -> str:
    """The key of another part of the same module, in the same style."""
    rules = grammar()
    suffix = rules.split_suffix(piece.key)
    assert suffix is not None
    style = rules.styles[piece.style or "peft"]
    texts = next(
        (kind.endings[part] for kind in KINDS.values() if part in kind.endings), (style.get(part, f".{part}"),)
    )
    ending = next((text for text in texts if ("<adapter>" in text) == (piece.adapter is not None)), texts[0])
    return piece.key[: -suffix.length] + ending.replace("<adapter>", piece.adapter or "")
