"""How far two clips of the same prompt and the same noise lie from each other, pixel by pixel."""

import numpy as np
from jaxtyping import Float, UInt8

from loraport.metrics.detail import brightness

SIGMA, RADIUS = 1.5, 5  # SSIM's window of 11 x 11
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def distance(clip: UInt8[np.ndarray, "f h w 3"], reference: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Root mean square difference of two clips, in levels of 255."""
    squares = [((a.astype(np.float64) - b) ** 2).mean() for a, b in zip(clip, reference, strict=True)]
    return float(np.sqrt(np.mean(squares)))


def ssim(clip: UInt8[np.ndarray, "f h w 3"], reference: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Structural similarity of the brightness (Wang et al. 2004: Gaussian window, inner pixels), mean over frames."""
    pairs = zip(clip, reference, strict=True)
    return float(np.mean([_of_frame(brightness(a), brightness(b)) for a, b in pairs]))


def _of_frame(x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"]) -> float:
    mx, my = _smooth(x), _smooth(y)
    vx, vy, cov = _smooth(x * x) - mx * mx, _smooth(y * y) - my * my, _smooth(x * y) - mx * my
    top = (2 * mx * my + C1) * (2 * cov + C2)
    return float((top / ((mx * mx + my * my + C1) * (vx + vy + C2))).mean())


def _smooth(frame: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "i j"]:
    """Gaussian means, where the window fits; a frame that is smaller than it gets a smaller window."""
    for axis in (0, 1):
        radius = min(RADIUS, (frame.shape[axis] - 1) // 2)
        window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SIGMA) ** 2)
        windows = np.lib.stride_tricks.sliding_window_view(frame, len(window), axis=axis)
        frame = windows @ (window / window.sum())
    return frame
