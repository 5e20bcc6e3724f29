"""Where and when a pixel is: three constant channels beside the picture, for diffusers' Wan model.

Wan's own positions are relative (rotary), and without the padding of a video VAE nothing in a clip of pixels tells
left from right. A tiny model learns motion many times faster when it is told. The channels go into the patch embedding
only, as the mask and image of Wan's image-to-video models do; weights and their names stay as they are.
"""

import torch
from diffusers import WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn

CHANNELS = 3


def position_channels(frames: int, height: int, width: int) -> Float[Tensor, "1 3 f h w"]:
    """Time, y and x of each pixel, from -1 to 1."""
    axes = [torch.linspace(-1, 1, size) for size in (frames, height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def tell_positions(network: WanTransformer3DModel) -> None:
    """Give a network that has channels for it the positions of its input, whoever calls it; others are left alone."""
    if network.config.in_channels == network.config.out_channels + CHANNELS:
        network.register_forward_pre_hook(_with_positions)


def _with_positions(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    clips, *rest = inputs
    where = position_channels(*clips.shape[-3:]).to(clips)
    return torch.cat([clips, where.expand(len(clips), -1, -1, -1, -1)], 1), *rest
