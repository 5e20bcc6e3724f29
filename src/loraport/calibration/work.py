"""What a calibration measures on the two models, which take turns: only one of them is ever in memory.

The target shows the states that it meets, the source answers at them, the target says how it responds to each
coefficient. Then candidates are sampled on the target, and the source reads their clips.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.calibration.attach import Attached
from loraport.calibration.candidates import Candidate, Choice, Judge, Seen, rolled
from loraport.calibration.directions import Direction, Directions
from loraport.calibration.fits import fits, plain_candidates
from loraport.calibration.gaps import Gap, Latents, Reading, read
from loraport.calibration.inputs import Inputs
from loraport.calibration.measure import Answers, by_group_of, only
from loraport.calibration.moments import Moments
from loraport.calibration.notes import Notes
from loraport.calibration.probes import source_responses, target_moments, visited
from loraport.calibration.progress import Teller
from loraport.calibration.settings import Settings
from loraport.containers.tensors import digest_tensor
from loraport.sampling.denoiser import Runnable
from loraport.sampling.rollout import Stage

T = TypeVar("T")
STEP, COARSE_STEP = 0.1, 0.25
"""h of the central differences: a wider one where passes are noisy (measured: docs/calibration.md)."""
SOURCE_PARTS = ("responses", "groups", "aim", "alone")


@dataclass
class Work:
    """The two models, one at a time, and what is measured on them."""

    source: Runnable
    target: Runnable
    inputs: Inputs
    settings: Settings
    notes: Notes
    tell: Teller
    passes: dict[str, int] = field(default_factory=lambda: {"source": 0, "target": 0})
    seconds: dict[str, float] = field(default_factory=lambda: {"source": 0.0, "target": 0.0})

    def at(self, role: str, work: Callable[[Stage], T]) -> T:
        """Open a model, work on it, and let go of it."""
        clock = time.perf_counter()
        stage = Stage.of(self.source if role == "source" else self.target, self.settings.batch)
        try:
            with stage.threads():
                return work(stage)
        finally:
            self.passes[role] += stage.passes
            self.seconds[role] += time.perf_counter() - clock

    def states(self) -> Float[Tensor, "t n ..."]:
        """The states that the target meets with the LoRA as it is, from the probes' noise."""
        self.tell.stage(f"the states that {self.target.name} meets")
        kept = self.notes.find("states")
        return self.at("target", self._states) if kept is None else kept

    def _states(self, stage: Stage) -> Float[Tensor, "t n ..."]:
        with Attached(stage.denoiser, self.inputs.directions) as attached:
            attached.put_on(self.inputs.directions.start())
            return self.notes.once("states", lambda: visited(stage, self.inputs.probe_noise, self.inputs.probes))

    def answers(self, states: Float[Tensor, "t n ..."]) -> Answers:
        """What the source says at these states, and its clips from held-out noise."""
        self.tell.stage(f"what the LoRA does in {self.source.name}")
        kept = [self.notes.find(name) for name in SOURCE_PARTS]
        if any(part is None for part in kept):
            return self.at("source", lambda stage: self._answers(stage, states))
        return Answers(*kept)

    def _answers(self, stage: Stage, states: Float[Tensor, "t n ..."]) -> Answers:
        inputs, settings, once = self.inputs, self.settings, self.notes.once
        times = self.target.schedule.times[:-1]
        direct = inputs.directions.start()
        with Attached(stage.denoiser, inputs.directions) as attached:
            responses = once(
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
                    self.tell.tick(k + 1, len(by_group.items))
                return torch.stack(made) if made else torch.zeros(1)

            groups = once("groups", measure)
        self.tell.stage("clips of the source with the LoRA, from held-out noise")
        aim = once("aim", lambda: rolled(stage, inputs.update, inputs.heldout_noise, inputs.heldout))
        part = max(2, settings.heldout // 3)
        alone = once("alone", lambda: stage.roll_out(inputs.heldout_noise[:part], inputs.heldout.take(0, part)))
        return Answers(responses, groups, aim, alone)

    def choose(self, states: Float[Tensor, "t n ..."], answers: Answers) -> tuple[Choice, dict[str, float]]:
        """Fit, and take what comes nearest to source + LoRA; with the coefficients of what was taken."""
        inputs, settings = self.inputs, self.settings
        self.tell.stage(f"the target's response to {len(inputs.directions.items)} coefficients")
        first = self._moments(inputs.directions.start(), states, answers)
        self.tell.stage("choosing on held-out noise")
        gap = self._gap(answers)
        judge = Judge(gap, lambda some, rows: self._look(some, rows, answers.aim, gap), settings.heldout)
        plain = judge.score(plain_candidates(inputs, settings))
        strengths = [each for each in plain if each.candidate.kind == "direct"]
        best = min(strengths, key=lambda each: each.rank).candidate.settings["strength"]
        anchors = sorted({1.0, float(best)})

        def fit(moments: Moments, earlier: tuple[Moments, Tensor] | None = None) -> list[tuple[Candidate, Tensor]]:
            def work(stage: Stage | None) -> list[tuple[Candidate, Tensor]]:
                return fits(stage, inputs, states, answers, moments, settings, anchors, earlier=earlier)

            return self.at("target", work) if settings.solver == "gradient" else work(None)

        fitted = fit(first)
        choice = judge.choose(plain, [candidate for candidate, _ in fitted])
        for _ in range(settings.rounds - 1):
            nearest = next(each.candidate for each in choice.ranking if not each.candidate.plain)
            around = next(c for candidate, c in fitted if candidate is nearest)
            fitted = [(nearest, around), *fit(self._moments(around, states, answers), (first, around))]
            choice = judge.choose(plain, [candidate for candidate, _ in fitted])
        return choice, self._coefficients(choice.chosen.candidate, fitted)

    def _moments(self, around: Float[Tensor, " k"], states: Tensor, answers: Answers) -> Moments:
        name = f"moments-{digest_tensor(around)[:8]}"
        kept = self.notes.find(name)
        if kept is not None:
            return Moments(kept)

        def work(stage: Stage) -> Moments:
            with Attached(stage.denoiser, self.inputs.directions) as attached:
                made = target_moments(
                    stage,
                    attached,
                    self.inputs.directions,
                    states,
                    answers.responses,
                    self.inputs.probes,
                    step=self.settings.difference or (COARSE_STEP if attached.coarse else STEP),
                    around=around,
                    tick=self.tell.tick,
                )
            return Moments(self.notes.once(name, lambda: made.gram))

        return self.at("target", work)

    def _gap(self, answers: Answers) -> Gap:
        """The measure of the choice; a source that sees nothing of the LoRA in its clips cannot be the critic."""
        if self.settings.measure == "latents":
            return Latents()
        aim, alone = self._read([answers.aim, answers.alone])
        gap = Reading.of(aim, alone)
        if gap is None:
            self.tell.warn(
                "the source does not tell its own clips with the LoRA from those without, within the noise of "
                f"{alone.shape[1]} clips; the choice goes by the distance of latents, which favours weak effects"
            )
        return gap or Latents()

    def _look(self, candidates: Sequence[Candidate], rows: slice, aim: Tensor, gap: Gap) -> list[Seen]:
        """Sample candidates on some of the held-out noises, and have the clips read."""
        noise, some = self.inputs.heldout_noise[rows], self.inputs.heldout.take(rows.start, rows.stop - rows.start)

        def sample(stage: Stage) -> list[Tensor]:
            made = []
            for number, each in enumerate(candidates, start=1):
                made.append(rolled(stage, each.update, noise, some, seed=rows.start))
                self.tell.tick(number, 2 * len(candidates))
            return made

        clips = self.at("target", sample)
        latents = [(each - aim[rows]).flatten(1).square().mean(1) for each in clips]
        columns = [each[None] for each in latents] if isinstance(gap, Latents) else self._read(clips, rows.start)
        return [Seen(*pair) for pair in zip(columns, latents, strict=True)]

    def _read(self, clips: Sequence[Tensor], start: int = 0) -> list[Float[Tensor, "q n"]]:
        """What the source reads in clips that were made from the held-out noises from `start` on."""
        whole = Directions((Direction("all", "gain", 1.0, self.inputs.update),))

        def work(stage: Stage) -> list[Tensor]:
            made = []
            with Attached(stage.denoiser, whole) as attached:
                for number, each in enumerate(clips, start=1):
                    rows = slice(start, start + len(each))
                    made.append(read(stage, attached, whole.start(), each, rows, self.inputs.heldout))
                    self.tell.tick(len(clips) + number, 2 * len(clips))
            return made

        return self.at("source", work)

    def _coefficients(self, taken: Candidate, fitted: Sequence[tuple[Candidate, Tensor]]) -> dict[str, float]:
        items = self.inputs.directions.items
        for candidate, values in fitted:
            if candidate is taken:
                return dict(zip(self.inputs.directions.labels, values.tolist(), strict=True))
        if taken.kind != "direct":
            return {}
        return dict.fromkeys((item.label for item in items if item.kind == "gain"), float(taken.settings["strength"]))
