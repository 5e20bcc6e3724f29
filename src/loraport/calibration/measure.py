"""The diagnosis, measured: the source's answers against what the target shows with the LoRA as it is and as fitted."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.calibration import diagnosis as diagnoses
from loraport.calibration.attach import Attached
from loraport.calibration.candidates import Candidate, rolled
from loraport.calibration.diagnosis import Diagnosis, Shown, Table, under_guidance
from loraport.calibration.directions import Direction, Directions, grouped
from loraport.calibration.inputs import Inputs
from loraport.calibration.probes import target_response
from loraport.calibration.settings import Settings
from loraport.core.lowrank import LowRank
from loraport.sampling.rollout import Stage


@dataclass(frozen=True, eq=False)
class Answers:
    """What the source says: responses at the target's states, and its clips from the held-out noise."""

    responses: Float[Tensor, "two t n ..."]
    groups: Float[Tensor, "..."]
    aim: Float[Tensor, "m ..."]
    alone: Float[Tensor, "few ..."]


def diagnose(
    stage: Stage,
    inputs: Inputs,
    states: Float[Tensor, "t n ..."],
    answers: Answers,
    taken: Candidate,
    guidance: float,
    settings: Settings,
) -> Diagnosis:
    times = stage.schedule.times[:-1]
    pair = {"before": inputs.update, "after": taken.update}
    wanted = under_guidance(answers.responses, guidance)
    steps, whole, groups, clips = {}, {}, {}, {}
    part = len(answers.alone)
    noise, some = inputs.heldout_noise[:part], inputs.heldout.take(0, part)
    alone = stage.roll_out(noise, some)
    for when, update in pair.items():
        one = Directions((Direction("all", "gain", 1.0, update),))
        with Attached(stage.denoiser, one) as attached:
            response = target_response(stage, attached, one.start(), states, inputs.probes)
        steps[when], together = diagnoses.by_step(response, wanted, times)
        whole[when] = (together,)
        shift = rolled(stage, update, noise, some) - alone
        clips[when] = (Shown.of("finished clips", shift, answers.aim[:part] - answers.alone),)
        groups[when] = _group_rows(stage, inputs, states, answers.groups, update, guidance, settings)
    return Diagnosis(guidance, Table(**whole), Table(**steps), Table(**groups), Table(**clips))


def _group_rows(
    stage: Stage,
    inputs: Inputs,
    states: Float[Tensor, "t n ..."],
    wanted: Float[Tensor, "..."],
    update: dict[str, LowRank],
    guidance: float,
    settings: Settings,
) -> tuple[Shown, ...]:
    if not settings.group_probes:
        return ()
    few = inputs.probes.take(0, min(settings.group_probes, settings.probes))
    here = states[:, : len(few.prompts)]
    by_group = Directions(tuple(by_group_of(update, settings)))
    rows = []
    with Attached(stage.denoiser, by_group) as attached:
        for k, item in enumerate(by_group.items):
            response = target_response(stage, attached, only(by_group, k), here, few)
            rows.append(Shown.of(item.label, response, under_guidance(wanted[k], guidance)))
    return tuple(rows)


def by_group_of(update: dict[str, LowRank], settings: Settings) -> list[Direction]:
    by = "type-depth" if settings.groups in ("component", "layer", "global") else settings.groups
    named = grouped(list(update), by)
    return [Direction(label, "gain", 1.0, {n: update[n] for n in names}) for label, names in named.items()]


def only(directions: Directions, k: int) -> Float[Tensor, " k"]:
    made = torch.zeros(len(directions.items), dtype=torch.float64)
    made[k] = 1.0
    return made
