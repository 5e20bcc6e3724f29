"""What a calibration does, as plain values; all of it can change the result."""

from dataclasses import asdict, dataclass
from typing import Any

from loraport.calibration.directions import GROUPS
from loraport.calibration.gaps import MEASURES
from loraport.errors import UsageError

SOLVERS = ("forward", "gradient")


@dataclass(frozen=True)
class Settings:
    """The dials of a calibration; the defaults are those of `docs/calibration.md`.

    Attributes:
        groups: which layers share a coefficient, see `directions.GROUPS`.
        transfers: weight-space methods whose results are candidates (models without a checkpoint on disk have none).
        restore: fit a share of the first of these transfers per group besides the gains, as further candidates.
        guidances, penalties: w and ρ of the fits that are tried. strengths: of direct reuse.
        probes: prompts and noises that the fit sees. heldout: others, on which the choice is made.
        group_probes: probes behind the diagnosis by group of layers; 0 leaves it out.
        difference: h of the central differences; None takes 0.1, or 0.25 where weights have 16 bits.
        solver: `forward` or `gradient`.
        measure: what the choice goes by: `reading` or `latents`, see `gaps`.
        rounds: a second one measures the Jacobian again around the nearest fit of the first, and so on.
        batch: clips a pass. seed: of prompts and noise.
    """

    groups: str = "type-depth"
    transfers: tuple[str, ...] = ("casa", "matched-gain")
    restore: bool = False
    guidances: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0)
    penalties: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    strengths: tuple[float, ...] = (0.75, 1.0, 1.25, 1.5, 2.0)
    probes: int = 32
    heldout: int = 32
    group_probes: int = 4
    difference: float | None = None
    rounds: int = 1
    solver: str = "forward"
    measure: str = "reading"
    batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.groups not in GROUPS:
            raise UsageError("there is no such grouping", values=f"{self.groups!r}; known: {', '.join(GROUPS)}")
        if self.solver not in SOLVERS:
            raise UsageError("there is no such solver", values=f"{self.solver!r}; known: {', '.join(SOLVERS)}")
        if self.measure not in MEASURES:
            raise UsageError("there is no such measure", values=f"{self.measure!r}; known: {', '.join(MEASURES)}")
        if self.probes < 1 or self.heldout < 2 or self.batch < 1 or self.group_probes < 0 or self.rounds < 1:
            raise UsageError(
                "too few probes", values=f"{self.probes} probes, {self.heldout} held out, batches of {self.batch}",
                fix="at least 1 probe and 2 held out",
            )  # fmt: skip
        if 1.0 not in self.strengths or any(penalty <= 0 for penalty in self.penalties) or (self.difference or 1) <= 0:
            raise UsageError("strengths must hold 1, penalties and the difference must be above 0")
        if self.restore and not self.transfers:
            raise UsageError("a restore share needs a weight-space transfer", fix="name one, such as casa")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
