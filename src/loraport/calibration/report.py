"""What a calibration reports, and the file that it writes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraport.adapters.adapter import LoraAdapter
from loraport.adapters.header import build_metadata
from loraport.adapters.render import render_adapter, write_adapter
from loraport.calibration.candidates import Choice, Scored
from loraport.calibration.diagnosis import Diagnosis
from loraport.calibration.settings import Settings
from loraport.containers.dtypes import written_as
from loraport.core.lowrank import LowRank
from loraport.files import write_bytes
from loraport.models.architecture import Architecture

VERSION = 1
"""Of the method; part of the header."""


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """The outcome; `to_json()` is what `--json` prints.

    Attributes:
        output: the file written, or None. choice: what was taken, and the runners-up.
        coefficients: by label, of the result (empty for a weight-space transfer).
        diagnosis: what the target shows of the LoRA, before and after.
        passes: forward passes of one clip, by model. seconds: wall time, by model and in all.
        resumed: parts taken from an earlier run. warnings: sentences for the user.
        layers: number of layers. rank: of the output. energy_kept: share of the exact result that the rank holds.
    """

    output: Path | None
    source: str
    target: str
    settings: Settings
    choice: Choice
    coefficients: dict[str, float]
    diagnosis: Diagnosis
    passes: dict[str, int]
    seconds: dict[str, float]
    resumed: tuple[str, ...]
    warnings: tuple[str, ...]
    layers: int
    rank: int
    energy_kept: float

    @property
    def chosen(self) -> str:
        """Label of the candidate that was taken."""
        return self.choice.chosen.candidate.label

    def save_plot(self, path: str | Path) -> None:
        """Draw the diagnosis, before and after, as a PNG. Raises FileError; UsageError without matplotlib."""
        from loraport.calibration.plot import diagnosis_png

        write_bytes(Path(path), diagnosis_png(self.diagnosis))

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "output": None if self.output is None else str(self.output),
            "source": self.source,
            "target": self.target,
            "settings": self.settings.to_json(),
            "chosen": _row(self.choice.chosen),
            "reason": self.choice.reason,
            "measure": self.choice.measure,
            "best_plain": _row(self.choice.best_plain),
            "ranking": [_row(each) for each in self.choice.ranking],
            "dropped": [_row(each) for each in self.choice.dropped],
            "coefficients": self.coefficients,
            "diagnosis": self.diagnosis.to_json(),
            "passes": self.passes,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "resumed": list(self.resumed),
            "warnings": list(self.warnings),
            "layers": self.layers,
            "rank": self.rank,
            "energy_kept": self.energy_kept,
        }


def _row(scored: Scored) -> dict[str, Any]:
    error = scored.error
    return {
        "label": scored.candidate.label,
        "kind": scored.candidate.kind,
        "distance": scored.distance,
        "error": None if error == float("inf") else error,
        "latents": scored.latents,
        "noises": len(scored.seen.latents),
        "settings": scored.candidate.settings,
    }


def dtype_of(adapter: LoraAdapter, wanted: str) -> str:
    """The output's dtype: as asked, or the input's."""
    return written_as(adapter.dtype) if wanted == "same" else wanted


def write_result(
    path: Path,
    update: dict[str, LowRank],
    adapter: LoraAdapter,
    architecture: Architecture,
    *,
    settings: Settings,
    chosen: Scored,
    coefficients: dict[str, float],
    models: tuple[str, str],
    to: str,
    dtype: str,
    energy_kept: float,
) -> None:
    """Write an ordinary LoRA file, with the choice and its coefficients in the header; reopened and verified.

    Raises:
        FileError: it cannot be written. UnsupportedError: the profile has no spelling for what is carried.
    """
    rank = max(term.rank for term in update.values())
    padded = {name: term.padded(rank) for name, term in update.items()}
    stored = dtype_of(adapter, dtype)
    tensors = render_adapter(padded, adapter.carried, to, architecture, adapter.dialect, getattr(torch, stored))
    recipe = settings.to_json() | {
        "method": "calibrate",
        "chosen": {"kind": chosen.candidate.kind, "label": chosen.candidate.label} | chosen.candidate.settings,
        "coefficients": {label: round(value, 6) for label, value in coefficients.items()},
        "source": models[0],
        "target": models[1],
        "to": to,
        "dtype": stored,
    }
    metadata = build_metadata(
        input_metadata=adapter.metadata,
        recipe=recipe,
        inputs={"lora": file_digest(adapter.path)},
        method=f"calibrate {VERSION}",
        summary={
            "layers": len(update),
            "chosen": chosen.candidate.label,
            "distance": chosen.distance,
            "energy_kept_total": energy_kept,
        },
        rank=rank,
        target_title=architecture.title,
    )
    write_adapter(path, tensors, metadata)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder by name."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    made = hashlib.sha256()
    for file in files:
        made.update(file.read_bytes())
    return made.hexdigest()
