"""nvfp4 in any of its packings (`codecs/nvfp4.py`), as numbers."""

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from loraport.containers.codecs.nvfp4 import BLOCK, Nvfp4
from loraport.containers.decoding.base import Companions, decode
from loraport.containers.decoding.block_scales import by_blocks, rows_of, untiled
from loraport.containers.decoding.scales import odd_scale
from loraport.containers.stored import TensorRef

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_CHUNK = 2**22  # numbers that are looked up at once


@decode.register(Nvfp4)
def nvfp4(codec: Nvfp4, ref: TensorRef, stored: UInt8[Tensor, "..."], companions: Companions) -> Float32[Tensor, "..."]:
    """number * scale of its block * scale of the tensor, and of its input where there is one, in float32."""
    numbers = torch.tensor([*_E2M1, *(-number for number in _E2M1)], dtype=torch.float32)
    weight = torch.empty(ref.shape, dtype=torch.float32)
    low = 0 if codec.packing.low_first else 1
    rows = max(_CHUNK // max(ref.shape[1], 1), 1)
    for part, packed in zip(weight.split(rows), stored.split(rows), strict=True):
        part[:, low::2] = numbers[(packed & 15).int()]
        part[:, 1 - low :: 2] = numbers[(packed >> 4).int()]
    blocks = companions["scale"]
    scale = untiled(blocks, ref, BLOCK) if codec.packing.tiled else rows_of(blocks, ref)
    for part, power in codec.packing.factors:
        factor = companions[part].reshape(())
        if factor < 0 or (factor == 0 and (power < 0 or bool(weight.any()))):
            raise odd_scale(ref, float(factor))
        scale = scale * factor**power
    weight = by_blocks(weight, scale, BLOCK)
    return weight.mul_(companions["inputs"]) if "inputs" in companions else weight
