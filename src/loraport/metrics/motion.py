"""How much moves, and how much the picture flickers. The two are told apart only by optical flow."""

import importlib.util
import itertools

import numpy as np
from jaxtyping import UInt8

TOP = 0.05  # share of the pixels that count as what moves, as in VBench's dynamic degree


def has_flow() -> bool:
    """Whether OpenCV is there, which `flow` needs."""
    return importlib.util.find_spec("cv2") is not None


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
    import cv2

    if len(clip) < 2:
        return 0.0
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in clip]
    lengths = []
    for now, then in itertools.pairwise(grey):
        field = cv2.calcOpticalFlowFarneback(now, then, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        size = np.sort(np.linalg.norm(field, axis=-1), axis=None)
        lengths.append(size[-max(1, int(TOP * size.size)) :].mean())
    return float(np.mean(lengths)) / clip.shape[1]
