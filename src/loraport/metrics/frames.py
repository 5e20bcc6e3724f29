"""Frames in the size that a network takes."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, pad


def as_tensor(frames: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """Frames as networks take them: channels first, as float in [0, 255]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()


def resized(
    frames: UInt8[np.ndarray, "n h w 3"],
    size: int,
    *,
    crop: bool,
    bicubic: bool,
    antialias: bool = True,
    multiple: int = 1,
) -> Float[Tensor, "n 3 i j"]:
    """Frames whose shorter side is `size`, as float in [0, 255], as torchvision's `Resize` makes them.

    Args:
        frames: to resize.
        size: of the shorter side.
        crop: keep the middle square only.
        bicubic: or else bilinear.
        antialias: widen the filter for what is made smaller, as with pictures of Pillow; or not, as VBench does.
        multiple: cut what is left over of this from the longer side's end.
    """
    high, wide = frames.shape[1:3]
    shape = (int(size * high / wide), size) if wide <= high else (size, int(size * wide / high))
    made = _by_pillow(frames, shape, bicubic) if antialias else _by_torch(frames, shape, bicubic)
    if crop:
        top, left = (round((side - size) / 2) for side in shape)
        made = made[:, :, top : top + size, left : left + size]
    high, wide = (side - side % multiple for side in made.shape[2:])
    return made[:, :, :high, :wide]


def padded(
    frames: Float[Tensor, "n c h w"], block: int, least: int
) -> tuple[Float[Tensor, "n c i j"], tuple[int, int]]:
    """Frames with their edges drawn out to whole blocks, by as much on either side.

    Args:
        frames: to be made larger.
        block: pixels that a side becomes a multiple of.
        least: pixels that a side has at least.

    Returns:
        The frames, and how many rows and columns come before theirs.
    """
    more = [max(-side % block, least - side) for side in frames.shape[2:]]
    top, left = (each // 2 for each in more)
    return pad(frames, [left, more[1] - left, top, more[0] - top], mode="replicate"), (top, left)


def _by_pillow(frames: UInt8[np.ndarray, "n h w 3"], shape: tuple[int, int], bicubic: bool) -> Float[Tensor, "n 3 i j"]:
    from PIL import Image

    kind = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    pictures = [Image.fromarray(np.ascontiguousarray(frame)).resize(shape[::-1], kind) for frame in frames]
    return as_tensor(np.stack([np.asarray(picture) for picture in pictures]))


def _by_torch(frames: UInt8[np.ndarray, "n h w 3"], shape: tuple[int, int], bicubic: bool) -> Float[Tensor, "n 3 i j"]:
    mode = "bicubic" if bicubic else "bilinear"
    return interpolate(as_tensor(frames), shape, mode=mode, align_corners=False).round().clamp(0, 255)
