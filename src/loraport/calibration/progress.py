"""What a calibration says while it works."""

import time
from collections.abc import Callable

from loraport.engine.events import Step, Warned, Warnings

Advance = Callable[[int, int], None]
"""Told how many of how many are done."""
PART_EVERY = 2.0  # seconds between signs of life within a stage


class ProgressReporter:
    """Says what is done, now and then how far it is, and what the user should know.

    Args:
        listen: called with every event.
        stages: how many there will be.
    """

    def __init__(self, listen: Callable[[Step | Warned], None], stages: int):
        self.warn = Warnings(listen)
        self._listen, self._stages = listen, stages
        self._stage, self._last = ("", 0), 0.0

    def stage(self, message: str) -> None:
        """The next stage begins."""
        self._stage = (message, self._stage[1] + 1)
        self._last = time.monotonic()
        self._listen(Step(message, self._stage[1], self._stages))

    def tick(self, done: int, total: int) -> None:
        """A part of the stage is done."""
        if time.monotonic() - self._last >= PART_EVERY and done < total:
            self._last = time.monotonic()
            self._listen(Step(f"{self._stage[0]}, {100 * done // total} %", self._stage[1], self._stages))
