"""Numbers that are stored as they are; and what is known by name only."""

from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.containers.codecs.raw import Raw
from loraport.containers.codecs.refused import Refused
from loraport.containers.decoding.base import Companions, decode
from loraport.containers.stored import TensorRef
from loraport.errors import UnsupportedError


@decode.register(Raw)
def plain(codec: Raw, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Companions) -> Float32[Tensor, "..."]:
    """A cast to float32."""
    return stored.float()


@decode.register(Refused)
def refused(
    codec: Refused, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Companions
) -> Float32[Tensor, "..."]:
    """Raises UnsupportedError, always."""
    raise UnsupportedError(
        f"{ref.key} is quantised ({codec.name}), which is not supported yet",
        where=str(ref.file),
        values=f"{ref.dtype} {list(ref.shape)}",
        fix="use the bf16, fp16 or fp32 copy",
    )
