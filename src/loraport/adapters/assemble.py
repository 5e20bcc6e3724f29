"""From sorted pieces of a LoRA file to layer updates and tensors passed through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from loraport.adapters.claims import Scales, claim_of, has_update, scale_of_claim
from loraport.adapters.grammar import NOTES, SET_BIAS, grammar
from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import Claim, OnSource, Piece
from loraport.adapters.known import NO_MODEL, ModelFacts, biases_of, shape_of, sizes_of, weight_of, with_source
from loraport.adapters.ownership import own_config
from loraport.adapters.passthrough import Passthrough, PassthroughUpdate, PassthroughValue
from loraport.adapters.peft_config import AdapterConfig
from loraport.adapters.update import LayerUpdate
from loraport.errors import MismatchError
from loraport.models.architecture import Shape
from loraport.models.family import Family
from loraport.models.placement import Part, Rows, is_whole, split, take_ref


@dataclass
class Assembled:
    """What has been put together so far, what was left over (key -> what is wrong with it), and what to tell."""

    layers: dict[str, LayerUpdate] = field(default_factory=dict)
    passthrough: list[Passthrough] = field(default_factory=list)
    leftover: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Of:
    """What the parts are of: the file and the model, and what is known of scales and sizes besides."""

    path: Path
    family: Family
    model: ModelFacts
    scales: Scales
    sizes: Mapping[str, int]


def assemble(
    pieces: Sequence[Piece],
    family: Family,
    config: AdapterConfig | None,
    path: Path,
    scale: float | None,
    model: ModelFacts = NO_MODEL,
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
        if (family.role(held[0].module) == "linear" or has_update(parts))
        and (claim := claim_of(_title(held, parts), parts, path, done.leftover))
    }
    if config is not None:
        layers = [(weights[held], kind, claim) for held, (kind, claim) in claims.items()]
        config, said = own_config(config, layers, family, path, judged=scale is None)
        done.warnings += said
    of = _Of(path, family, model, Scales(config, scale), sizes_of(claims, family, model))
    for held, parts in weights.items():
        mine = {piece.key: done.leftover[piece.key] for piece in parts.values() if piece.key in done.leftover}
        found = Assembled(leftover=mine)
        _module(held, parts, claims.get(held), of, found)
        _add(done, found if is_whole(held) else _fused(held, found, of), path)
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


def _fused(held: tuple[Part, ...], whole: Assembled, of: _Of) -> Assembled:
    """The layers of a weight that holds several, or one with its rows in another order: each gets its own rows."""
    template, sizes = of.family.template_of(held[0].module), of.sizes
    assert template is not None
    found = Assembled(leftover=whole.leftover, warnings=whole.warnings)
    for layer in whole.layers.values():
        sizes = {**sizes, template.shape[1]: layer.shape[1]}
        places = _rows(held, layer.shape[0], sizes, layer.keys[0], of.path)
        for module, rows in places.items():
            size = sum(end - start for start, end in rows)
            own = KINDS[layer.kind].narrow(layer.parts, rows)
            part = replace(layer, name=module, shape=(size, layer.shape[1]))
            if own is None:
                weight = weight_of(layer.kind, places, of.model)
                found.layers[module] = replace(part, rows=rows, whole=layer.shape, weight=weight)
            else:
                weight = weight_of(layer.kind, {module: ((0, size),)}, of.model)
                rank = KINDS[layer.kind].rank_of(own, layer.rank)
                found.layers[module] = replace(part, parts=own, weight=weight, rank=rank)
    for item in whole.passthrough:
        for module, rows in _rows(held, item.ref.shape[0], sizes, item.keys[0], of.path).items():
            param = module + item.param.removeprefix(held[0].module)
            found.passthrough.append(replace(item, param=param, ref=take_ref(item.ref, rows)))
    return found


def _rows(held: tuple[Part, ...], rows: int, known: Mapping[str, int], key: str, path: Path) -> dict[str, Rows]:
    found = split(held, rows, known)
    if found is None:
        raise MismatchError(
            f"{key} cannot be split among the layers that it stands for",
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
        fix="keep one of them, and leave the other out with --drop",
    )


def _module(
    held: tuple[Part, ...],
    parts: Mapping[str, Piece],
    claimed: tuple[str, Claim] | None,
    of: _Of,
    done: Assembled,
) -> None:
    """What the keys of one weight change, as if it were that of a single layer."""
    module, rules = held[0].module, grammar()
    role = of.family.role(module)
    layer = None
    if claimed is not None:
        kind, claim = claimed
        first, on = parts[claim.used[0]], KINDS[kind]
        template = of.family.template_of(module)
        if isinstance(on, OnSource) and template is not None and len(template.shape) > 2:
            on.check_kernel(module, first)
        shape = shape_of(held, claim, first, of.family, of.model, of.sizes)
        layer = _layer(module, kind, claim, shape, parts, of)
        if role == "linear":
            done.layers[module] = layer
        else:
            done.passthrough.append(_as_change(layer, role, of.model.shapes.get(module, claim.kernel), first))
            if not claim.fixed:  # a whole weight was written out already
                done.warnings.append(f"{module} is not a linear layer: its LoRA is passed on, multiplied out")
    for part, piece in parts.items():
        if piece.key in done.leftover or (layer is not None and piece.key in layer.keys):
            continue
        if part not in rules.changes:
            done.leftover[piece.key] = "the factors it belongs to are missing"
            continue
        changed = rules.changes[part]
        if changed == "bias" and len(piece.ref.shape) != 1:
            done.leftover[piece.key] = f"{list(piece.ref.shape)}, which is not a bias"
            continue
        param = module if role == "param" or changed == "modulation" else f"{module}.{changed}"
        if part == SET_BIAS:
            done.passthrough.append(PassthroughValue((piece.key,), param, "diff_b", piece.ref))
            continue
        scale = layer.scale if layer is not None and part == "lora_bias" else 1.0
        done.passthrough.append(Passthrough((piece.key,), param, part, piece.ref, scale))


def _layer(
    module: str, kind_name: str, claim: Claim, shape: tuple[int, int], parts: Mapping[str, Piece], of: _Of
) -> LayerUpdate:
    kind, settings = KINDS[kind_name], dict(claim.settings)
    factor, source = scale_of_claim(parts, claim, of.scales)
    if isinstance(kind, OnSource):
        if of.scales.config is not None:
            settings |= of.scales.config.settings
        if kind.scale_inside:
            settings["scale"] = factor
            source += f" (the scale {factor:g} counts inside)"
            factor = 1.0
    return LayerUpdate(
        module,
        kind_name,
        claim.parts,
        factor,
        source,
        min(shape) if claim.rank is None else claim.rank,
        tuple(parts[part].key for part in (*claim.used, *NOTES) if part in parts),
        shape,
        weight=weight_of(kind_name, {module: ((0, shape[0]),)}, of.model),
        settings=settings,
    )


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
