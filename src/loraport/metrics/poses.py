"""Where the joints of the people in a frame are, by MediaPipe's pose solution (BlazePose): its networks come inside a
package, and LiteRT runs them.

`pip install --no-deps mediapipe==0.10.21` brings 9 MB of weights (Apache-2.0); the program beside them is not used.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from loraport.metrics.persons import Circle, Persons, cut, from_square
from loraport.metrics.tflite import TfLite, sigmoid
from loraport.metrics.weights import package_folder

PACKAGE = "mediapipe"
NETWORKS = ("modules/pose_detection/pose_detection.tflite", "modules/pose_landmark/pose_landmark_full.tflite")
"""What finds people, and what finds the joints of one."""
SIDE = 256  # pixels of what the network is shown
ROOM = 1.25  # how much more than the circle around the body it is shown
COUNT, VALUES = 39, 5  # landmarks; x, y, depth, visibility and presence of each
MAP, WINDOW = 64, 9  # cells of the maps that landmarks are moved by, and how many of a row are looked at
SURE = 0.5
LEAST = 3  # joints that somebody has to show to be found
COCO = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
"""COCO's 17 points among the landmarks: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles."""
SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
"""How far people who mark COCO's points by hand are apart, in shares of the root of the area."""
AREA = 0.53  # of a body in shares of the box around it, as evaluations on pictures without outlines take it
SAME = 0.5  # similarity from which two are one person who was found twice


def pose_weights() -> Path | None:
    """The package's folder, with the networks in it; None where they, LiteRT or OpenCV are not installed."""
    return package_folder(PACKAGE, NETWORKS, "cv2", "ai_edge_litert")


@dataclass(frozen=True, eq=False)
class Pose:
    """One person.

    Attributes:
        joints: COCO's 17 points in pixels of the frame, x and y; those that are hidden or outside are guessed.
        seen: which of them are to be seen.
        size: of the whole body in pixels, from the head to the feet of one who stands; guessed where it is cut off.
    """

    joints: Float[np.ndarray, "17 2"]
    seen: Bool[np.ndarray, " 17"]
    size: float


def oks(pose: Pose, reference: Pose) -> float:
    """COCO's object keypoint similarity over the joints that the reference shows: 1 where all are in their places.

    The area, which COCO has from hand-drawn outlines, is a share of the box around these joints.
    """
    shown = reference.joints[reference.seen]
    gaps = ((pose.joints[reference.seen] - shown) ** 2).sum(1)
    area = AREA * max(float(np.ptp(shown, axis=0).prod()), 1.0)
    return float(np.exp(-gaps / (2 * area * (2 * SIGMAS[reference.seen]) ** 2)).mean())


class Poses:
    """Finds people and their joints.

    Args:
        weights: the package's folder, with the networks in it.

    Raises:
        FileError: one cannot be read, or is another network.
    """

    def __init__(self, weights: Path):
        finder, landmarks = (weights / each for each in NETWORKS)
        self.persons = Persons(finder)
        self.network = TfLite(landmarks, ((COUNT * VALUES,), (1,), (SIDE, SIDE, 1), (MAP, MAP, COUNT)))

    def find(self, frame: UInt8[np.ndarray, "h w 3"]) -> list[Pose]:
        """Everybody who shows a few joints, the one who is found most surely first."""
        made: list[Pose] = []
        for circle in self.persons.find(frame):
            landmarks = self.landmarks(frame, circle)
            if landmarks is None:
                continue
            ours = landmarks[list(COCO)]
            pose = Pose(ours[:, :2], ours[:, 2] > SURE, 2 * circle.radius)
            if pose.seen.sum() >= LEAST and all(oks(pose, other) < SAME for other in made):
                made.append(pose)
        return made

    def landmarks(self, frame: UInt8[np.ndarray, "h w 3"], circle: Circle) -> Float[np.ndarray, "39 3"] | None:
        """MediaPipe's landmarks of one person: x and y in pixels, and visibility from 0 to 1; None if nobody is there.

        Args:
            frame: pixels.
            circle: around the body.
        """
        square = Circle(circle.x, circle.y, ROOM * circle.radius, circle.tilt)
        if not square.radius > 0:
            return None
        values, there, _, maps = self.network(cut(frame, square, SIDE, around="edge"))
        if there[0] <= SURE:
            return None
        points = values.reshape(COUNT, VALUES)
        places = refined(points[:, :2].astype(np.float64) / SIDE, maps) * SIDE
        matrix = from_square(square, SIDE)
        return np.column_stack([places @ matrix[:, :2].T + matrix[:, 2], sigmoid(points[:, 3])])


def refined(places: Float[np.ndarray, "n 2"], maps: Float32[np.ndarray, "c c n"]) -> Float[np.ndarray, "n 2"]:
    """Each place moved to the middle of what its map shows around it, where the map is sure.

    Args:
        places: x and y in shares of the square.
        maps: one a place, before the sigmoid.
    """
    made = places.copy()
    cells = len(maps)
    for number, (x, y) in enumerate(places):
        if not (0 <= x < 1 and 0 <= y < 1):
            continue
        rows, columns = (slice(max(int(v * cells) - WINDOW // 2, 0), int(v * cells) + WINDOW // 2 + 1) for v in (y, x))
        weight = sigmoid(maps[rows, columns, number])
        if weight.max() >= SURE:
            down, right = np.mgrid[rows, columns][:, : weight.shape[0], : weight.shape[1]]
            made[number] = np.array([(right * weight).sum(), (down * weight).sum()]) / weight.sum() / cells
    return made
