"""Networks in TensorFlow Lite's format, run by LiteRT (`ai-edge-litert`)."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from loraport.errors import FileError


class TfLite:
    """A network with one input.

    Args:
        weights: the file.
        outputs: shapes that are expected of it, without the first one, which is 1.

    Raises:
        FileError: the file cannot be read, or is of another network.
    """

    def __init__(self, weights: Path, outputs: tuple[tuple[int, ...], ...]):
        from ai_edge_litert.interpreter import Interpreter

        try:
            with _unannounced():
                self.network: Any = Interpreter(str(weights))
                self.network.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            raise FileError("the network cannot be read", where=str(weights), values=str(error)[:200]) from error
        self._put = self.network.get_input_details()[0]["index"]
        found = self.network.get_output_details()
        shapes = tuple(tuple(int(n) for n in each["shape"][1:]) for each in found)
        if shapes[: len(outputs)] != outputs:
            raise FileError(
                "this is a different network", where=str(weights), values=f"outputs {shapes}, expected {outputs}"
            )
        self._get = [each["index"] for each in found[: len(outputs)]]

    def __call__(self, pixels: Float32[np.ndarray, "h w 3"]) -> list[Float32[np.ndarray, "..."]]:
        """What it puts out for one picture, without the first dimension."""
        self.network.set_tensor(self._put, pixels[None])
        self.network.invoke()
        return [self.network.get_tensor(each)[0] for each in self._get]


def sigmoid(values: Float32[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Chances of what a network puts out before its sigmoid."""
    return 1 / (1 + np.exp(-np.clip(values.astype(np.float64), -100, 100)))


@contextlib.contextmanager
def _unannounced() -> Iterator[None]:
    """LiteRT writes to the terminal which kernels it takes, and cannot be told not to."""
    with contextlib.ExitStack() as after:
        with contextlib.suppress(OSError):  # there is no terminal, or none that can be put aside
            kept = os.dup(2)
            after.callback(os.close, kept)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            after.callback(os.dup2, kept, 2)
        yield
