"""From what lies in a file to numbers: one function, for every codec in a file of its own."""

from collections.abc import Mapping
from functools import singledispatch

from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.containers.codecs.base import Codec
from loraport.containers.stored import TensorRef

Companions = Mapping[str, Float32[Tensor, "..."]]
"""The further tensors that a reference names, by role."""


@singledispatch
def decode(
    codec: Codec, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Companions
) -> Float32[Tensor, "..."]:
    """The numbers of a weight, in float32.

    Args:
        codec: that claimed it.
        ref: which tensor; with `ref.rows`, `stored` holds these rows only and the companions are whole.
        stored: what lies in the file.
        companions: the further tensors that `ref` names, by role.
    """
    raise TypeError(f"nothing decodes {codec.name}")
