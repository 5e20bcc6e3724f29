"""From sorted pieces of a LoRA file to layer updates and tensors passed through."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from loraport.adapters.adapter import LayerUpdate, Passthrough, PassthroughBias, PassthroughUpdate, WeightPieces
from loraport.adapters.grammar import grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import Claim, OnSource, Piece
from loraport.adapters.pattern import Patterns
from loraport.adapters.scale import ASSUMED, BY_HAND, FROM_CONFIG, AdapterConfig, read_alpha, read_number, scale_of
from loraport.containers.tensors import TensorRef
from loraport.errors import MismatchError, UnsupportedError
from loraport.models.architecture import Shape, measure
from loraport.models.family import Family
from loraport.models.placement import Part, Rows, is_whole, size_of, split, take_ref

PEFT_PREFIX = "base_model.model."
OF_CONFIG = {"OFT": "oft", "BOFT": "oft", "IA3": "ia3", "VERA": "vera"}  # PEFT's name -> kind
LARGEST_WEIGHT = 2**30  # entries; what is multiplied out of a few small tensors must not fill the memory
NOTES = ("alpha", "lora_alpha", "lora_rank", "scalar")  # they say something of an update and are nothing without it


@dataclass(frozen=True)
class Scales:
    """What speaks of scales besides the tensors: a PEFT configuration, and the user."""

    config: AdapterConfig | None
    stated: float | None


@dataclass(frozen=True)
class Model:
    """What is known of the model that the LoRA is for.

    Args:
        shapes: canonical module -> shape of its weight.
        weights: canonical parameter -> the tensor; empty where only the shapes are known.
    """

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    weights: Mapping[str, TensorRef] = field(default_factory=dict)


NO_MODEL = Model()


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
    if config is not None and scale is None:
        why = why_stray(config, [(weights[held], claim) for held, (_, claim) in claims.items()], family, path)
        kind = OF_CONFIG.get(config.kind)
        if kind is not None and claims and all(name != kind for name, _ in claims.values()):
            other = f"it is for {config.kind}, and the file holds none"
            if not why and (config.source != FROM_CONFIG or _is_pefts(path, [weights[held] for held in claims])):
                raise UnsupportedError(
                    f"the {config.source} does not belong to the file: {other}",
                    where=str(path),
                    values=f"peft_type {config.kind}",
                    fix="use the LoRA together with its own configuration",
                )
            why = why or other
        if why:
            done.warnings.append(f"{config.source} does not belong to the file ({why}), so it was left out of account")
            config = None
    if config is not None and config.dora and claims and all(kind != "dora" for kind, _ in claims.values()):
        raise UnsupportedError(
            "the configuration speaks of DoRA, and the file has no magnitudes",
            where=str(path),
            values=f"use_dora in the {config.source}",
            fix="use a copy of the LoRA that was saved whole, or move a configuration that is another LoRA's away",
        )
    scales = Scales(config, scale)
    sizes = _sizes(claims, family, model)
    for held, parts in weights.items():
        mine = {piece.key: done.leftover[piece.key] for piece in parts.values() if piece.key in done.leftover}
        found = Assembled(leftover=mine)
        _module(held, parts, claims.get(held), family, scales, model, sizes, found)
        _add(done, found if is_whole(held) else _fused(held, found, family, sizes, model, path), path)
    done.passthrough += _biases(done.layers, model)
    return done


def _biases(layers: Mapping[str, LayerUpdate], model: Model) -> list[PassthroughBias]:
    """The biases that are changed along with their weights."""
    found = []
    for name, layer in layers.items():
        kind, bias = KINDS[layer.kind], model.weights.get(f"{name}.bias")
        factor = kind.bias(layer.parts, layer.settings) if isinstance(kind, OnSource) else None
        if factor is not None and bias is not None:
            found.append(PassthroughBias(layer.keys, f"{name}.bias", "diff_b", bias, 1.0, factor))
    return found


def _sizes(claims: Mapping[tuple[Part, ...], tuple[str, Claim]], family: Family, model: Model) -> dict[str, int]:
    """The family's symbols, from the model or from the updates; of updates that tell one side only, from that."""
    whole = {held[0].module: claim.shape for held, (_, claim) in claims.items() if is_whole(held)}
    told = {module: (m, n) for module, (m, n) in whole.items() if m is not None and n is not None}
    sizes, _ = measure(model.shapes or told, family)
    for module, sides in whole.items():
        template = family.template_of(module)
        for symbol, side in zip(template.shape if template else (), sides, strict=False):
            if side is not None and symbol.isidentifier() and symbol != "_":
                sizes.setdefault(symbol, side)
    return sizes


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
                weight = _weight(layer.kind, places, model)
                found.layers[module] = replace(part, rows=rows, whole=layer.shape, weight=weight)
            else:
                weight = _weight(layer.kind, {module: ((0, size),)}, model)
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
        fix="the file was merged from several; keep one of them",
    )


