"""The public function: from files and two models to a recipe, which the engine carries out.

Refusals come first (plans of everything that is tried), then the target's turn, the source's turn, the choice; what is
written is an ordinary transfer. The two models are never in memory together unless the caller holds them there.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loraport.adapters.added_lora import AddedLora, added_loras
from loraport.arguments import check_arguments
from loraport.calibration.candidates import AS_IT_IS, Candidate, around, coarse, computed, plan_for
from loraport.calibration.choice import Choice, choose, gap_for
from loraport.calibration.diagnosis import Diagnosis
from loraport.calibration.gap import LatentDistance
from loraport.calibration.measure import Samples, ask_source, ask_target
from loraport.calibration.progress import ProgressReporter
from loraport.calibration.report import CalibrationReport
from loraport.calibration.session import Session
from loraport.calibration.settings import CalibrationSettings
from loraport.engine.events import Listener, ignore
from loraport.engine.options import RunOptions
from loraport.engine.output import check_outputs
from loraport.engine.recipe import DType, Recipe
from loraport.engine.run import run
from loraport.engine.run_cache import open_cache
from loraport.errors import FileError, UsageError, first_line, is_out_of_memory
from loraport.sampling.denoiser import Conditions, Runnable
from loraport.sampling.pipelines import Model, as_runnable
from loraport.sampling.prompts import conditions_for
from loraport.sampling.runner import draw_noise
from loraport.sampling.schedule import NO_SETTINGS, SamplingSettings
from loraport.sampling.wan import check_together
from loraport.wording import count

SETTINGS = CalibrationSettings()
NOISE = 7_000_500_000
"""Seeds of noise begin here, far from those of anybody who scores the result on noise of their own."""


def calibrate(
    lora: str | Path,
    *,
    source: Model,
    target: Model | None = None,
    target_lora: str | Path | AddedLora | Sequence[str | Path | AddedLora] = (),
    output: str | Path | None = None,
    prompts: str | Path | Sequence[str] | Conditions | None = None,
    settings: CalibrationSettings = SETTINGS,
    source_sampling: SamplingSettings = NO_SETTINGS,
    target_sampling: SamplingSettings = NO_SETTINGS,
    to: str = "universal",
    dtype: DType = "same",
    options: RunOptions | None = None,
    on_event: Listener = ignore,
) -> CalibrationReport:
    """Choose method and strength for a LoRA on a distilled model by running both models on noise.

    It needs no data and no labels: only prompts, noise from a seed, and forward passes. The choice is a recipe, and the
    file is the one that `loraport.transfer` writes for it.

    Args:
        lora: LoRA file, or `zoo:NAME`.
        source: model that the LoRA was trained on: `zoo:NAME`, or a diffusers folder of Wan; a `WanPipeline` or
            `WanTransformer3DModel` of diffusers in memory, which is used as it is and left as it was; or a `Runnable`
            of your own.
        target: the distilled model, given in the same ways. May be left out if `target_lora` makes it from the source.
        target_lora: distillation LoRAs to add to the target, or to the source; as in `loraport.transfer`.
        output: file to write; None computes and reports only.
        prompts: file of embeddings or of text (see `loraport.sampling.prompts`), a list of texts, or the conditions
            themselves; the bundled models bring their own. Texts need a text encoder: that of the source's folder or
            pipeline, otherwise the target's.
        settings: what to try, and on how much.
        source_sampling: time steps, size and device of a source that does not say so itself. A pipeline, or a folder
            with a scheduler, needs `SamplingSettings(latents=(5, 32, 56), steps=30)`.
        target_sampling: the same for the target.
        to: output profile, as in `loraport.transfer`.
        dtype: number format of the output's tensors: `same` or a torch name.
        options: device of the transfer, cache, and whether to replace an existing file; see `RunOptions`. The answers
            of the models are kept in the cache, so the same call resumes where it was interrupted.
        on_event: called with every `loraport.engine.events.Event`.

    Returns:
        The report: the choice, the diagnosis, and the report of the transfer.

    Raises:
        LoraportError: see `loraport.errors`. Whatever would stop a transfer is refused before any model runs. No output
            file is left behind.
    """
    check_arguments(calibrate, locals())
    began, options = time.perf_counter(), options or RunOptions()
    base = as_runnable(source, source_sampling, role="source")
    added = added_loras(target_lora)
    if target is None and not added:
        raise UsageError("the target is not given", fix="give target, or the LoRAs that make it (target_lora)")
    goal = as_runnable(source if target is None else target, target_sampling, role="target", added=added)
    if target is None:
        goal = replace(goal, name=" + ".join([goal.name, *(Path(each.file).name for each in added)]))
    check_together(base, goal)
    progress = ProgressReporter(on_event, 1 + 3 * settings.rounds)
    progress.stage("computing the candidates")
    recipe = _recipe(lora, base, goal, to, dtype, made_of_source=target is None)
    plans = {tried: plan_for(recipe, tried) for tried in coarse(settings)}
    path = None if output is None else Path(output)
    as_it_is = plans[AS_IT_IS]
    check_outputs(path, as_it_is, options)
    if as_it_is.passthrough:
        progress.warn(
            f"{count(len(as_it_is.passthrough), 'tensor')} of the LoRA for other things than linear layers: in "
            "the output, but off while measuring"
        )
    try:
        conditions = _conditions(base, goal, prompts, settings, progress)
        seeds = range(settings.seed * 1_000_000 + NOISE, settings.seed * 1_000_000 + NOISE + settings.samples)
        samples = Samples(conditions.take(0, settings.samples), draw_noise(goal.latents, seeds))
        store, _ = open_cache(as_it_is.identities, options, progress.warn)
        turn, other = Session(goal, settings.batch, store), Session(base, settings.batch, store)
        candidates: list[Candidate] = []
        for number in range(settings.rounds):
            candidates += computed(plans, options, progress.tick)
            choice = _choice(candidates, samples, turn, other, settings, progress)
            if number + 1 == settings.rounds:
                break
            further = around(choice.chosen.candidate.tried, [each.tried for each in candidates], settings)
            if not further:
                break
            plans = {tried: plan_for(recipe, tried) for tried in further}
            progress.stage(f"{choice.chosen.label} is the best so far; trying others around it")
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise FileError(
                "out of memory on the device",
                values=first_line(error),
                fix="use --offload, a smaller --latents or --batch 1; finished work is kept in the cache",
            ) from error
        raise
    for problem in store.take_problems():
        progress.warn(problem.message)
    progress.stage(f"choosing {choice.chosen.label}" if path is None else f"writing {path.name}")
    plan = choice.chosen.candidate.plan
    report = run(plan, path, options, on_event, measured=True)
    return CalibrationReport(
        transfer=report,
        recipe=plan.recipe,
        source=base.name,
        target=goal.name,
        settings=settings,
        choice=choice,
        diagnosis=Diagnosis(base.schedule.guidance, choice.as_it_is.effect, choice.chosen.effect),
        passes={"source": other.passes, "target": turn.passes},
        seconds={"source": other.seconds, "target": turn.seconds, "all": time.perf_counter() - began},
        found=len(other.found) + len(turn.found),
        warnings=tuple(progress.warn.told),
    )


def _choice(
    candidates: Sequence[Candidate],
    samples: Samples,
    target: Session,
    source: Session,
    settings: CalibrationSettings,
    progress: ProgressReporter,
) -> Choice:
    """Ask the target, then the source, and rank. What a model has said before it does not say again."""
    times = target.model.schedule.times[:-1]
    progress.stage(f"{target.model.name}: making clips with {count(len(candidates), 'candidate')}")
    with target:
        theirs = ask_target(
            target, candidates, samples, diagnosis=min(settings.diagnosis, settings.samples), tick=progress.tick
        )
    progress.stage(f"{source.model.name}: making clips with the LoRA, and judging the others")
    with source:
        ours = ask_source(
            source, candidates[0].update, theirs, times, samples,
            judge=settings.measure == "likelihood", tick=progress.tick,
        )  # fmt: skip
    gap = gap_for(ours)
    if gap is None:
        progress.warn(
            f"within the noise of {count(len(ours.alone), 'clip')}, the source does not tell its own clips with "
            "the LoRA from those without; the choice is made by the distance of latents, which favours weak "
            "effects"
        )
    return choose(candidates, theirs, ours, times, gap or LatentDistance())


def _recipe(
    lora: str | Path, source: Runnable, target: Runnable, to: str, dtype: str, *, made_of_source: bool
) -> Recipe:
    """Files and output; what is chosen goes into it later."""
    for role, model in (("source", source), ("target", target)):
        if model.checkpoint is None and not model.added:
            raise UsageError(
                f"it is not known where the weights of the {role} lie on the disk", where=model.name,
                fix=f"give {role}_sampling=SamplingSettings(checkpoint=FOLDER), or checkpoint=FOLDER in a Runnable",
            )  # fmt: skip
    goal = None if made_of_source else target.checkpoint
    files = {"lora": lora, "source": source.checkpoint, "target": goal, "target_lora": target.added}
    return Recipe.build({**files, "method": "direct", "to": to, "dtype": dtype})


def _conditions(
    source: Runnable,
    target: Runnable,
    prompts: str | Path | Sequence[str] | Conditions | None,
    settings: CalibrationSettings,
    progress: ProgressReporter,
) -> Conditions:
    if isinstance(prompts, Conditions):
        found = prompts
    else:
        given = Path(prompts) if isinstance(prompts, str) else prompts
        found = conditions_for(source, target, given, seed=settings.seed)
    if len(found.prompts) < settings.samples:
        progress.warn(
            f"{count(len(found.prompts), 'prompt')} for {count(settings.samples, 'sample')}: "
            "some are used twice, with other noise"
        )
    return found
