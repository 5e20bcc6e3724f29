"""What a calibration reports: a transfer's report, and why that transfer was chosen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.calibration.choice import Choice
from loraport.calibration.diagnosis import Diagnosis
from loraport.calibration.settings import CalibrationSettings
from loraport.engine.recipe import Recipe
from loraport.engine.results import TransferReport
from loraport.files import write_bytes


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """The outcome; `to_json()` is what `--json` prints.

    Attributes:
        transfer: what the engine did: the file written (if any), layer by layer.
        recipe: what was chosen; `loraport transfer` with it makes the same file again.
        source, target: names of the models.
        settings: what was tried, and on how much.
        choice: what was taken, and the runners-up.
        diagnosis: what the target shows of the LoRA, as it is and as chosen.
        passes: forward passes of one clip, by model.
        seconds: wall time, by model and in all.
        found: how many answers of the models came from an earlier run.
        warnings: sentences for the user.
    """

    transfer: TransferReport
    recipe: Recipe
    source: str
    target: str
    settings: CalibrationSettings
    choice: Choice
    diagnosis: Diagnosis
    passes: dict[str, int]
    seconds: dict[str, float]
    found: int
    warnings: tuple[str, ...]

    @property
    def output(self) -> Path | None:
        """The file written, or None."""
        return self.transfer.output

    @property
    def chosen(self) -> str:
        """Label of the candidate that was taken."""
        return self.choice.chosen.label

    def save_plot(self, path: str | Path) -> None:
        """Draw the choice and the diagnosis as a PNG. Raises FileError; UsageError without matplotlib."""
        from loraport.calibration.plot import calibration_png

        write_bytes(Path(path), calibration_png(self.choice, self.diagnosis))

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON: those of the transfer, and what is told of the calibration beside them."""
        return self.transfer.to_json() | {
            "calibration": {
                "source": self.source,
                "target": self.target,
                "settings": self.settings.to_json(),
                "chosen": self.choice.chosen.to_json(),
                "reason": self.choice.reason,
                "measure": self.choice.measure,
                "ranking": [each.to_json() for each in self.choice.ranking],
                "diagnosis": self.diagnosis.to_json(),
                "passes": self.passes,
                "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
                "found": self.found,
                "warnings": list(self.warnings),
            }
        }
