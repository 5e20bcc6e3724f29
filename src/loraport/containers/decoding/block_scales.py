"""A scale for every few numbers of a row, in the order that cuBLAS wants (`codecs/block_scales.py`): the product."""

import torch
from jaxtyping import Float32, Shaped, UInt8
from torch import Tensor

from loraport.containers.codecs.block_scales import Exponents, Mxfp8, SmallFloats
from loraport.containers.decoding.base import Companions, decode
from loraport.containers.stored import TensorRef
from loraport.containers.stored_tensors import take_rows


@decode.register(Mxfp8)
def mxfp8(
    codec: Mxfp8, ref: TensorRef, stored: Shaped[Tensor, "..."], companions: Companions
) -> Float32[Tensor, "..."]:
    """stored * 2^exponent, in float32."""
    return by_blocks(stored.float(), untiled(companions["scale"], ref), 32)


@decode.register(Exponents)
def exponents(
    codec: Exponents, ref: TensorRef, stored: UInt8[Tensor, "..."], companions: Companions
) -> Float32[Tensor, "..."]:
    """The powers of two."""
    powers = torch.tensor([2.0 ** (byte - 127) for byte in range(255)] + [float("nan")], dtype=torch.float32)
    return powers[stored.int()]


@decode.register(SmallFloats)
def small_floats(
    codec: SmallFloats, ref: TensorRef, stored: UInt8[Tensor, "..."], companions: Companions
) -> Float32[Tensor, "..."]:
    """The numbers."""
    return stored.view(torch.float8_e4m3fn).float()


def untiled(scale: Float32[Tensor, "..."], ref: TensorRef, size: int = 32) -> Float32[Tensor, "rows blocks"]:
    """The scales of a weight's blocks in the order of its rows, of `ref.rows` only where these are asked for.

    Within a tile of 128 rows and 4 blocks, the scale of row r and block c lies at 16 (r mod 32) + 4 (r div 32) + c;
    tiles follow each other along the rows of the weight.

    Args:
        scale: as stored, tiles filled up.
        ref: the weight.
        size: of a block.
    """
    blocks = ref.shape[1] // size
    tiles = -(-blocks // 4)
    whole = scale.reshape(-1, tiles, 32, 4, 4).permute(0, 3, 2, 1, 4).reshape(-1, 4 * tiles)[:, :blocks]
    return rows_of(whole, ref)


def rows_of(scale: Float32[Tensor, "all blocks"], ref: TensorRef) -> Float32[Tensor, "rows blocks"]:
    """The rows of scales that belong to the rows of `ref`; what fills up the last tile is left out."""
    return take_rows(scale, ((0, ref.shape[0]),) if ref.rows is None else ref.rows)


def by_blocks(weight: Float32[Tensor, "m n"], scale: Float32[Tensor, "m b"], size: int) -> Float32[Tensor, "m n"]:
    """weight * scale of each block of `size` numbers, in place."""
    weight.view(*scale.shape, size).mul_(scale.unsqueeze(-1))
    return weight
