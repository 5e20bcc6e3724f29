"""How much moves, and how much the picture flickers. The two are told apart only by optical flow."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

TOP = 0.05  # share of the pixels that count as what moves, as in VBench's dynamic degree


def frame_difference(clip: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Mean absolute difference of successive frames, in levels of 255; 0 for a still."""
    if len(clip) < 2:
        return 0.0
    pairs = zip(clip[1:], clip[:-1], strict=True)
    return float(np.mean([np.abs(b.astype(np.int16) - a.astype(np.int16)).mean() for b, a in pairs]))


def flicker(clip: UInt8[np.ndarray, "f h w 3"]) -> float:
    """VBench's temporal flickering: 1 less the frame difference as a share of 255; 1 where nothing moves."""
    return (255 - frame_difference(clip)) / 255


def flow(clip: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Length of the fastest 5 % of Farneback's optical flow, mean over pairs of frames, in shares of the height.

    The rule of VBench's dynamic degree, which has RAFT for the flow; the numbers are not comparable with it.
    """
    if len(clip) < 2:
        return 0.0
    grey = _grey(clip)
    return float(np.mean([fastest(_farneback(a, b)) for a, b in itertools.pairwise(grey)])) / clip.shape[1]


def fastest(field: Float[np.ndarray, "h w 2"]) -> float:
    """Mean length of the longest 5 % of a flow, in pixels."""
    size = np.sort(np.linalg.norm(field, axis=-1), axis=None)
    return float(size[-max(1, int(TOP * size.size)) :].mean())


def step(fps: float) -> int:
    """How many frames further on the next one is that VBench's dynamic degree looks at: about eight a second."""
    return max(1, round(fps / 8))


def looked_at(frames: int, fps: float) -> list[int]:
    """The frames that it looks at."""
    return list(range(0, frames, step(fps)))


def is_dynamic(speeds: Sequence[float], side: int) -> bool:
    """VBench's rule: whether enough pairs of frames move.

    VBench takes a clip of which it looks at one pair for moving whatever it does; here it has to move.

    Args:
        speeds: of the fastest pixels of each pair, in pixels.
        side: the shorter one of a frame.
    """
    needed = max(round(4 * (len(speeds) + 1) / 16), 1)
    return sum(speed > 6 * side / 256 for speed in speeds) >= needed


def foretold(clip: UInt8[np.ndarray, "f h w 3"]) -> float:
    """How well the frames beside it foretell every second frame: 1 less the mean error / 255; 1 where there is none.

    The rule of VBench's motion smoothness, which has the network AMT-S between two frames. Here each of the two is
    moved half the way of Farneback's flow, and the mean is taken; the numbers are not comparable with VBench's.
    """
    errors = [np.abs(clip[at].astype(np.float64) - _between(clip[at - 1], clip[at + 1])).mean()
              for at in range(1, len(clip) - 1, 2)]  # fmt: skip
    return 1 - float(np.mean(errors)) / 255 if errors else 1.0


def _between(first: UInt8[np.ndarray, "h w 3"], last: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    import cv2

    now, then = _grey(np.stack([first, last]))
    down, right = np.indices(now.shape, dtype=np.float32)
    moved = []
    for frame, field in ((first, _farneback(now, then)), (last, _farneback(then, now))):
        x, y = right - field[..., 0] / 2, down - field[..., 1] / 2
        moved.append(cv2.remap(np.ascontiguousarray(frame), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    return (moved[0].astype(np.float64) + moved[1]) / 2


def _grey(clip: UInt8[np.ndarray, "f h w 3"]) -> list[UInt8[np.ndarray, "h w"]]:
    import cv2

    return [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in clip]


def _farneback(now: UInt8[np.ndarray, "h w"], then: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 2"]:
    import cv2

    start: Any = None  # OpenCV takes none, which its types do not say
    return cv2.calcOpticalFlowFarneback(now, then, start, 0.5, 3, 15, 3, 5, 1.2, 0)
