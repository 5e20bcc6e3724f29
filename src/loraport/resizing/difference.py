"""The numbers between two checkpoints: what changes, and whether the two have to do with each other at all."""

from collections.abc import Iterator, Mapping
from math import prod

import torch
from jaxtyping import Float32
from torch import Tensor

from loraport.adapters.loading.passed_on import load_change
from loraport.adapters.passthrough import Passthrough
from loraport.containers.references import common_dtype
from loraport.containers.tensors import TensorRef, digest, read_float
from loraport.core.operator import norm
from loraport.engine.kinship import unrelated
from loraport.resizing.extract import PassthroughDifference

_LOOKED_AT = 5  # weights that are read beforehand, to see whether the two have to do with each other


@load_change.register(PassthroughDifference)
def difference(item: PassthroughDifference) -> Float32[Tensor, "..."]:
    """The change in float32, of numbers rounded alike."""
    assert item.own is not None
    return between(read_float(item.own), read_float(item.ref), common_dtype(item.own, item.ref))


def between(source: Tensor, target: Tensor, rounded: str | None) -> Tensor:
    """Target minus source.

    Args:
        source: in float32.
        target: of its shape.
        rounded: torch name of the dtype that both are rounded to before; None for neither.
    """
    if rounded is not None:  # else the rounding of one file alone would pass for a change
        dtype = getattr(torch, rounded)
        source, target = source.to(dtype).float(), target.to(dtype).float()
    return target - source


def changed(others: Mapping[str, tuple[TensorRef, TensorRef]]) -> Iterator[Passthrough]:
    """The parameters of which the two have other numbers."""
    for param, (source, target) in others.items():
        item = PassthroughDifference((param,), param, "diff", target, own=source)
        same = source.dtype == target.dtype and source.codec == target.codec and digest(source) == digest(target)
        if not same and bool(load_change(item).any()):
            yield item


def strangers(layers: Mapping[str, tuple[TensorRef, TensorRef]]) -> Iterator[str]:
    """What to say where a few small weights, spread over the model, differ as those of two models do."""
    least = min((prod(source.shape) for source, _ in layers.values()), default=0)
    small = [name for name, (source, _) in layers.items() if prod(source.shape) == least]
    ratios = {}
    for name in small[:: max(len(small) // _LOOKED_AT, 1)][:_LOOKED_AT]:
        source, target = layers[name]
        weight = read_float(source)
        drift = norm(between(weight, read_float(target), common_dtype(source, target)))
        if norm(weight) > 0:
            ratios[name] = drift / norm(weight)
    found = unrelated(ratios)
    if found is not None:
        yield (
            "source and target do not look like versions of one model, and a LoRA holds little of the difference "
            f"between unrelated models: {found}"
        )
