"""Calibrated transfer from start to end: the target's states, the source's answers, the fit, the choice, the file.

What is measured on the two models is in `work`; they are never in memory together.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loraport.calibration.candidates import Choice
from loraport.calibration.inputs import open_inputs
from loraport.calibration.measure import diagnose
from loraport.calibration.notes import Notes, weights_of
from loraport.calibration.progress import Teller
from loraport.calibration.report import CalibrationReport, file_digest, write_result
from loraport.calibration.settings import Settings
from loraport.calibration.work import Work
from loraport.containers.tensors import digest_tensor
from loraport.files import check_output
from loraport.sampling.denoiser import Conditions, Runnable


def run_calibration(
    lora: Path,
    source: Runnable,
    target: Runnable,
    conditions: Conditions,
    output: Path | None,
    settings: Settings,
    *,
    to: str = "universal",
    dtype: str = "same",
    overwrite: bool = False,
    keep: Path | None = None,
    listen: Callable[[object], None] = lambda event: None,
) -> CalibrationReport:
    """See `loraport.calibrate`."""
    began = time.perf_counter()
    if output is not None:
        models = [(role, m.checkpoint) for role, m in (("source", source), ("target", target)) if m.checkpoint]
        check_output(output, [("input LoRA", lora), *models], overwrite=overwrite)
    tell = Teller(listen)
    inputs = open_inputs(lora, source, target, conditions, settings, tell)
    notes = Notes(keep, _facts(lora, source, target, conditions, settings))
    work = Work(source, target, inputs, settings, notes, tell)
    states = work.states()
    answers = work.answers(states)
    choice, coefficients = work.choose(states, answers)
    taken = choice.chosen.candidate
    diagnosis = work.at(
        "target", lambda stage: diagnose(stage, inputs, states, answers, taken, _guidance(choice), settings)
    )
    kept = 1.0 if taken.plain else float(taken.settings.get("energy_kept", 1.0))
    tell.stage("done" if output is None else f"writing {output.name}")
    if output is not None:
        write_result(
            output,
            taken.update,
            inputs.adapter,
            inputs.adapter.architecture,
            settings=settings,
            chosen=choice.chosen,
            coefficients=coefficients,
            models=(Path(source.name).name, Path(target.name).name),
            to=to,
            dtype=dtype,
            energy_kept=kept,
        )
    return CalibrationReport(
        output=output,
        source=source.name,
        target=target.name,
        settings=settings,
        choice=choice,
        coefficients=coefficients,
        diagnosis=diagnosis,
        passes=work.passes,
        seconds=work.seconds | {"all": time.perf_counter() - began},
        resumed=tuple(notes.found),
        warnings=tuple(tell.warnings),
        layers=len(taken.update),
        rank=max(term.rank for term in taken.update.values()),
        energy_kept=kept,
    )


def _facts(
    lora: Path, source: Runnable, target: Runnable, conditions: Conditions, settings: Settings
) -> dict[str, Any]:
    """Everything that decides what is measured (not what is made of it)."""
    measured = ("groups", "transfers", "restore", "probes", "heldout", "group_probes", "difference", "batch", "seed")
    plain = settings.to_json()
    prompts = digest_tensor(conditions.prompts.contiguous()) + digest_tensor(conditions.empty.contiguous())
    models = [[m.name, list(m.latents), repr(m.schedule), weights_of(m)] for m in (source, target)]
    return {name: plain[name] for name in measured} | {"lora": file_digest(lora), "prompts": prompts, "models": models}


def _guidance(choice: Choice) -> float:
    """The w behind the diagnosis: that of the nearest fit, taken or not."""
    for each in (choice.chosen, *choice.ranking):
        if "guidance" in each.candidate.settings:
            return float(each.candidate.settings["guidance"])
    return 1.0
