"""Colour in CIE Lab (sRGB, D65), where a distance of about 2 is just visible."""

import numpy as np
from jaxtyping import Float, UInt8

WHITE = np.array([0.95047, 1.0, 1.08883])
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_EDGE = 6 / 29
# All that the 256 levels of a channel can be, so that a clip costs a look-up instead of a power.
_LINEAR = np.array([v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.arange(256) / 255])


def lab(clip: UInt8[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "f h w 3"]:
    """Lightness L (0 to 100), a (green to red) and b (blue to yellow) of each pixel."""
    ratio = _LINEAR[clip] @ _XYZ.T / WHITE
    root = np.where(ratio > _EDGE**3, np.cbrt(ratio), ratio / (3 * _EDGE**2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def colour_shift(clip: UInt8[np.ndarray, "f h w 3"], reference: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Distance of the mean colours of two clips in Lab."""
    return float(np.linalg.norm(lab(clip).mean((0, 1, 2)) - lab(reference).mean((0, 1, 2))))


def colour_spread_shift(clip: UInt8[np.ndarray, "f h w 3"], reference: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Distance of the standard deviations of L, a, b over all pixels of two clips."""
    return float(np.linalg.norm(lab(clip).std((0, 1, 2)) - lab(reference).std((0, 1, 2))))


def chroma(clip: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Mean distance of the pixels from grey, in Lab."""
    return float(np.hypot(*np.moveaxis(lab(clip)[..., 1:], -1, 0)).mean())


def contrast(clip: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Standard deviation of the lightness within a frame, mean over frames."""
    return float(lab(clip)[..., 0].std((1, 2)).mean())
