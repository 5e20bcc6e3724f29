"""From sorted pieces of a LoRA file to layer updates and tensors passed through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from loraport.adapters.grammar import grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import Claim, OnSource, Piece
from loraport.adapters.known import NO_MODEL, Model, biases_of, shape_of, sizes_of, weight_of, with_source
from loraport.adapters.ownership import own_config, wrapped_paths
from loraport.adapters.passthrough import Passthrough, PassthroughUpdate, PassthroughValue
from loraport.adapters.peft_config import AdapterConfig
from loraport.adapters.scale import ASSUMED, BY_HAND, read_alpha, read_number, scale_of
from loraport.adapters.update import LayerUpdate
from loraport.errors import MismatchError, UnsupportedError
from loraport.models.architecture import Shape
from loraport.models.family import Family
from loraport.models.placement import Part, Rows, is_whole, split, take_ref

SET_BIAS = "set_bias"  # the part that is a bias whole; no end of a key says it, only PEFT's files do (saved.py)
NOTES = ("alpha", "lora_alpha", "lora_rank", "scalar")  # they say something of an update and are nothing without it


@dataclass(frozen=True)
class Scales:
    """What speaks of scales besides the tensors: a PEFT configuration, and the user."""

    config: AdapterConfig | None
    stated: float | None


@dataclass
class Assembled:
    """What has been put together so far, what was left over (key -> what is wrong with it), and what to tell."""

    layers: dict[str, LayerUpdate] = field(default_factory=dict)
    passthrough: list[Passthrough] = field(default_factory=list)
    leftover: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def assemble(
    pieces: Sequence[Piece],
    family: Family,
    config: AdapterConfig | None,
    path: Path,
    scale: float | None = None,
    model: Model = NO_MODEL,
) -> Assembled:
    """Put the pieces of all modules together.

    Args:
        pieces: the keys of the file that name a known module.
        family: of the model.
        config: what PEFT's configuration says of the scale; None where there is none or tensors say it.
        path: the file, for messages.
        scale: stated by hand; wins over everything in or beside the file, which is then not even read.
        model: the model, where one is given.

    Raises:
        MismatchError: factors that do not fit each other, or one part of a module twice.
        UnsupportedError: two kinds of update on one layer.
        NumericalError: an alpha that is negative or not finite.
    """
    weights: dict[tuple[Part, ...], dict[str, Piece]] = {}
    for piece in pieces:
        parts = weights.setdefault(piece.at.parts, {})
        if piece.part in parts:
            raise _twice(piece.at.module, parts[piece.part].key, piece.key, path)
        parts[piece.part] = piece
    done = Assembled()
    claims = {
        held: claim
        for held, parts in weights.items()
        if (_role(held[0].module, family) == "linear" or _updates(parts))
        and (claim := _claim(_title(held, parts), parts, path, done))
    }
    if config is not None:
        layers = [(weights[held], kind, claim) for held, (kind, claim) in claims.items()]
        config, said = own_config(config, layers, family, path, judged=scale is None)
        done.warnings += said
    scales = Scales(config, scale)
    sizes = sizes_of(claims, family, model)
    for held, parts in weights.items():
        mine = {piece.key: done.leftover[piece.key] for piece in parts.values() if piece.key in done.leftover}
        found = Assembled(leftover=mine)
        _module(held, parts, claims.get(held), family, scales, model, sizes, found)
        _add(done, found if is_whole(held) else _fused(held, found, family, sizes, model, path), path)
    done.passthrough = [*(with_source(item, model) for item in done.passthrough), *biases_of(done.layers, model)]
    changed: dict[str, Passthrough] = {}
    for item in done.passthrough:
        if item.param in changed:
            raise _twice(item.param, changed[item.param].keys[0], item.keys[0], path)
        changed[item.param] = item
    return done


def _add(done: Assembled, found: Assembled, path: Path) -> None:
    """Add what a weight gave; refuse a layer that is there under its own name and in a fused weight as well."""
    for name, layer in found.layers.items():
        if name in done.layers:
            raise _twice(name, done.layers[name].keys[0], layer.keys[0], path)
    done.layers.update(found.layers)
    done.passthrough += found.passthrough
    done.leftover.update(found.leftover)
    done.warnings += found.warnings


def _title(held: tuple[Part, ...], parts: Mapping[str, Piece]) -> str:
    """What to call a weight in messages: the layer, or the file's own name for several."""
    return held[0].module if is_whole(held) else next(iter(parts.values())).at.spelled


def _fused(
    held: tuple[Part, ...], whole: Assembled, family: Family, sizes: Mapping[str, int], model: Model, path: Path
) -> Assembled:
    """The layers of a weight that holds several, or one with its rows in another order: each gets its own rows."""
    template = family.template_of(held[0].module)
    assert template is not None
    found = Assembled(leftover=whole.leftover, warnings=whole.warnings)
    for layer in whole.layers.values():
        sizes = {**sizes, template.shape[1]: layer.shape[1]}
        places = _rows(held, layer.shape[0], sizes, layer.keys[0], path)
        for module, rows in places.items():
            size = sum(end - start for start, end in rows)
            own = KINDS[layer.kind].narrow(layer.parts, rows)
            part = replace(layer, name=module, shape=(size, layer.shape[1]))
            if own is None:
                weight = weight_of(layer.kind, places, model)
                found.layers[module] = replace(part, rows=rows, whole=layer.shape, weight=weight)
            else:
                weight = weight_of(layer.kind, {module: ((0, size),)}, model)
                rank = KINDS[layer.kind].rank_of(own, layer.rank)
                found.layers[module] = replace(part, parts=own, weight=weight, rank=rank)
    for item in whole.passthrough:
        for module, rows in _rows(held, item.ref.shape[0], sizes, item.keys[0], path).items():
            param = module + item.param.removeprefix(held[0].module)
            found.passthrough.append(replace(item, param=param, ref=take_ref(item.ref, rows)))
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
        fix="keep one of them, the other to be left out with --drop",
    )


