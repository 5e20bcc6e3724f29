"""Where people are in a frame, by the finder of MediaPipe's pose solution (BlazePose): a box around the face, and the
circle around the whole body, whether all of it is in the frame or not.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt8

from loraport.metrics.tflite import TfLite, sigmoid

SIDE = 224  # pixels of what the network is shown
GRIDS = ((8, 2), (16, 2), (32, 6))  # pixels a cell, anchors in each
VALUES = 12  # a box, and four points
SURE, OVERLAP = 0.5, 0.3
LONG = 1.25  # times as long as high, or the other way round, is a frame that is also looked at square by square
HIPS, RIM = 0, 1  # which of the points are the middle of the circle, and a point on it, above the head


@dataclass(frozen=True)
class Circle:
    """The circle around a whole body.

    Attributes:
        x, y: its middle, between the hips, in pixels of the frame.
        radius: in pixels.
        tilt: how far the body leans, in radians; 0 is upright, and positive to the right.
    """

    x: float
    y: float
    radius: float
    tilt: float


class Persons:
    """Finds people.

    Args:
        weights: `pose_detection.tflite`.

    Raises:
        FileError: it cannot be read, or is another network.
    """

    def __init__(self, weights: Path):
        self._anchors = anchors()
        self.network = TfLite(weights, ((len(self._anchors), VALUES), (len(self._anchors), 1)))

    def find(self, frame: UInt8[np.ndarray, "h w 3"]) -> list[Circle]:
        """One circle a person, the surest first."""
        looks = [self._look(frame, view) for view in views(*frame.shape[:2])]
        found = merged(np.concatenate([boxes for boxes, _ in looks]), np.concatenate([sure for _, sure in looks]))
        points = found[:, 4:].reshape(-1, 4, 2)
        return [_circle(each[HIPS], each[RIM]) for each in points]

    def _look(
        self, frame: UInt8[np.ndarray, "h w 3"], view: Circle
    ) -> tuple[Float[np.ndarray, "n 12"], Float[np.ndarray, " n"]]:
        """Boxes and points in pixels of the frame, and how sure they are."""
        values, sure = self.network(2 * cut(frame, view, SIDE, around="black") - 1)
        chances = sigmoid(sure[:, 0])
        kept = chances > SURE
        corner = np.array([view.x, view.y]) - view.radius
        return decoded(values[kept], self._anchors[kept]) * 2 * view.radius + np.tile(corner, 6), chances[kept]


def views(high: int, wide: int) -> list[Circle]:
    """What the network is shown of a frame: all of it, and where that is long, squares in which people are larger."""
    long, short = max(high, wide), min(high, wide)
    made = [Circle(wide / 2, high / 2, long / 2, 0.0)]
    if long > LONG * short:
        for at in (short / 2, long / 2, long - short / 2):
            made.append(Circle(at, high / 2, short / 2, 0.0) if wide > high else Circle(wide / 2, at, short / 2, 0.0))
    return made


def anchors() -> Float[np.ndarray, "n 2"]:
    """Middles of the cells that a box is counted from, x and y, in shares of the side."""
    made = []
    for cell, each in GRIDS:
        count = SIDE // cell
        y, x = np.divmod(np.arange(count * count), count)
        made.append(np.repeat((np.stack([x, y], 1) + 0.5) / count, each, axis=0))
    return np.concatenate(made)


def decoded(values: Float32[np.ndarray, "n 12"], at: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 12"]:
    """Left, top, right, bottom and four points, in shares of the side."""
    made = values.astype(np.float64) / SIDE
    points = made.reshape(-1, 6, 2)
    points[:, 0] += at
    points[:, 2:] += at[:, None]
    middle, half = points[:, 0].copy(), points[:, 1] / 2
    points[:, 0], points[:, 1] = middle - half, middle + half
    return made


def merged(boxes: Float[np.ndarray, "n 12"], sure: Float[np.ndarray, " n"]) -> Float[np.ndarray, "m 12"]:
    """One box a person: the mean of the boxes that overlap the surest one, weighted by how sure they are."""
    left = np.argsort(-sure, kind="stable")
    made = []
    while len(left):
        near = _overlap(boxes[left[0]], boxes[left]) > OVERLAP
        near[0] = True  # also where the box has no area
        made.append(np.average(boxes[left[near]], axis=0, weights=sure[left[near]]))
        left = left[~near]
    return np.array(made).reshape(-1, VALUES)


def _overlap(box: Float[np.ndarray, " 12"], others: Float[np.ndarray, "n 12"]) -> Float[np.ndarray, " n"]:
    """Intersection over union."""
    shared = np.minimum(box[2:4], others[:, 2:4]) - np.maximum(box[:2], others[:, :2])
    inner = np.clip(shared, 0, None).prod(1)
    areas = (others[:, 2:4] - others[:, :2]).prod(1) + (box[2:4] - box[:2]).prod()
    return inner / np.maximum(areas - inner, 1e-12)


def _circle(hips: Float[np.ndarray, " 2"], rim: Float[np.ndarray, " 2"]) -> Circle:
    x, y = rim - hips
    return Circle(float(hips[0]), float(hips[1]), float(np.hypot(x, y)), float(np.arctan2(x, -y)))


def cut(
    frame: UInt8[np.ndarray, "h w 3"], circle: Circle, side: int, *, around: str
) -> Float32[np.ndarray, "side side 3"]:
    """The square around a circle, turned upright, from 0 to 1.

    Args:
        frame: pixels.
        circle: of the square.
        side: of what is made, in pixels.
        around: "black" or "edge", what is beyond the frame.
    """
    import cv2

    to_frame = from_square(circle, side).astype(np.float64)
    mode = cv2.BORDER_CONSTANT if around == "black" else cv2.BORDER_REPLICATE
    made = cv2.warpAffine(
        np.ascontiguousarray(frame), to_frame, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=mode,
    )  # fmt: skip
    return made.astype(np.float32) / 255


def from_square(circle: Circle, side: int) -> Float[np.ndarray, "2 3"]:
    """Takes a place in the square that `cut` makes to its place in the frame."""
    scale = 2 * circle.radius / side
    turn = scale * np.array([[np.cos(circle.tilt), -np.sin(circle.tilt)], [np.sin(circle.tilt), np.cos(circle.tilt)]])
    return np.column_stack([turn, np.array([circle.x, circle.y]) - turn @ [side / 2, side / 2]])
