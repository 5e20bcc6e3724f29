"""From the parts of a kind of adapter to the update they stand for: three functions, for every kind in its own file."""

from collections.abc import Mapping
from functools import singledispatch

import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.adapters.kinds.base import AdapterKind, OnSource
from loraport.containers.tensors import TensorRef, read_tensor
from loraport.core.lowrank import LowRank
from loraport.errors import NumericalError

Parts = Mapping[str, TensorRef]
"""Role -> tensor."""
Stored = tuple[Shaped[Tensor, "m r *one"], Shaped[Tensor, "r n *one"]] | Shaped[Tensor, "..."]
"""Plain factors (up, down), or one m x n matrix."""
Numbers = Mapping[str, float]
"""What a configuration says of a layer."""


@singledispatch
def load(kind: AdapterKind, parts: Parts, shape: tuple[int, int]) -> LowRank:
    """The update in float32 without a scale, exactly. Raises NumericalError where it holds NaN or infinity."""
    if isinstance(kind, OnSource):
        raise TypeError(f"{kind.title} needs the weight")
    raise TypeError(f"no function is registered that loads {kind.title}: is its file of loading/ imported?")


@singledispatch
def stored(kind: AdapterKind, parts: Parts, shape: tuple[int, int]) -> Stored:
    """The update as plain factors (up, down) or as one m x n matrix, without a scale and without any rounding.

    What lies in the file as such keeps its dtype bit for bit; what must be multiplied out is float32. Here it is
    what `load` gives. Raises NumericalError where it holds NaN or infinity.
    """
    update = load(kind, parts, shape)
    return update.B, update.A


@singledispatch
def change(
    kind: OnSource,
    parts: Parts,
    weight: Float32[Tensor, "m n *kernel"],
    settings: Numbers,
) -> LowRank:
    """The update of a weight, as an m x (n kernel) matrix in float32.

    Args:
        kind: whose update it is.
        parts: role -> tensor.
        weight: the source's weight; not to be written to.
        settings: what a configuration says of the layer; "scale" among it where `scale_inside`.

    Raises:
        NumericalError: a part holds NaN or infinity, or the update does.
    """
    raise TypeError(f"nothing says what {kind.title} changes")


def unfold_core(core: Float32[Tensor, "r s *kernel"], down: Float32[Tensor, "s n"]) -> Float32[Tensor, "r n_kernel"]:
    """The down factor that a Tucker core and one for the inputs make together, as a matrix."""
    return torch.einsum("rsk,sn->rnk", core.flatten(2), down).flatten(1)


def finite_update(update: Float32[Tensor, "m n"], ref: TensorRef) -> LowRank:
    """A whole update, as factors. Raises NumericalError, with the part to blame, where it is not finite."""
    if not torch.isfinite(update.sum()) and not torch.isfinite(update).all():
        raise NumericalError(
            f"the update that {ref.key} makes from the source's weight is not finite",
            where=str(ref.file),
            fix="the file is damaged or badly trained; if it is only this layer, leave it out with --drop",
        )
    return LowRank.from_dense(update)


def read_finite(ref: TensorRef) -> Shaped[Tensor, "..."]:
    """A tensor in its stored dtype. Raises NumericalError where it holds NaN or infinity."""
    tensor = read_tensor(ref)
    if not torch.isfinite(tensor.float()).all():
        raise NumericalError(f"{ref.key} holds NaN or infinity", where=str(ref.file))
    return tensor
