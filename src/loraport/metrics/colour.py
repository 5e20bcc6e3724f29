"""Colour in CIE Lab (sRGB, D65), where a distance of about 2 is just visible."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

WHITE = np.array([0.95047, 1.0, 1.08883])
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_EDGE = 6 / 29
# All that the 256 levels of a channel can be, so that a clip costs a look-up instead of a power.
_LINEAR = np.array([v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.arange(256) / 255])


def lab(frame: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """Lightness L (0 to 100), a (green to red) and b (blue to yellow) of each pixel."""
    ratio = _LINEAR[frame] @ _XYZ.T / WHITE
    root = np.where(ratio > _EDGE**3, np.cbrt(ratio), ratio / (3 * _EDGE**2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@dataclass(frozen=True, eq=False)
class Colours:
    """What is told of the colours of a clip.

    Attributes:
        mean: of L, a and b.
        spread: their standard deviations over all pixels of all frames.
        chroma: mean distance of the pixels from grey.
        contrast: standard deviation of the lightness within a frame, mean over frames.
    """

    mean: Float[np.ndarray, "3"]
    spread: Float[np.ndarray, "3"]
    chroma: float
    contrast: float

    @classmethod
    def of(cls, clip: UInt8[np.ndarray, "f h w 3"]) -> "Colours":
        """Frame by frame: in Lab a whole clip would take many times its memory."""
        frames = [_of_frame(lab(frame)) for frame in clip]
        means, variances, chromas = (np.array(each) for each in zip(*frames, strict=True))
        spread = np.sqrt(variances.mean(0) + means.var(0))
        return cls(means.mean(0), spread, float(chromas.mean()), float(np.sqrt(variances[:, 0]).mean()))


def _of_frame(colours: Float[np.ndarray, "h w 3"]) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"], float]:
    """Means and variances of L, a and b, and the mean distance from grey."""
    return colours.mean((0, 1)), colours.var((0, 1)), float(np.hypot(colours[..., 1], colours[..., 2]).mean())


def colour_shift(clip: Colours, reference: Colours) -> float:
    """Distance of the mean colours of two clips in Lab."""
    return float(np.linalg.norm(clip.mean - reference.mean))


def colour_spread_shift(clip: Colours, reference: Colours) -> float:
    """Distance of the standard deviations of L, a, b over all pixels of two clips."""
    return float(np.linalg.norm(clip.spread - reference.spread))
