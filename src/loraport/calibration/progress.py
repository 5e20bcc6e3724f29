"""What a calibration says while it works."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from loraport.engine.events import Step, Warned

Advance = Callable[[int, int], None]
"""Told how many of how many are done."""
PART_EVERY = 2.0  # seconds between signs of life within a stage


@dataclass
class ProgressReporter:
    """Says what is done, and now and then how far it is.

    Attributes:
        listen: called with every event.
        stages: how many there will be.
        warnings: sentences so far.
    """

    listen: Callable[[Step | Warned], None]
    stages: int
    warnings: list[str] = field(default_factory=list)
    _stage: tuple[str, int] = ("", 0)
    _last: float = 0.0

    def stage(self, message: str) -> None:
        """The next stage begins."""
        self._stage = (message, self._stage[1] + 1)
        self._last = time.monotonic()
        self.listen(Step(message, self._stage[1], self.stages))

    def tick(self, done: int, total: int) -> None:
        """A part of the stage is done."""
        if time.monotonic() - self._last >= PART_EVERY and done < total:
            self._last = time.monotonic()
            self.listen(Step(f"{self._stage[0]}, {100 * done // total} %", self._stage[1], self.stages))

    def warn(self, message: str) -> None:
        """Say something the user should know."""
        if message not in self.warnings:
            self.warnings.append(message)
            self.listen(Warned(message))
