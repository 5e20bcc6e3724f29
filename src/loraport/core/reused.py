"""Memory of the host that serves one large tensor after the other.

The system gives out memory in pages that it clears first, and takes a large piece back as soon as it is free. For
something as large as a layer that costs more than copying the layer's numbers to it.
"""

import threading
import weakref

import torch
from jaxtyping import UInt8
from torch import Tensor

_WASTE = 1.25  # a piece may be larger than what is asked for by this factor
_LARGE = 1 << 20  # bytes; less than that the libraries use again by themselves


class ReusedMemory:
    """Gives out memory, and takes it back by itself when the last tensor in it is gone. Safe with threads.

    What lies idle is let go of as soon as something is asked for that it cannot serve: so it is never memory that
    would have to be there beside that of other layers.
    """

    def __init__(self) -> None:
        self._idle: list[Tensor] = []
        self._lock = threading.RLock()  # collecting garbage may give a piece back in the middle of `take`

    def take(self, count: int) -> UInt8[Tensor, " n"]:
        """So many bytes, with whatever they held before."""
        if count < _LARGE:
            return torch.empty(count, dtype=torch.uint8)
        with self._lock:
            fitting = [piece for piece in self._idle if count <= len(piece) <= _WASTE * count]
            piece = min(fitting, key=len, default=None)
            if piece is None:
                self._idle.clear()
            else:
                self._idle = [other for other in self._idle if other is not piece]
        if piece is None:
            piece = torch.empty(count, dtype=torch.uint8)
        lent = piece.numpy()[:count]
        weakref.finalize(lent, self._idle_again, piece).atexit = False
        return torch.from_numpy(lent)  # holds `lent` for as long as there is a view of it

    @property
    def idle_bytes(self) -> int:
        """What is held at the moment for nobody."""
        with self._lock:
            return sum(map(len, self._idle))

    def _idle_again(self, piece: Tensor) -> None:
        with self._lock:
            self._idle.append(piece)
