"""The whole story on the bundled models, offline: transfer a LoRA, sample, compare, write a page.

    from loraport.demo.run import run_demo

    print(run_demo("demo-output").lead)

Every row starts from the same prompts and the same noise. Rows are data: a new way of carrying a LoRA over is one
more `Trial`.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraport.calibration import CalibrationReport, CalibrationSettings
from loraport.calibration.api import calibrate
from loraport.demo import words
from loraport.demo.asked import cards_of
from loraport.demo.clips import SHOWN, DemoClips, Trial
from loraport.engine.events import Listener, Step, ignore
from loraport.engine.options import RunOptions
from loraport.engine.plan import make_plan
from loraport.engine.recipe import Recipe
from loraport.engine.results import TransferReport
from loraport.engine.run import run
from loraport.errors import UsageError
from loraport.files import write_bytes, write_json
from loraport.methods import DEFAULT
from loraport.report import Comparison, Words, figures, write_page
from loraport.threads import one_thread_each
from loraport.version import __version__
from loraport.writable import claim_folder
from loraport.zoo import drawing, world
from loraport.zoo.catalogue import LoraCard, ModelCard, lora_card, loras, path

SCORED = 48
CALIBRATION = CalibrationSettings(samples=24)
"""Fewer samples than usual, to be quick."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo left behind.

    Attributes:
        output: the folder. lora, calibrated, log, page, still, animation, numbers: the files in it.
        report: of the transfer. calibration: of the calibration. comparison: rows and scores.
        lead: the result in a sentence or two. remarks: what to notice. seconds: wall time.
    """

    output: Path
    lora: Path
    calibrated: Path
    log: Path
    page: Path
    still: Path
    animation: Path
    numbers: Path
    report: TransferReport
    calibration: CalibrationReport
    comparison: Comparison
    lead: str
    remarks: tuple[str, ...]
    seconds: float


def run_demo(
    output: str | Path,
    *,
    lora: str = "outline",
    target: str = "dmd",
    seed: int = 0,
    clips: int = SCORED,
    method: str = DEFAULT,
    on_event: Listener = ignore,
) -> DemoResult:
    """Transfer a bundled LoRA to a bundled distilled model and show what comes of it.

    Args:
        output: folder for the LoRA, the run log, the pictures and the page; files of an earlier demo are replaced.
        lora, target: names from `zoo.loras()` and `zoo.models()`.
        seed: of prompts and noise.
        clips: how many clips are scored; the first eight are shown.
        method: as in `loraport.transfer`.
        on_event: called with every `Step` and every event of the transfer.

    Raises:
        UsageError: unknown names, a target that was not made from the LoRA's source, a seed that is none, or diffusers
            is not installed.
        FileError: the folder cannot be written.
    """
    began = time.perf_counter()
    card, source, goal = cards_of(lora, target)
    _check(card, goal, clips)
    settings = CALIBRATION.model_copy(update={"seed": seed})
    output = Path(output)
    file, log = output / f"{lora}-for-{target}.safetensors", output / "run.jsonl"
    claim_folder(output, (f"{lora}-for-{target}*.safetensors", "run.jsonl", "index.html", "comparison.*"), "demo")

    on_event(Step("transferring the LoRA, from weights alone", 1, 6))
    recipe = Recipe(lora=str(path(lora)), source=str(path(source.name)), target=str(path(target)), method=method)
    options = RunOptions(cache="off", overwrite=True, log=str(log))
    report = run(make_plan(recipe), file, options, on_event)
    on_event(Step("calibrating: running both models on noise", 2, 6))
    calibrated = output / f"{lora}-for-{target}-calibrated.safetensors"
    calibration = calibrate(
        path(lora),
        source=path(source.name),
        target=path(target),
        output=calibrated,
        settings=settings,
        options=RunOptions(cache="off", overwrite=True, log="off"),
    )
    took = f"by loraport calibrate, which chose {calibration.chosen}"
    trials = (
        Trial(
            "direct", "target + LoRA, reused unchanged", "no transfer", "reused unchanged", path(lora), show_best=True
        ),
        Trial("transferred", "target + LoRA, transferred", f"by loraport, method {method}", "transferred", file),
        Trial("calibrated", "target + LoRA, calibrated", took, "calibrated", calibrated, "result"),
    )
    with one_thread_each():
        sampler = DemoClips.open(card.style, clips, seed)
        on_event(Step(f"sampling the source, {source.sampling.steps} steps", 3, 6))
        sets = sampler.source_sets(source, path(lora))
        on_event(Step(f"sampling the target, {goal.sampling.steps} steps", 4, 6))
        sets, curves = sampler.target_sets(goal, trials, sets)

    on_event(Step("drawing", 5, 6))
    title = f"LoRA “{lora}”, transferred to “{target}”"
    comparison = sampler.comparison(sets, curves, title)
    about_fit = (
        f"{calibration.diagnosis.sentence} Calibration chose “{calibration.chosen}”: {calibration.choice.reason}."
    )
    said = words.summarise(sets, report.to_json(), about_fit, lora=lora, target=goal, style=card.summary)
    result = DemoResult(
        output=output,
        lora=file,
        calibrated=calibrated,
        log=log,
        page=output / "index.html",
        still=output / "comparison.png",
        animation=output / "comparison.gif",
        numbers=output / "comparison.json",
        report=report,
        calibration=calibration,
        comparison=comparison,
        lead=said.lead,
        remarks=said.remarks,
        seconds=time.perf_counter() - began,
    )
    _write(result, said, settings={"lora": lora, "target": target, "seed": seed, "clips": clips, "method": method})
    on_event(Step("done", 6, 6))
    return result


def _check(card: LoraCard, goal: ModelCard, clips: int) -> None:
    if card.style not in drawing.LOOKS:
        raise UsageError(
            f"the demo scores looks, and {card.name} teaches something else",
            values=f"looks: {', '.join(name for name in loras() if lora_card(name).style in drawing.LOOKS)}",
            fix=f"loraport evaluate --lora {card.name} --target {goal.name} measures it",
        )
    most = sum(prompt.held_out for prompt in world.all_prompts())
    if not SHOWN <= clips <= most:
        raise UsageError("too few or too many clips", values=f"{clips}; between {SHOWN} and {most} held-out prompts")


def _write(result: DemoResult, said: Words, settings: dict[str, Any]) -> None:
    write_bytes(result.still, figures.still(result.comparison, scores=("style", "to_aim")))
    write_bytes(result.animation, figures.animation(result.comparison, scores=("style", "to_aim")))
    numbers = {"settings": settings, "version": __version__, "seconds": round(result.seconds, 1)}
    numbers |= result.comparison.to_json() | {"calibration": result.calibration.to_json()}
    write_json(result.numbers, numbers | {"lead": said.lead, "remarks": said.remarks})
    repeat = words.commands(settings, result.lora.name, result.calibrated.name)
    said = replace(said, commands=repeat)
    write_page(result.page, result.report.to_json(), comparison=result.comparison, words=said)
