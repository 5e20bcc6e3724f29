"""What happens during a run, as small facts. The engine tells; whoever listens decides what to show."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loraport.engine.plan import TransferPlan
    from loraport.engine.results import LayerReport, TransferReport


@dataclass(frozen=True)
class PlanReady:
    """All inputs have been matched; work starts now."""

    plan: "TransferPlan"


@dataclass(frozen=True)
class LayerDone:
    """A layer is finished. `done` and `total` count operations (flop equivalents), not layers."""

    layer: "LayerReport"
    finished: int
    layers: int
    done: float
    total: float


@dataclass(frozen=True)
class Warned:
    """Something the user should know, in one sentence."""

    message: str


@dataclass(frozen=True)
class Remarked:
    """Something that is good to know and no reason to worry, such as where the work is done."""

    message: str


@dataclass(frozen=True)
class Step:
    """Progress of something longer than a run, such as a calibration: the `done`-th of `total` steps is under way."""

    message: str
    done: int
    total: int


@dataclass(frozen=True)
class Written:
    """Part of a large output is written: so many bytes of the whole."""

    message: str
    done: int
    total: int


@dataclass(frozen=True)
class Finished:
    """The output is written, reopened and verified."""

    report: "TransferReport"


Event = PlanReady | LayerDone | Warned | Remarked | Step | Written | Finished
Listener = Callable[[Event], None]


class Warnings:
    """Tells the user sentences as they come up, each once.

    Attributes:
        told: until now, for the report.
    """

    def __init__(self, on_event: Callable[[Warned], None]):
        self.told: list[str] = []
        self._on_event = on_event

    def __call__(self, message: str) -> None:
        """Something that the user should know."""
        if message not in self.told:
            self.told.append(message)
            self._on_event(Warned(message))


def ignore(event: Event) -> None:
    """The listener that listens to nothing."""
