"""Edges and sharpness of the brightness of each frame; one after the other, so that a clip takes no more memory."""

import numpy as np
from jaxtyping import Float, UInt8


def brightness(frame: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """Rec. 601 luma, 0 to 255."""
    return frame @ np.array([0.299, 0.587, 0.114])


def edges(clip: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Mean length of the Sobel gradient inside the frame, in levels a pixel (the kernel's weights are divided by 8)."""
    return float(np.mean([_gradient(brightness(frame)).mean() for frame in clip]))


def sharpness(clip: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Variance of the Laplacian inside the frame (4 neighbours less 4 times the pixel), mean over frames."""
    return float(np.mean([_laplacian(brightness(frame)).var() for frame in clip]))


def _gradient(y: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "i j"]:
    rows = y[:-2] + 2 * y[1:-1] + y[2:]
    columns = y[:, :-2] + 2 * y[:, 1:-1] + y[:, 2:]
    return np.hypot((rows[:, 2:] - rows[:, :-2]) / 8, (columns[2:] - columns[:-2]) / 8)


def _laplacian(y: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "i j"]:
    return y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * y[1:-1, 1:-1]
