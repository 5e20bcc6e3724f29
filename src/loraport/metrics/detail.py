"""Edges and sharpness of the brightness of each frame."""

import numpy as np
from jaxtyping import Float, UInt8


def brightness(clip: UInt8[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "f h w"]:
    """Rec. 601 luma, 0 to 255."""
    return clip @ np.array([0.299, 0.587, 0.114])


def edges(clip: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Mean length of the Sobel gradient inside the frame, in levels a pixel (the kernel's weights are divided by 8)."""
    y = brightness(clip)
    rows = y[:, :-2] + 2 * y[:, 1:-1] + y[:, 2:]
    columns = y[:, :, :-2] + 2 * y[:, :, 1:-1] + y[:, :, 2:]
    across = (rows[:, :, 2:] - rows[:, :, :-2]) / 8
    down = (columns[:, 2:] - columns[:, :-2]) / 8
    return float(np.hypot(across, down).mean())


def sharpness(clip: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Variance of the Laplacian inside the frame (4 neighbours less 4 times the pixel), mean over frames."""
    y = brightness(clip)
    inner = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * y[:, 1:-1, 1:-1]
    return float(inner.var((1, 2)).mean())
