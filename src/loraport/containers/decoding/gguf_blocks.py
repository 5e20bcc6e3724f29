"""Block formats of GGUF as numbers, by the `gguf` package."""

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

from loraport.containers.codecs.gguf_blocks import GgufBlocks
from loraport.containers.decoding.base import Companions, decode
from loraport.containers.stored import TensorRef

_CHUNK = 2**20  # numbers that are decoded at once


@decode.register(GgufBlocks)
def blocks(
    codec: GgufBlocks, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Companions
) -> Float32[Tensor, "..."]:
    """The numbers, row by row, so that what the package makes on the way stays small."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    weight = torch.empty(ref.shape, dtype=torch.float32)
    if not weight.numel():
        return weight
    rows = stored.reshape(-1, stored.shape[-1]).numpy()
    found = weight.view(len(rows), -1).numpy()
    at_once = max(_CHUNK // found.shape[1], 1)
    with np.errstate(all="ignore"):  # a scale that is no number is found and named where the weight is checked
        for begin in range(0, len(rows), at_once):
            part = slice(begin, begin + at_once)
            found[part] = dequantize(rows[part], GGMLQuantizationType[ref.dtype])
    return weight