def _weight(kind: str, places: Mapping[str, Rows], model: Model) -> WeightPieces:
    """The source's weight for a kind that needs it; () where it does not, or where there is none."""
    if not isinstance(KINDS[kind], OnSource):
        return ()
    refs = {name: model.weights.get(f"{name}.weight", model.weights.get(name)) for name in places}
    return tuple((ref, places[name]) for name, ref in refs.items() if ref is not None) if all(refs.values()) else ()


def _shape(
    held: tuple[Part, ...], claim: Claim, piece: Piece, family: Family, model: Model, sizes: Mapping[str, int]
) -> tuple[int, int]:
    """Rows and columns of an update; a side that its parts do not tell as the model or the other layers have it."""
    modules = list(dict.fromkeys(part.module for part in held))

    def side(module: str, axis: int) -> int | None:
        if module in model.shapes:
            shape = model.shapes[module]
            return shape[0] if axis == 0 else prod(shape[1:])
        template = family.template_of(module)
        return size_of(template.shape[axis], sizes) if template is not None and len(template.shape) == 2 else None

    m, n = claim.shape
    if m is None:
        rows = [side(module, 0) for module in modules]
        m = None if None in rows else sum(row or 0 for row in rows)
    if n is None:
        n = side(modules[0], 1)
    if m is None or n is None:
        raise UnsupportedError(
            f"the update of {modules[0]} does not say how large the layer is",
            where=str(piece.ref.file),
            values=f"{piece.key} {list(piece.ref.shape)}",
            fix=f"name the model with --model, or leave the layer out with --drop {modules[0]}",
        )
    if m * n > LARGEST_WEIGHT:
        raise MismatchError(
            f"the update of {modules[0]} is far larger than any layer",
            where=str(piece.ref.file),
            values=f"{m:,} x {n:,}, by {piece.key} {list(piece.ref.shape)}",
            fix="the file is damaged or not a LoRA; leave the layer out with --drop",
        )
    return m, n


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
        shape = _shape(held, claim, parts[claim.used[0]], family, model, sizes)
        layer = LayerUpdate(
            module,
            kind_name,
            claim.parts,
            factor,
            source,
            min(shape) if claim.rank is None else claim.rank,
            keys,
            shape,
            weight=_weight(kind_name, {module: ((0, shape[0]),)}, model),
            settings=settings,
        )
        if role == "linear":
            done.layers[module] = layer
        else:
            done.passthrough.append(
                _as_change(layer, role, model.shapes.get(module, claim.kernel), parts[claim.used[0]])
            )
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
    return PassthroughUpdate(layer.keys, param, "diff", piece.ref, 1.0, layer, shape)


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


def wrapped_paths(piece: Piece) -> list[str]:
    """The path of a piece's module inside the model that PEFT wrapped.

    Keys of PEFT's own state dictionary say it: it is what follows `base_model.model.`, a further prefix included.
    Otherwise the trainer wrote a prefix of its own, and a pattern may have been made with it or without.
    """
    whole = piece.at.prefix + piece.at.spelled
    if whole.startswith(PEFT_PREFIX):
        return [whole.removeprefix(PEFT_PREFIX)]
    return [piece.at.spelled] if whole == piece.at.spelled else [piece.at.spelled, whole]


def why_stray(
    config: AdapterConfig, layers: Sequence[tuple[Mapping[str, Piece], Claim]], family: Family, path: Path
) -> str:
    """Why a configuration beside the file cannot be the file's own; "" where it may be.

    Files of PEFT lie beside their configuration by name. Any other file may merely share the folder with one: such
    a configuration is believed only if it fits the file in its kind, its rank and the modules it speaks of.
    """
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


def _is_pefts(path: Path, modules: Iterable[Mapping[str, Piece]]) -> bool:
    """Whether a file is PEFT's own, by its name or its keys, so that a configuration beside it is its own too."""
    keys = (piece for parts in modules for piece in parts.values())
    return path.stem == "adapter_model" or any(piece.at.prefix.startswith(PEFT_PREFIX) for piece in keys)


def _trained(targets: Patterns, piece: Piece, family: Family) -> bool:
    # Trainers rename modules when they save, so the configuration may know them by any name.
    spelled = {family.spell(piece.at.module, naming) for naming in family.namings}
    return targets.find([*wrapped_paths(piece), *spelled]) is not None


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
