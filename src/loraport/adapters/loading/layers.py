"""The update of one layer in numbers, scale and rows as the file says."""

from collections.abc import Callable

from jaxtyping import Float32
from torch import Tensor

from loraport.adapters.kinds import KINDS
from loraport.adapters.kinds.base import OnSource
from loraport.adapters.loading import change, load, stored
from loraport.adapters.loading.base import Stored
from loraport.adapters.update import LayerUpdate
from loraport.containers.tensors import TensorRef, read_float, take_rows
from loraport.core.lowrank import LowRank
from loraport.models.joining import join

Read = Callable[[TensorRef], Tensor]


def load_update(layer: LayerUpdate, read: Read | None = None) -> LowRank:
    """The update in float32 with the scale folded in.

    Args:
        layer: of a LoRA file.
        read: how the source's weight is read, if it is needed. What it gives is not written to.

    Raises:
        NumericalError: NaN or infinity.
        UnsupportedError: it is a function of the source's weight, and no source was given.
    """
    update = _unscaled(layer, read or read_float)
    return update if layer.scale == 1.0 else update.scaled(layer.scale)


def stored_update(layer: LayerUpdate) -> Stored:
    """Two factors (up, down) or one matrix, without the scale and without any rounding: see `loading.stored`.

    Raises:
        NumericalError: NaN or infinity.
        UnsupportedError: it is a function of the source's weight, and no source was given.
    """
    if isinstance(KINDS[layer.kind], OnSource):
        update = _unscaled(layer, read_float)
        return (update.B, update.A) if layer.factored else update.dense()
    found = stored(KINDS[layer.kind], layer.parts, layer.whole or layer.shape)
    if layer.rows is None:
        return found
    if isinstance(found, Tensor):
        return take_rows(found, layer.rows)
    return take_rows(found[0], layer.rows), found[1]


def _unscaled(layer: LayerUpdate, read: Read) -> LowRank:
    kind = KINDS[layer.kind]
    if isinstance(kind, OnSource):
        update = change(kind, layer.parts, _source(layer, read), layer.settings)
    else:
        update = load(kind, layer.parts, layer.whole or layer.shape)
    return update if layer.rows is None else LowRank(take_rows(update.B, layer.rows), update.A)


def _source(layer: LayerUpdate, read: Read) -> Float32[Tensor, "m *rest"]:
    """The source's weight, its layers put together where the file's weight holds several."""
    if not layer.weight:
        raise layer.source_missing()
    pieces = [(rows, read(ref)) for ref, rows in layer.weight]
    return join(pieces, sum(len(tensor) for _, tensor in pieces))
