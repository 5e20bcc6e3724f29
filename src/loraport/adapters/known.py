"""What is known of the model that a LoRA is for: the sizes and weights that the parts of an update do not tell."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import Claim, OnSource, Piece
from loraport.adapters.passthrough import Passthrough, PassthroughBias, PassthroughValue
from loraport.adapters.update import LayerUpdate, WeightPieces
from loraport.containers.references import TensorRef
from loraport.errors import MismatchError, UnsupportedError
from loraport.models.architecture import Shape, measure
from loraport.models.family import Family
from loraport.models.placement import Part, Rows, is_whole, size_of

LARGEST_WEIGHT = 2**30  # entries; what is multiplied out of a few small tensors must not fill the memory


@dataclass(frozen=True)
class ModelFacts:
    """What is known of the model that the LoRA is for.

    Args:
        shapes: canonical module -> shape of its weight.
        weights: canonical parameter -> the tensor; empty where only the shapes are known.
    """

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    weights: Mapping[str, TensorRef] = field(default_factory=dict)


NO_MODEL = ModelFacts()


def sizes_of(claims: Mapping[tuple[Part, ...], tuple[str, Claim]], family: Family, model: ModelFacts) -> dict[str, int]:
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


def weight_of(kind: str, places: Mapping[str, Rows], model: ModelFacts) -> WeightPieces:
    """The source's weight for a kind that needs it; () where it does not, or where there is none."""
    if not isinstance(KINDS[kind], OnSource):
        return ()
    refs = {name: model.weights.get(f"{name}.weight", model.weights.get(name)) for name in places}
    return tuple((ref, places[name]) for name, ref in refs.items() if ref is not None) if all(refs.values()) else ()


def shape_of(
    held: tuple[Part, ...], claim: Claim, piece: Piece, family: Family, model: ModelFacts, sizes: Mapping[str, int]
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
            fix="the file is damaged or not a LoRA; if it is only this layer, leave it out with --drop",
        )
    return m, n


def with_source(item: Passthrough, model: ModelFacts) -> Passthrough:
    """A parameter that the file has whole, with the model's own beside it."""
    return replace(item, own=model.weights.get(item.param)) if isinstance(item, PassthroughValue) else item


def biases_of(layers: Mapping[str, LayerUpdate], model: ModelFacts) -> list[PassthroughBias]:
    """The biases that are changed along with their weights."""
    found = []
    for name, layer in layers.items():
        kind, bias = KINDS[layer.kind], model.weights.get(f"{name}.bias")
        factor = kind.bias(layer.parts, layer.settings) if isinstance(kind, OnSource) else None
        if factor is not None and bias is not None:
            found.append(PassthroughBias(layer.keys, f"{name}.bias", "diff_b", bias, factor=factor))
    return found
