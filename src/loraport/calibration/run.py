"""Calibrated transfer from start to end: the target's states, the source's answers, the fit, the choice, the file.

The two models are never in memory together: the target shows its states, the source answers at them, and the target
comes back for the fit and the choice.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.calibration.attach import Attached
from loraport.calibration.candidates import Choice, Judge, rolled
from loraport.calibration.denoiser import Runnable
from loraport.calibration.diagnosis import Diagnosis
from loraport.calibration.directions import Directions
from loraport.calibration.fits import fits, plain_candidates
from loraport.calibration.inputs import Inputs, open_inputs
from loraport.calibration.measure import Answers, by_group_of, diagnose, only
from loraport.calibration.moments import Moments
from loraport.calibration.notes import Notes, weights_of
from loraport.calibration.probes import source_responses, target_moments, visited
from loraport.calibration.progress import Teller
from loraport.calibration.report import CalibrationReport, file_digest, write_result
from loraport.calibration.rollout import Conditions, Stage
from loraport.calibration.settings import Settings
from loraport.errors import FileError
from loraport.formats.tensors import digest_tensor

STEP, COARSE_STEP = 0.1, 0.25
"""h of the central differences: a wider one where passes are noisy (measured: docs/calibration.md)."""
SOURCE_PARTS = ("responses", "groups", "aim", "alone")


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
    _check_output(output, lora, overwrite)
    tell = Teller(listen)
    inputs = open_inputs(lora, source, target, conditions, settings, tell)
    notes = Notes(keep, {} if keep is None else _facts(lora, source, target, conditions, settings))
    passes, seconds = {"source": 0, "target": 0}, {"source": 0.0, "target": 0.0}

    def at_work(model: Runnable, role: str, work: Callable[[Stage], Any]) -> Any:
        clock = time.perf_counter()
        stage = Stage.of(model, settings.batch)
        try:
            with stage.threads():
                return work(stage)
        finally:
            passes[role] += stage.passes
            seconds[role] += time.perf_counter() - clock

    tell.stage(f"the states that {target.name} meets")
    if notes.has("states"):
        states = notes.once("states", lambda: torch.empty(0))
    else:
        states = at_work(target, "target", lambda stage: _states(stage, inputs, notes))
    tell.stage(f"what the LoRA does in {source.name}")
    if all(notes.has(name) for name in SOURCE_PARTS):
        answers = Answers(*(notes.once(name, lambda: torch.empty(0)) for name in SOURCE_PARTS))
    else:
        answers = at_work(
            source, "source", lambda stage: _ask_source(stage, inputs, states, target, settings, notes, tell)
        )

    def finish(stage: Stage) -> tuple[Choice, dict[str, float], Diagnosis, float]:
        return _fit_and_choose(stage, inputs, states, answers, settings, notes, tell)

    choice, coefficients, diagnosis, kept = at_work(target, "target", finish)
    update = choice.chosen.candidate.update
    tell.stage("done" if output is None else f"writing {output.name}")
    if output is not None:
        write_result(
            output,
            update,
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
        passes=passes,
        seconds=seconds | {"all": time.perf_counter() - began},
        resumed=tuple(notes.found),
        warnings=tuple(tell.warnings),
        layers=len(update),
        rank=max(term.rank for term in update.values()),
        energy_kept=kept,
    )


def _check_output(output: Path | None, lora: Path, overwrite: bool) -> None:
    if output is None:
        return
    if output.is_dir():
        raise FileError("the output is a folder", where=str(output), fix="give the name of a file")
    if output.exists() and output.resolve() == lora.resolve():
        raise FileError("the output would replace the input", where=str(output), fix="choose another name")
    if output.exists() and not overwrite:
        raise FileError(
            "the output file exists already", where=str(output), fix="choose another name or add --overwrite"
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


def _states(stage: Stage, inputs: Inputs, notes: Notes) -> Float[Tensor, "t n ..."]:
    with Attached(stage.denoiser, inputs.directions) as attached:
        attached.put_on(inputs.directions.start())
        return notes.once("states", lambda: visited(stage, inputs.probe_noise, inputs.probes))


def _ask_source(
    stage: Stage,
    inputs: Inputs,
    states: Float[Tensor, "t n ..."],
    target: Runnable,
    settings: Settings,
    notes: Notes,
    tell: Teller,
) -> Answers:
    times = target.schedule.times[:-1]
    direct = inputs.directions.start()
    with Attached(stage.denoiser, inputs.directions) as attached:
        responses = notes.once(
            "responses", lambda: source_responses(stage, attached, direct, states, times, inputs.probes)
        )
    few = inputs.probes.take(0, min(settings.group_probes, settings.probes))
    some = states[:, : len(few.prompts)]
    by_group = Directions(tuple(by_group_of(inputs.update, settings)))
    with Attached(stage.denoiser, by_group) as attached:

        def measure() -> Tensor:
            made = []
            for k in range(len(by_group.items) if settings.group_probes else 0):
                made.append(source_responses(stage, attached, only(by_group, k), some, times, few))
                tell.tick(k + 1, len(by_group.items))
            return torch.stack(made) if made else torch.zeros(1)

        groups = notes.once("groups", measure)
    tell.stage("clips of the source with the LoRA, from held-out noise")
    aim = notes.once("aim", lambda: rolled(stage, inputs.update, inputs.heldout_noise, inputs.heldout))
    part = max(2, settings.heldout // 3)
    alone = notes.once("alone", lambda: stage.roll_out(inputs.heldout_noise[:part], inputs.heldout.take(0, part)))
    return Answers(responses, groups, aim, alone)


def _fit_and_choose(
    stage: Stage,
    inputs: Inputs,
    states: Float[Tensor, "t n ..."],
    answers: Answers,
    settings: Settings,
    notes: Notes,
    tell: Teller,
) -> tuple[Choice, dict[str, float], Diagnosis, float]:
    def measure(around: Float[Tensor, " k"]) -> Moments:
        at = digest_tensor(around)[:8]
        with Attached(stage.denoiser, inputs.directions) as attached:

            def gram() -> Tensor:
                made = target_moments(
                    stage,
                    attached,
                    inputs.directions,
                    states,
                    answers.responses,
                    inputs.probes,
                    step=settings.difference or (COARSE_STEP if attached.coarse else STEP),
                    around=around,
                    tick=tell.tick,
                )
                return made.gram

            return Moments(notes.once(f"moments-{at}", gram))

    tell.stage(f"the target's response to {len(inputs.directions.items)} coefficients")
    first = measure(inputs.directions.start())
    tell.stage("choosing by roll-outs on held-out noise")
    judge = Judge(stage, inputs.heldout_noise, inputs.heldout, answers.aim, tick=tell.tick)
    plain = judge.score(plain_candidates(inputs, settings))
    strengths = [each for each in plain if each.candidate.kind == "direct"]
    best = min(strengths, key=lambda each: each.distance).candidate.settings["strength"]
    anchors = sorted({1.0, float(best)})
    fitted = fits(stage, inputs, states, answers, first, settings, anchors)
    choice = judge.choose(plain, [fit for fit, _ in fitted])
    for _ in range(settings.rounds - 1):
        nearest = next(each.candidate for each in choice.ranking if not each.candidate.plain)
        around = next(c for fit, c in fitted if fit is nearest)
        again = fits(stage, inputs, states, answers, measure(around), settings, anchors, earlier=(first, around))
        fitted = [(nearest, around), *again]
        choice = judge.choose(plain, [fit for fit, _ in fitted])
    taken = choice.chosen.candidate
    by_candidate = {id(fit): c for fit, c in fitted}
    values = by_candidate.get(id(taken))
    coefficients: dict[str, float] = {}
    kept = 1.0
    if values is not None:
        coefficients = dict(zip(inputs.directions.labels, values.tolist(), strict=True))
        kept = float(taken.settings.get("energy_kept", 1.0))
    elif taken.kind == "direct":
        coefficients = dict.fromkeys(
            (item.label for item in inputs.directions.items if item.kind == "gain"), float(taken.settings["strength"])
        )
    guidance = _guidance(choice)
    return choice, coefficients, diagnose(stage, inputs, states, answers, taken, guidance, settings), kept


def _guidance(choice: Choice) -> float:
    """The w behind the diagnosis: that of the nearest fit, taken or not."""
    for each in (choice.chosen, *choice.ranking):
        if "guidance" in each.candidate.settings:
            return float(each.candidate.settings["guidance"])
    return 1.0
