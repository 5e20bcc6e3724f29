"""The whole story on the bundled models, offline: carry a LoRA over, sample, compare, write a page.

    from loraport.zoo.demo import run_demo

    print(run_demo("demo-output").lead)

Every row starts from the same prompts and the same noise. Rows are data: a new way of carrying a LoRA over is one
more `Candidate`.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import loraport
from loraport.errors import UsageError
from loraport.files import write_bytes, write_json
from loraport.report import Comparison, Curve, Row, Score, Words, figures, write_page
from loraport.zoo import statistics, story, world
from loraport.zoo.catalogue import ModelCard, lora_card, model_card, path
from loraport.zoo.threads import one_thread_each

SHOWN = 8
SCORED = 48
STRENGTHS = (0.75, 1.0, 1.25, 1.5, 2.0)
NEEDED = ("diffusers", "peft", "PIL")


@dataclass(frozen=True)
class Stage:
    """Progress of the demo: what is being done now, as the `done`-th of `total` stages."""

    message: str
    done: int
    total: int


@dataclass(frozen=True)
class Candidate:
    """A LoRA file to be tried on the target, at several strengths.

    Attributes:
        key, label, note, kind: as in `report.Row`. short: a word or three for the chart. file: the LoRA.
        show_best: show it once more at the strength that suits it best (scored in any case).
    """

    key: str
    label: str
    note: str
    short: str
    file: Path
    kind: str
    show_best: bool = False


@dataclass(frozen=True)
class DemoResult:
    """What the demo left behind.

    Attributes:
        output: the folder. lora, log, page, still, animation, numbers: the files in it.
        report: of the transfer. comparison: rows and scores. lead: the result in a sentence or two.
        remarks: what to notice. seconds: wall time.
    """

    output: Path
    lora: Path
    log: Path
    page: Path
    still: Path
    animation: Path
    numbers: Path
    report: "loraport.TransferReport"
    comparison: Comparison
    lead: str
    remarks: tuple[str, ...]
    seconds: float


def run_demo(
    output: str | Path,
    *,
    lora: str = "outline",
    target: str = "step-strong",
    seed: int = 0,
    clips: int = SCORED,
    method: str = "casa",
    on_event: Callable[[object], None] | None = None,
) -> DemoResult:
    """Carry a bundled LoRA over to a bundled distilled model and show what comes of it.

    Args:
        output: folder for the LoRA, the run log, the pictures and the page; files of an earlier demo are replaced.
        lora, target: names from `zoo.loras()` and `zoo.models()`.
        seed: of prompts and noise.
        clips: how many clips are scored; the first eight are shown.
        method: as in `loraport.transfer`.
        on_event: told about every `Stage` and every event of the transfer.

    Raises:
        UsageError: unknown names, a target that was not made from the LoRA's source, or diffusers is not installed.
        FileError: the folder cannot be written.
    """
    began = time.perf_counter()
    tell = on_event or (lambda event: None)
    card = lora_card(lora)
    source, goal = model_card(card.source), model_card(target)
    _check(source, goal, clips)
    output = Path(output)
    file, log = output / f"{lora}-for-{target}.safetensors", output / "run.jsonl"

    tell(Stage("carrying the LoRA over", 1, 5))
    report = loraport.transfer(
        path(lora),
        source=path(source.name),
        target=path(target),
        output=file,
        method=method,
        options=loraport.RunOptions(cache="off", overwrite=True, log=str(log)),
        on_event=tell,
    )
    candidates = (
        Candidate(
            "direct",
            "target + LoRA, reused as it is",
            "no transfer",
            "reused as it is",
            path(lora),
            "baseline",
            show_best=True,
        ),
        Candidate(
            "transferred",
            "target + LoRA, carried over",
            f"by loraport, method {method}",
            "carried over",
            file,
            "result",
        ),
    )
    with one_thread_each():
        studio = Studio.open(card.style, clips, seed)
        tell(Stage(f"sampling the source, {source.sampling.steps} steps", 2, 5))
        takes = studio.source_takes(source, path(lora))
        tell(Stage(f"sampling the target, {goal.sampling.steps} steps", 3, 5))
        takes, curves = studio.target_takes(goal, candidates, takes)

    tell(Stage("drawing", 4, 5))
    comparison = studio.comparison(takes, curves)
    told = story.tell(takes, report.to_json(), lora=lora, target=goal, style=card.summary)
    result = DemoResult(
        output=output,
        lora=file,
        log=log,
        page=output / "index.html",
        still=output / "comparison.png",
        animation=output / "comparison.gif",
        numbers=output / "comparison.json",
        report=report,
        comparison=comparison,
        lead=told.lead,
        remarks=told.remarks,
        seconds=time.perf_counter() - began,
    )
    _write(result, told, settings={"lora": lora, "target": target, "seed": seed, "clips": clips, "method": method})
    tell(Stage("done", 5, 5))
    return result


@dataclass(frozen=True, eq=False)
class Studio:
    """Prompts, noise and references that all rows share."""

    prompts: list[world.Prompt]
    indices: Int[Tensor, "n 4"]
    noise: Float[Tensor, "n 3 f h w"]
    references: statistics.References
    style: str

    @classmethod
    def open(cls, style: str, clips: int, seed: int) -> "Studio":
        """Draw `clips` different prompts, a noise for each, and the renderings they are compared with."""
        from loraport.zoo import sampler

        prompts = world.draw_prompts(clips, seed=seed)
        indices = world.prompt_indices(prompts)
        noise = sampler.draw_noise(range(seed * 1_000_000, seed * 1_000_000 + clips))
        return cls(prompts, indices, noise, statistics.references(indices, style=style, seed=seed), style)

    def source_takes(self, source: ModelCard, lora: Path) -> list[story.Take]:
        """The source without and with the LoRA: where it starts and what is aimed at."""
        from loraport.zoo import sampler

        network, card = sampler.load_model(source.name)
        alone = sampler.sample(network, card.sampling, self.indices, self.noise)
        sampler.load_lora(network, lora)
        aim = sampler.sample(network, card.sampling, self.indices, self.noise)
        steps = f"{card.sampling.steps} steps with guidance"
        return [
            self._take("source", "source alone", steps, alone, aim, shown=False),
            self._take("source+lora", "source + LoRA", f"what is aimed at: {steps}", aim, aim, kind="reference"),
        ]

    def target_takes(
        self, goal: ModelCard, candidates: tuple[Candidate, ...], takes: list[story.Take]
    ) -> tuple[list[story.Take], list[Curve]]:
        """The target alone and with every candidate at every strength; adds to `takes`."""
        from loraport.zoo import sampler

        aim = next(take for take in takes if take.key == "source+lora").clips
        network, card = sampler.load_model(goal.name)
        alone = sampler.sample(network, card.sampling, self.indices, self.noise)
        takes = [*takes, self._take("target", "target alone", f"{card.sampling.steps} steps, no LoRA", alone, aim)]
        curves = []
        for candidate in candidates:
            tries: dict[float, story.Take] = {}
            for strength in STRENGTHS:
                sampler.load_lora(network, candidate.file, strength=strength)
                made = sampler.sample(network, card.sampling, self.indices, self.noise)
                key = candidate.key if strength == 1 else f"{candidate.key}x{strength:g}"
                tries[strength] = self._take(key, candidate.label, candidate.note, made, aim, kind=candidate.kind)
            takes.append(tries[1.0])
            best = min(tries, key=lambda strength: tries[strength].scores["to_aim"].mean().item())
            if best != 1:
                note = "the best of its strengths, chosen on these clips"
                label = f"the same at strength {best:g}"
                takes.append(
                    replace(
                        tries[best],
                        key=f"{candidate.key}-best",
                        label=label,
                        note=note,
                        shown=candidate.show_best,
                        strength=best,
                    )
                )
            points = tuple((strength, _score(take.scores["to_aim"])) for strength, take in tries.items())
            curves.append(Curve(candidate.short, points, candidate.kind))
        return takes, curves

    def comparison(self, takes: list[story.Take], curves: list[Curve]) -> Comparison:
        """What the page and the pictures are drawn from."""
        captions = [(p.colour, p.shape, f"moving {p.direction}", f"on {p.background}") for p in self.prompts[:SHOWN]]
        drawn = Row(
            "drawn",
            f"drawn as “{self.style}”",
            "what the LoRA was trained on",
            _pixels(self.references.clips[:SHOWN, 0]),
            kind="reference",
        )
        measures = story.MEASURES
        return Comparison(
            captions=tuple(captions),
            rows=(drawn, *(_row(take) for take in takes)),
            measures=measures,
            scored=len(self.prompts),
            curves=tuple(curves),
            curve_measure=next(measure for measure in measures if measure.key == "to_aim"),
            curve_axis="strength of the LoRA",
        )

    def _take(
        self,
        key: str,
        label: str,
        note: str,
        clips: Float[Tensor, "n 3 f h w"],
        aim: Float[Tensor, "n 3 f h w"],
        *,
        kind: str = "baseline",
        shown: bool = True,
    ) -> story.Take:
        scores = {
            "style": statistics.style_progress(clips, self.references),
            "to_aim": statistics.distance_between(clips, aim),
            "to_drawn": statistics.distance_to_styled(clips, self.references),
        }
        return story.Take(key, label, note, clips, scores, kind, shown)


def _row(take: story.Take) -> Row:
    scores = {key: _score(values) for key, values in take.scores.items()}
    if take.key == "source+lora":
        del scores["to_aim"]  # its distance to itself
    return Row(take.key, take.label, take.note, _pixels(take.clips[:SHOWN]) if take.shown else None, scores, take.kind)


def _score(values: Float[Tensor, " n"]) -> Score:
    return Score(*statistics.mean_and_error(values))


def _pixels(clips: Float[Tensor, "n 3 f h w"]) -> np.ndarray:
    """Clips in [-1, 1] as uint8 pixels, channels last."""
    levels = ((clips.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).contiguous().numpy()


def _check(source: ModelCard, goal: ModelCard, clips: int) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "the demo samples the models and needs more than the transfer itself",
            values=f"not installed: {', '.join(missing)}",
            fix="pip install 'loraport[diffusers,report]'",
        )
    if goal.parent != source.name:
        raise UsageError(
            f"{goal.name} was not made from {source.name}, which the LoRA was trained on",
            values=f"made from {goal.parent or 'nothing: it is a source'}",
        )
    if not SHOWN <= clips <= len(world.all_prompts()):
        raise UsageError("too few or too many clips", values=f"{clips}; between {SHOWN} and {len(world.all_prompts())}")


def _write(result: DemoResult, told: story.Told, settings: dict[str, Any]) -> None:
    write_bytes(result.still, figures.still(result.comparison, scores=("style", "to_aim")))
    write_bytes(result.animation, figures.animation(result.comparison, scores=("style", "to_aim")))
    numbers = {"settings": settings, "version": loraport.__version__, "seconds": round(result.seconds, 1)}
    write_json(result.numbers, numbers | result.comparison.to_json() | {"lead": told.lead, "remarks": told.remarks})
    words = Words(told.title, told.lead, told.remarks, told.legend, story.commands(settings, result.lora.name))
    write_page(result.page, result.report.to_json(), comparison=result.comparison, words=words)
