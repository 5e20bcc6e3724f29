"""Numbers that are stored as they are."""

from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.containers.codecs.raw import Raw
from loraport.containers.decoding.base import Companions, decode
from loraport.containers.stored import TensorRef


@decode.register(Raw)
def plain(codec: Raw, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Companions) -> Float32[Tensor, "..."]:
    """A cast to float32."""
    return stored.float()
