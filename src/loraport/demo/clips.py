"""Where the demo's clips are made: the same prompts and noise for every model and every LoRA, scored alike."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from loraport.demo import words
from loraport.evaluate import looks
from loraport.report import Comparison, Curve, Row, Score
from loraport.wording import count
from loraport.zoo import world
from loraport.zoo.catalogue import ModelCard

SHOWN = 8
STRENGTHS = (0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class Trial:
    """A LoRA file to be tried on the target, at several strengths.

    Attributes:
        key, label, note, kind: as in `report.Row`.
        short: a word or three for the chart.
        file: the LoRA.
        show_best: show it once more at the strength that suits it best (scored in any case).
    """

    key: str
    label: str
    note: str
    short: str
    file: Path
    kind: str = "baseline"
    show_best: bool = False


@dataclass(frozen=True, eq=False)
class DemoClips:
    """Prompts, noise and references that all rows share."""

    prompts: list[world.Prompt]
    indices: Int[Tensor, "n 4"]
    noise: Float[Tensor, "n 3 f h w"]
    references: looks.References
    style: str

    @classmethod
    def open(cls, style: str, clips: int, seed: int) -> "DemoClips":
        """Draw `clips` different held-out prompts, a noise for each, and the renderings they are compared with."""
        from loraport.sampling import tiny

        prompts = world.draw_prompts(clips, seed=seed, held_out=True)
        indices = world.prompt_indices(prompts)
        noise = tiny.noise(range(seed * 1_000_000, seed * 1_000_000 + clips))
        return cls(prompts, indices, noise, looks.references(indices, style=style, seed=seed), style)

    def source_sets(self, source: ModelCard, lora: Path) -> list[words.DemoRow]:
        """The source without and with the LoRA: where it starts and what is aimed at."""
        from loraport.sampling import tiny

        network, card = tiny.load_model(source.name)
        alone = tiny.sample(network, card.sampling, self.indices, self.noise)
        tiny.load_lora(network, lora)
        aim = tiny.sample(network, card.sampling, self.indices, self.noise)
        steps = f"{count(card.sampling.steps, 'step')} with guidance"
        return [
            self._scored("source", "source alone", steps, alone, aim, shown=False),
            self._scored("source+lora", "source + LoRA", f"what is aimed at: {steps}", aim, aim, kind="reference"),
        ]

    def target_sets(
        self, goal: ModelCard, trials: tuple[Trial, ...], sets: list[words.DemoRow]
    ) -> tuple[list[words.DemoRow], list[Curve]]:
        """The target alone and with every LoRA file at every strength; adds to `sets`."""
        from loraport.sampling import tiny

        aim = next(one for one in sets if one.key == "source+lora").clips
        network, card = tiny.load_model(goal.name)
        alone = tiny.sample(network, card.sampling, self.indices, self.noise)
        steps = f"{count(card.sampling.steps, 'step')}, no LoRA"
        sets = [*sets, self._scored("target", "target alone", steps, alone, aim)]
        curves = []
        for trial in trials:
            tries: dict[float, words.DemoRow] = {}
            for strength in STRENGTHS:
                tiny.load_lora(network, trial.file, strength=strength)
                made = tiny.sample(network, card.sampling, self.indices, self.noise)
                key = trial.key if strength == 1 else f"{trial.key}x{strength:g}"
                tries[strength] = self._scored(key, trial.label, trial.note, made, aim, kind=trial.kind)
            sets.append(tries[1.0])
            best = min(tries, key=lambda strength: tries[strength].scores["to_aim"].mean().item())
            if best != 1:
                key, label = f"{trial.key}-best", f"the same at strength {best:g}"
                note = "the best of its strengths, chosen on these clips"
                again = replace(tries[best], key=key, label=label, note=note, shown=trial.show_best, strength=best)
                sets.append(again)
            points = tuple((strength, _score(one.scores["to_aim"])) for strength, one in tries.items())
            curves.append(Curve(trial.short, points, trial.kind))
        return sets, curves

    def comparison(self, sets: list[words.DemoRow], curves: list[Curve], title: str) -> Comparison:
        """What the page and the pictures are drawn from."""
        captions = [(p.colour, p.shape, f"moving {p.direction}", f"on {p.background}") for p in self.prompts[:SHOWN]]
        label, note = f"drawn as “{self.style}”", "what the LoRA was trained on"
        drawn = Row("drawn", label, note, _pixels(self.references.clips[:SHOWN, 0]), kind="reference")
        measures = words.MEASURES
        return Comparison(
            captions=tuple(captions),
            rows=(drawn, *(_row(one) for one in sets)),
            measures=measures,
            scored=len(self.prompts),
            title=title,
            curves=tuple(curves),
            curve_measure=next(measure for measure in measures if measure.key == "to_aim"),
            curve_axis="strength of the LoRA",
        )

    def _scored(
        self,
        key: str,
        label: str,
        note: str,
        clips: Float[Tensor, "n 3 f h w"],
        aim: Float[Tensor, "n 3 f h w"],
        *,
        kind: str = "baseline",
        shown: bool = True,
    ) -> words.DemoRow:
        scores = {
            "style": looks.style_progress(clips, self.references),
            "to_aim": looks.distance_between(clips, aim),
            "to_drawn": looks.distance_to_styled(clips, self.references),
        }
        return words.DemoRow(key, label, note, clips, scores, kind, shown)


def _row(one: words.DemoRow) -> Row:
    scores = {key: _score(values) for key, values in one.scores.items()}
    if one.key == "source+lora":
        del scores["to_aim"]  # its distance to itself
    return Row(one.key, one.label, one.note, _pixels(one.clips[:SHOWN]) if one.shown else None, scores, one.kind)


def _score(values: Float[Tensor, " n"]) -> Score:
    return Score(*looks.mean_and_error(values))


def _pixels(clips: Float[Tensor, "n 3 f h w"]) -> np.ndarray:
    """Clips in [-1, 1] as uint8 pixels, channels last."""
    levels = ((clips.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).contiguous().numpy()
