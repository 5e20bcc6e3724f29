"""Reading a run log (`run.jsonl`) back into the dictionary that a report gives."""

import json
from pathlib import Path
from typing import Any

from loraport.errors import FileError
from loraport.files import reason_of

_GIVE = "give the NAME.run.jsonl that a transfer wrote"


def read_run(path: Path) -> dict[str, Any]:
    """Gather the lines of a run log: its layers, and the totals if the run came to an end.

    A last line that was cut short by a crash is left out.

    Raises:
        FileError: no such file, or not a run log.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        beside = path.with_suffix(".run.jsonl")  # of an output
        fix = f"give {beside}" if beside.is_file() else _GIVE
        raise FileError("not a run log", where=str(path), fix=fix) from error
    except OSError as error:
        raise FileError("the run log cannot be read", where=str(path), values=reason_of(error)) from error
    events = []
    for number, line in enumerate(lines, 1):
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise FileError("not a run log", where=f"{path}, line {number}", values=line[:80], fix=_GIVE) from error
    if not all(isinstance(event, dict) for event in events):
        raise FileError("not a run log", where=str(path), fix=_GIVE)
    if not any(event.get("event") in ("started", "layer", "finished", "failed") for event in events):
        raise FileError("not a run log", where=str(path), fix=_GIVE)
    report: dict[str, Any] = {
        "output": None,
        "summary": {},
        "warnings": [],
        "passthrough": [],
        "dropped": [],
    }
    for event in events:
        if event.get("event") in ("started", "finished", "failed"):
            report |= {key: value for key, value in event.items() if key != "event"}
    layers = [
        {key: value for key, value in event.items() if key != "event"}
        for event in events
        if event.get("event") == "layer"
    ]
    place = {name: at for at, name in enumerate(report.pop("order", ()))}  # missing in logs of earlier versions
    report["layers"] = sorted(layers, key=lambda layer: place.get(layer.get("name"), 0))
    return report
