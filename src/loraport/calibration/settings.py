"""What a calibration tries and how much it samples."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from loraport.errors import UsageError
from loraport.sampling.schedule import RUNNING, numbers
from loraport.settings import Setting, Settings

CHOICE = "The choice"
"""Panel of the help."""


def _names(given: object) -> object:
    if not isinstance(given, str):
        return given
    return () if given.strip() == "none" else tuple(part.strip() for part in given.split(","))


class Tried(NamedTuple):
    """A method with its two dials. An amount below 1 is a blend of the method's result with reuse."""

    method: str
    strength: float = 1.0
    amount: float = 1.0

    @classmethod
    def of(cls, spec: str) -> "Tried":
        """From `NAME`, `NAME:STRENGTH` or `NAME:STRENGTH:AMOUNT`. Raises UsageError."""
        name, *given = spec.split(":")
        try:
            dials = [float(each) for each in given]
        except ValueError:
            dials = [0.0]
        made = cls(name, *dials[:2])
        if not name or len(dials) > 2 or not (0 < made.strength < float("inf") and 0 < made.amount <= 1):
            raise UsageError(
                "a method to try is not understood",
                values=spec,
                fix="write, for example, casa, casa:1.25 or casa:1.25:0.5",
            )
        return made

    @property
    def label(self) -> str:
        """For people."""
        amount = "" if self.amount == 1 else f" {self.amount:g}"
        return f"{self.method}{amount}" + ("" if self.strength == 1 else f" x{self.strength:g}")


class CalibrationSettings(Settings):
    """What is tried, and on how much. All of it can change what is chosen. Raises UsageError."""

    strengths: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        BeforeValidator(numbers),
        Setting(
            "Strengths at which to try the LoRA as it is. 1 is always tried.", "--strengths", panel=CHOICE,
            metavar="S,S,...", default="0.75,1,1.25,1.5,2",
        ),
    ] = (0.75, 1.0, 1.25, 1.5, 2.0)  # fmt: skip
    methods: Annotated[
        tuple[str, ...],
        BeforeValidator(_names),
        Setting(
            "Weight-space methods to try as well, each as NAME, NAME:STRENGTH or NAME:STRENGTH:AMOUNT; or none.",
            "--methods", panel=CHOICE, metavar="NAMES", default="casa,casa:1.25,casa:1.5,matched-gain",
        ),
    ] = ("casa", "casa:1.25", "casa:1.5", "matched-gain")  # fmt: skip
    rounds: Annotated[
        int,
        Field(ge=1),
        Setting(
            "Number of searches. The first covers what is named; each further one searches around the best so "
            "far, twice as fine.",
            "--rounds", panel=CHOICE, metavar="N",
        ),
    ] = 2  # fmt: skip
    samples: Annotated[
        int,
        Field(ge=2),
        Setting("Number of prompts and noises to base the choice on.", "--samples", panel=CHOICE, metavar="N"),
    ] = 32
    diagnosis: Annotated[
        int,
        Field(ge=0),
        Setting(
            "Number of these used for the table by time step; 0 leaves the table out.", "--diagnosis", panel=CHOICE,
            metavar="N",
        ),
    ] = 8  # fmt: skip
    measure: Annotated[
        Literal["likelihood", "latents"],
        Setting(
            "Measure to choose by: likelihood (the source judges the clips) or latents (their distance).",
            "--measure", panel=CHOICE, metavar="NAME",
        ),
    ] = "likelihood"  # fmt: skip
    batch: Annotated[int, Field(ge=1), Setting("Clips per pass.", "--batch", panel=RUNNING, metavar="N")] = 16
    seed: Annotated[
        int, Field(ge=0, lt=10**12), Setting("Seed of prompts and noise.", "--seed", panel=CHOICE, metavar="N")
    ] = 0  # of each a million seeds of torch are made, which has 64 bits for them

    def check(self) -> None:
        """Refuse methods that are not understood. Raises UsageError."""
        for spec in self.methods:
            Tried.of(spec)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.model_dump(mode="json")
