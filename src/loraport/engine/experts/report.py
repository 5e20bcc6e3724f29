"""What a job on both experts did, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraport.containers.names import Expert
from loraport.engine.results import SCHEMA, TransferReport


@dataclass(frozen=True)
class ExpertsReport:
    """The outcome of a job on both experts.

    Attributes:
        reports: the report of each expert, the high-noise one first.
        drift: distance of each target from each source, over the source's norm in the middle of a few layers, by
            "source, target"; empty if nothing was compared.
        warnings: sentences for the user about the two together.
    """

    reports: Mapping[Expert, TransferReport]
    drift: Mapping[str, float]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "schema": SCHEMA,
            "experts": {expert: report.to_json() for expert, report in self.reports.items()},
            "drift": dict(self.drift),
            "warnings": list(self.warnings),
        }
