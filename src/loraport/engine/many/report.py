"""What became of each LoRA of a job on many."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport.engine.results import SCHEMA, TransferReport
from loraport.errors import LoraportError


@dataclass(frozen=True)
class Outcome:
    """What became of one LoRA: a report, an error, or the reason why there was nothing to do.

    Attributes:
        lora: the LoRA, as it was named.
        output: the file made from it.
        report: the report of its transfer.
        error: why it failed.
        skipped: why there was nothing to do.
    """

    lora: str
    output: Path
    report: TransferReport | None = None
    error: LoraportError | None = None
    skipped: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        if self.report is not None:
            return self.report.to_json()
        named: dict[str, Any] = {"lora": self.lora, "output": str(self.output)}
        return named | ({"skipped": self.skipped} if self.error is None else {"error": self.error.to_json()})


@dataclass(frozen=True)
class ManyReport:
    """The outcome of a job on many LoRAs.

    Attributes:
        outcomes: the outcome of each LoRA, in the order given.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Those that have no output."""
        return tuple(each for each in self.outcomes if each.error is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "schema": SCHEMA,
            "reports": [each.to_json() for each in self.outcomes],
            "failed": len(self.failed),
            "skipped": sum(each.skipped is not None for each in self.outcomes),
        }
