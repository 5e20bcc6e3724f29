"""The bounds of the verdicts, read once from thresholds.yaml, where each says what it was measured on."""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from loraport.checking.results import Reason
from loraport.models.keys import read_yaml

MEASURED_METHOD = "casa"
"""The method whose gains the bounds speak of."""


@dataclass(frozen=True)
class Threshold:
    """One bound.

    Attributes:
        name: in the file.
        value: the bound.
        meaning: what it separates.
        measured: on which pairs, by which command; "a judgement" where nothing was measured.
        strength: that suited pairs beyond the bound, where it names one.
    """

    name: str
    value: float
    meaning: str
    measured: str
    strength: float | None = None

    def reason(self, text: str, figure: str) -> Reason:
        """A sentence that this bound decided.

        Args:
            text: the sentence.
            figure: key of the figure that was held against it.
        """
        return Reason(text, figure, self.name, self.value, self.measured)


@cache
def thresholds() -> dict[str, Threshold]:
    """All bounds by name."""
    return {name: Threshold(name, **row) for name, row in section("bounds").items()}


def section(name: str) -> Any:
    """A part of thresholds.yaml."""
    return read_yaml((resources.files("loraport.checking") / "thresholds.yaml").read_text("utf-8"))[name]
