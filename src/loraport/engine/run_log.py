"""The run log of a transfer: what was begun, what became of each layer, how it ended. docs/report.md describes it."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from loraport.engine.events import Event, Remarked, Warned
from loraport.engine.options import RunOptions
from loraport.engine.output import log_path
from loraport.engine.plan import TransferPlan
from loraport.engine.reporting import plan_columns, plan_maps
from loraport.engine.results import SCHEMA, LayerReport, TransferReport
from loraport.errors import FileError
from loraport.files import RunLog
from loraport.version import __version__


class TransferLog:
    """The log of one output, once it is begun; what is told before, or where none is wanted, is not written down."""

    def __init__(self) -> None:
        self._log: RunLog | None = None

    def begin(self, path: Path | None, plan: TransferPlan, options: RunOptions) -> None:
        """Open it, where the options want one. What stood under its name is gone then. Raises FileError."""
        place = log_path(path, options)
        if place is None:
            return
        self._log = RunLog(place)
        self._append(
            {
                "event": "started",
                "schema": SCHEMA,
                "version": __version__,
                "columns": [asdict(column) for column in plan_columns(plan)],
                "maps": [each.to_json() for each in plan_maps(plan)],
                "order": [job.name for job in plan.jobs],  # of a report; their lines come as they are done
            }
        )

    def layer(self, report: LayerReport) -> None:
        """A layer is done."""
        self._append({"event": "layer", **report.to_json()})

    def machines(self, events: Iterable[Event]) -> None:
        """What an executor said of the machines that do the work."""
        for event in events:
            if isinstance(event, Remarked | Warned):
                self._append({"event": "machines", "message": event.message})

    def finished(self, report: TransferReport) -> None:
        """All is done. The layers have been told one by one."""
        told = replace(report, layers=()).to_json()
        self._append({"event": "finished", **{k: v for k, v in told.items() if k != "layers"}})

    def failed(self, error: BaseException) -> None:
        """Nothing came of it. A full disk must not hide what went wrong first."""
        with contextlib.suppress(FileError):
            self._append({"event": "failed", "error": str(error) or type(error).__name__})

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        if self._log is not None:
            self._log.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.append(record)
