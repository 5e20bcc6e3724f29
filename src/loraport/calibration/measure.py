"""What the two models say, each in one turn: the target makes the clips of every candidate, the source judges them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.calibration.candidates import Candidate
from loraport.calibration.gap import denoising_errors
from loraport.calibration.progress import Advance
from loraport.calibration.session import Session, digest_of
from loraport.containers.tensors import digest_tensor
from loraport.sampling.attach import Update, attached
from loraport.sampling.denoiser import Conditions
from loraport.sampling.runner import ModelRunner


@dataclass(frozen=True, eq=False)
class Samples:
    """The prompts and noises that everything is sampled from.

    Attributes:
        conditions: one row a sample.
        noise: one a sample.
    """

    conditions: Conditions
    noise: Float[Tensor, "n ..."]

    def first(self, count: int) -> "Samples":
        """The first few."""
        return Samples(self.conditions.take(0, count), self.noise[:count])

    @property
    def few(self) -> "Samples":
        """A third of them, for what is only compared with: clips without the LoRA."""
        return self.first(max(2, len(self.noise) // 3))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What they are, for the keys of the cache."""
        tensors = (self.conditions.prompts, self.conditions.empty, self.noise)
        return {"samples": [digest_tensor(tensor.contiguous()) for tensor in tensors]}


@dataclass(frozen=True, eq=False)
class TargetAnswers:
    """What the target does.

    Attributes:
        clips: of each candidate, in order, from the samples.
        alone: its clips without the LoRA, of a few samples.
        states: that it meets with the LoRA as it is, at its own time steps.
        responses: what each candidate changes in its velocity there.
    """

    clips: list[Float[Tensor, "n ..."]]
    alone: Float[Tensor, "few ..."]
    states: Float[Tensor, "t d ..."]
    responses: list[Float[Tensor, "t d ..."]]


@dataclass(frozen=True, eq=False)
class SourceAnswers:
    """What the source does, and what it says of the candidates' clips.

    Attributes:
        aim: its clips with the LoRA (B).
        alone: its clips without it (A), of a few samples.
        response: what the LoRA changes in its velocity at the target's states.
        own_errors: see `gap.denoising_errors`, of B and of A; None if not asked for.
        errors: the same of each candidate's clips.
    """

    aim: Float[Tensor, "n ..."]
    alone: Float[Tensor, "few ..."]
    response: Float[Tensor, "t d ..."]
    own_errors: tuple[Float[Tensor, "q n"], Float[Tensor, "q few"]] | None
    errors: list[Float[Tensor, "q n"]]


def ask_target(
    target: Session, candidates: Sequence[Candidate], samples: Samples, *, diagnosis: int, tick: Advance
) -> TargetAnswers:
    """Sample every candidate on the target, and note how it responds at the states that it meets.

    Args:
        target: the model's turn.
        candidates: the first one is the LoRA as it is.
        samples: prompts and noises.
        diagnosis: how many of the samples the responses are measured on.
        tick: told after each candidate.
    """
    times = target.model.schedule.times[:-1]
    alone = _clips(target, None, samples.few)
    some = samples.first(diagnosis)
    states = samples.noise.new_empty(len(times), 0, *samples.noise.shape[1:])
    if diagnosis:
        states = _states(target, candidates[0].update, some)
    clips, responses = [], []
    for number, each in enumerate(candidates, start=1):
        clips.append(_clips(target, each.update, samples))
        responses.append(_response(target, each.update, states, times, some))
        tick(number, len(candidates))
    return TargetAnswers(clips, alone, states, responses)


def ask_source(
    source: Session,
    lora: Update,
    answers: TargetAnswers,
    times: Sequence[float],
    samples: Samples,
    *,
    judge: bool,
    tick: Advance,
) -> SourceAnswers:
    """Sample the source with the LoRA and without, and let it judge the candidates' clips.

    Args:
        source: the model's turn.
        lora: as it is.
        answers: of the target.
        times: of the target's states.
        samples: prompts and noises.
        judge: whether the errors are wanted.
        tick: told after each candidate.
    """
    some = samples.first(answers.states.shape[1])
    aim = _clips(source, lora, samples)
    alone = _clips(source, None, samples.few)
    response = _response(source, lora, answers.states, times, some)

    def errors(clips: Tensor, number: int) -> Tensor:
        tick(number, len(answers.clips) + 2)
        facts = samples.facts | {"clips": digest_tensor(clips.contiguous()), "lora": digest_of(lora)}
        return source.ask("errors", facts, lambda run: denoising_errors(run, lora, clips, samples.conditions))

    clips = [aim, alone, *answers.clips] if judge else []
    made = [errors(each, number) for number, each in enumerate(clips, start=1)]
    return SourceAnswers(aim, alone, response, (made[0], made[1]) if made else None, made[2:])


def _clips(model: Session, update: Update | None, samples: Samples) -> Float[Tensor, "n ..."]:
    """Clips of a model with an update or without."""

    def sample(run: ModelRunner) -> Tensor:
        with attached(run.denoiser, update or {}):
            return run.sample(samples.noise, samples.conditions)

    return model.ask("clips", samples.facts | _named(update), sample)


def _states(model: Session, update: Update, samples: Samples) -> Float[Tensor, "t d ..."]:
    """The states that a model with an update meets on its way from the noise, at its own time steps."""

    def visit(run: ModelRunner) -> Tensor:
        visits: list[Tensor] = []
        with attached(run.denoiser, update):
            run.sample(samples.noise, samples.conditions, visits=visits)
        return torch.stack(visits)

    return model.ask("states", samples.facts | _named(update), visit)


def _response(
    model: Session, update: Update, states: Float[Tensor, "t d ..."], times: Sequence[float], samples: Samples
) -> Float[Tensor, "t d ..."]:
    """What an update changes in a model's velocity at given states, as the model is used, with its own guidance."""
    if states.shape[1] == 0:
        return states

    def velocities(update: Update | None) -> Tensor:
        def ask(run: ModelRunner) -> Tensor:
            with attached(run.denoiser, update or {}):
                return run.velocities(states, times, samples.conditions)

        facts = {"states": digest_tensor(states.contiguous()), "times": list(times)}
        return model.ask("velocities", samples.facts | facts | _named(update), ask)

    return velocities(update) - velocities(None)


def _named(update: Update | None) -> dict[str, Any]:
    return {"update": None if update is None else digest_of(update)}
