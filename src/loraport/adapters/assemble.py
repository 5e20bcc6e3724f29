"""From sorted pieces of a LoRA file to layer updates and carried tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loraport.adapters.adapter import Carried, LayerUpdate
from loraport.adapters.grammar import grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import Claim, Piece
from loraport.adapters.scale import ASSUMED, BY_HAND, AdapterConfig, read_alpha, scale_of
from loraport.errors import MismatchError, UnsupportedError
from loraport.models.family import Family
from loraport.models.placement import Part, Rows, is_whole, split, take_ref

NOTES = ("alpha", "lora_alpha", "lora_rank")  # they say something of an update and are nothing without it


@dataclass(frozen=True)
class Scales:
    """What speaks of scales besides the tensors: a PEFT configuration, and the user."""

    config: AdapterConfig | None
    stated: float | None


@dataclass
class Assembled:
    """What has been put together so far, and what was left over (key -> what is wrong with it)."""

    layers: dict[str, LayerUpdate] = field(default_factory=dict)
    carried: list[Carried] = field(default_factory=list)
    leftover: dict[str, str] = field(default_factory=dict)


def assemble(
    pieces: Sequence[Piece], family: Family, config: AdapterConfig | None, path: Path, scale: float | None = None
) -> Assembled:
    """Put the pieces of all modules together.

    Args:
        pieces: the keys of the file that name a known module.
        family: of the model.
        config: what PEFT's configuration says of the scale; None where there is none or tensors say it.
        path: the file, for messages.
        scale: stated by hand; wins over everything in or beside the file, which is then not even read.

    Raises:
        MismatchError: factors that do not fit each other, or one part of a module twice.
        UnsupportedError: a LoRA on something that is no linear layer.
        NumericalError: an alpha that is negative or not finite.
    """
    weights: dict[tuple[Part, ...], dict[str, Piece]] = {}
    for piece in pieces:
        parts = weights.setdefault(piece.at.parts, {})
        if piece.part in parts:
            raise _twice(piece.at.module, parts[piece.part].key, piece.key, path)
        parts[piece.part] = piece
    done = Assembled()
    for held, parts in weights.items():
        if is_whole(held):
            found = Assembled()
            _module(held[0].module, parts, family, Scales(config, scale), path, found)
        else:
            found = _fused(held, parts, family, Scales(config, scale), path)
        _add(done, found, path)
    return done


def _add(done: Assembled, found: Assembled, path: Path) -> None:
    """Add what a weight gave; refuse a layer that is there under its own name and in a fused weight as well."""
    for name, layer in found.layers.items():
        if name in done.layers:
            raise _twice(name, done.layers[name].keys[0], layer.keys[0], path)
    done.layers.update(found.layers)
    done.carried += found.carried
    done.leftover.update(found.leftover)


def _fused(held: tuple[Part, ...], parts: Mapping[str, Piece], family: Family, scales: Scales, path: Path) -> Assembled:
    """The layers of a weight that holds several, or one with its rows in another order: each gets its own rows."""
    spelled = next(iter(parts.values())).at.spelled
    template = family.template_of(held[0].module)
    assert template is not None
    whole = Assembled()
    _module(held[0].module, parts, family, scales, path, whole, spelled)
    found = Assembled(leftover=whole.leftover)
    for layer in whole.layers.values():
        for module, rows in _rows(
            held, layer.shape[0], {template.shape[1]: layer.shape[1]}, layer.keys[0], path
        ).items():
            own = KINDS[layer.kind].narrow(layer.parts, rows)
            if own is None:
                raise UnsupportedError(
                    f"the {layer.kind} adapter of {spelled}, a weight of several layers, cannot be taken apart",
                    where=str(path),
                    values=layer.keys[0],
                    fix="leave it out with --drop",
                )
            size = sum(end - start for start, end in rows)
            found.layers[module] = replace(layer, name=module, parts=own, shape=(size, layer.shape[1]))
    for item in whole.carried:
        for module, rows in _rows(held, item.ref.shape[0], {}, item.keys[0], path).items():
            param = module + item.param.removeprefix(held[0].module)
            found.carried.append(replace(item, param=param, ref=take_ref(item.ref, rows)))
    return found


def _rows(held: tuple[Part, ...], rows: int, known: Mapping[str, int], key: str, path: Path) -> dict[str, Rows]:
    found = split(held, rows, known)
    if found is None:
        raise MismatchError(
            f"{key} cannot be shared out among the layers that it stands for",
            where=str(path),
            values=f"{rows} rows for {', '.join(part.module for part in held)}",
            fix="the file is damaged or for another model",
        )
    return found


def _twice(name: str, first: str, second: str, path: Path) -> MismatchError:
    return MismatchError(
        f"{name} occurs twice under different names",
        where=str(path),
        values=f"{first} and {second}",
        fix="the file was merged from several; keep one of them",
    )


def _module(
    module: str,
    parts: Mapping[str, Piece],
    family: Family,
    scales: Scales,
    path: Path,
    done: Assembled,
    spelled: str | None = None,
) -> None:
    template = family.template_of(module)
    assert template is not None
    rules = grammar()
    update = {part: piece for part, piece in parts.items() if part not in NOTES and part not in rules.changes}
    if template.role != "linear" and update:
        piece = next(iter(update.values()))
        raise UnsupportedError(
            f"a LoRA on {module}, which is no linear layer, is not supported yet",
            where=str(path),
            values=f"{piece.key} {list(piece.ref.shape)}",
        )
    layer = _layer(spelled or module, parts, scales, path, done) if template.role == "linear" else None
    used = {part for part, piece in parts.items() if layer is not None and piece.key in layer.keys}
    for part, piece in parts.items():
        if part in used or piece.key in done.leftover:
            continue
        if part in NOTES:
            done.leftover[piece.key] = "the factors it belongs to are missing"
            continue
        changed = rules.changes[part]
        param = module if template.role == "param" or changed == "modulation" else f"{module}.{changed}"
        scale = layer.scale if layer is not None and part == "lora_bias" else 1.0
        done.carried.append(Carried((piece.key,), param, part, piece.ref, scale))


def _layer(module: str, parts: Mapping[str, Piece], scales: Scales, path: Path, done: Assembled) -> LayerUpdate | None:
    """The update of a linear layer; None where there is none, or only a part of one (then in `done.leftover`)."""
    claims: dict[str, Claim] = {}
    for kind in KINDS.values():
        claim = kind.claim(module, parts)
        if isinstance(claim, Claim):
            claims[kind.name] = claim
        elif claim is not None:
            mine = [parts[part] for part in parts if part in kind.essential]
            why = f"its other half {_spelled(mine[0], claim)} is missing"
            done.leftover.update({piece.key: why for piece in mine})
    if len(claims) > 1:
        raise UnsupportedError(
            f"{module} has updates of several kinds: {' and '.join(claims)}",
            where=str(path),
            values=", ".join(parts[claim.used[0]].key for claim in claims.values()),
            fix="keep one of them, the other to be left out with --drop",
        )
    if not claims:
        return None
    kind_name, claim = next(iter(claims.items()))
    scale, source = _scale(parts, claim, scales)
    keys = tuple(parts[part].key for part in (*claim.used, *NOTES) if part in parts)
    layer = LayerUpdate(module, kind_name, claim.parts, scale, source, claim.rank, keys, claim.shape)
    done.layers[module] = layer
    return layer


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
        configured = scales.config.scale(piece.at.spelled, claim.divisor, str(piece.ref.file))
        if configured is not None:
            return configured, scales.config.source
    return 1.0, claim.unscaled or ASSUMED


def _spelled(piece: Piece, part: str) -> str:
    """The key of another part of the same module, in the same style."""
    rules = grammar()
    if piece.style is None:
        stem, _, named = piece.key.rpartition(piece.part)
        return stem + part + named
    ending = rules.styles[piece.style]
    mine, other = (ending[each].replace("<adapter>", piece.adapter or "") for each in (piece.part, part))
    return piece.key.removesuffix(mine) + other