def _module(
    held: tuple[Part, ...],
    parts: Mapping[str, Piece],
    claimed: tuple[str, Claim] | None,
    family: Family,
    scales: Scales,
    model: Model,
    sizes: Mapping[str, int],
    done: Assembled,
) -> None:
    module = held[0].module
    role = _role(module, family)
    rules = grammar()
    layer = None
    if claimed is not None:
        kind_name, claim = claimed
        factor, source = _scale(parts, claim, scales)
        if "scalar" in parts and not claim.fixed and scales.stated is None:
            factor *= read_number(parts["scalar"].ref)
            source += " times .scalar"
        kind, settings = KINDS[kind_name], dict(claim.settings)
        if isinstance(kind, OnSource) and scales.config is not None:
            settings |= scales.config.settings
        if isinstance(kind, OnSource) and kind.scale_inside:
            settings["scale"] = factor
            source += f" (the scale {factor:g} counts inside)"
            factor = 1.0
        keys = tuple(parts[part].key for part in (*claim.used, *NOTES) if part in parts)
        shape = shape_of(held, claim, parts[claim.used[0]], family, model, sizes)
        layer = LayerUpdate(
            module,
            kind_name,
            claim.parts,
            factor,
            source,
            min(shape) if claim.rank is None else claim.rank,
            keys,
            shape,
            weight=weight_of(kind_name, {module: ((0, shape[0]),)}, model),
            settings=settings,
        )
        if role == "linear":
            done.layers[module] = layer
        else:
            done.passthrough.append(
                _as_change(layer, role, model.shapes.get(module, claim.kernel), parts[claim.used[0]])
            )
            if not claim.fixed:  # a whole weight was written out already
                done.warnings.append(f"{module} is no linear layer: its LoRA is passed on as it is, multiplied out")
    used = {part for part, piece in parts.items() if layer is not None and piece.key in layer.keys}
    for part, piece in parts.items():
        if part in used or piece.key in done.leftover:
            continue
        if part in NOTES or part not in rules.changes:
            done.leftover[piece.key] = "the factors it belongs to are missing"
            continue
        changed = rules.changes[part]
        param = module if role == "param" or changed == "modulation" else f"{module}.{changed}"
        if part == SET_BIAS:
            done.passthrough.append(PassthroughValue((piece.key,), param, "diff_b", piece.ref))
            continue
        scale = layer.scale if layer is not None and part == "lora_bias" else 1.0
        done.passthrough.append(Passthrough((piece.key,), param, part, piece.ref, scale))


def _updates(parts: Mapping[str, Piece]) -> bool:
    """Whether there are factors of whatever kind, not just a change or an alpha."""
    return any(part not in NOTES and part not in grammar().changes for part in parts)


def _as_change(layer: LayerUpdate, role: str | None, shape: Shape | None, piece: Piece) -> PassthroughUpdate:
    """An update of no linear layer. Factors of convolutions tell the shape themselves, matrices do not."""
    refs = list(layer.parts.values())
    if shape is None and any(len(ref.shape) > 2 for ref in refs):
        shape = (layer.shape[0], *max((ref.shape for ref in refs), key=len)[1:])
        if prod(shape) != prod(layer.shape):
            shape = None
    if shape is not None and prod(shape) != prod(layer.shape):
        raise MismatchError(
            f"the factors of {layer.name} do not fit the model",
            where=str(piece.ref.file),
            values=f"{piece.key} and its other half give {list(layer.shape)}, the model has {list(shape)}",
            fix=f"leave the layer out with --drop {layer.name}",
        )
    param = layer.name if role == "param" else f"{layer.name}.weight"
    return PassthroughUpdate(layer.keys, param, "diff", piece.ref, update=layer, weight_shape=shape)


def _role(module: str, family: Family) -> str | None:
    template = family.template_of(module)
    return None if template is None else template.role


def _claim(module: str, parts: Mapping[str, Piece], path: Path, done: Assembled) -> tuple[str, Claim] | None:
    """What the keys of a linear layer are: a kind and its claim; None where there is no update, or a part of one."""
    claims: dict[str, Claim] = {}
    for kind in KINDS.values():
        claim = kind.claim(module, parts)
        if isinstance(claim, Claim):
            claims[kind.name] = claim
        elif claim is not None:
            mine = [parts[part] for part in parts if part in kind.essential]
            why = f"its other half {_spelled(mine[0], claim)} is missing"
            done.leftover.update({piece.key: why for piece in mine})
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
            fix="keep one of them, the other to be left out with --drop",
        )
    return next(iter(claims.items()), None)


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
            fix=f"state lora_alpha / r of its training with --scale; where lora_alpha was not set it is 1, and so "
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
