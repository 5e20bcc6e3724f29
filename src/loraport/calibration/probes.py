"""What is measured where: states that the target meets, and what the LoRA does there in each model."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.calibration.attach import Attached
from loraport.calibration.directions import Directions
from loraport.calibration.moments import EMPTY, NOW, PROMPTED, Gathering, Moments
from loraport.sampling.rollout import Conditions, Stage

Tick = Callable[[int, int], None]


def visited(stage: Stage, noise: Float[Tensor, "n ..."], conditions: Conditions) -> Float[Tensor, "t n ..."]:
    """The states that a model meets on its way from this noise, at its own time steps."""
    states: list[Tensor] = []
    stage.roll_out(noise, conditions, visits=states)
    return torch.stack(states)


def source_responses(
    stage: Stage,
    attached: Attached,
    coefficients: Float[Tensor, " k"],
    states: Float[Tensor, "t n ..."],
    times: tuple[float, ...],
    conditions: Conditions,
) -> Float[Tensor, "two t n ..."]:
    """What an update changes in the source's velocity at the target's states: with the prompt, and with the empty one.

    Guidance w wants `e_w = empty + w (prompted - empty)` of these two; four passes a state, whatever w will be.
    """
    empty = Conditions(conditions.empty.expand_as(conditions.prompts), conditions.empty)
    made = []
    for each in (conditions, empty):
        attached.take_off()
        before = [_plain(stage, x, t, each) for x, t in zip(states, times, strict=True)]
        attached.put_on(coefficients)
        after = [_plain(stage, x, t, each) for x, t in zip(states, times, strict=True)]
        made.append(torch.stack(after) - torch.stack(before))
    attached.take_off()
    return torch.stack(made)


def target_moments(
    stage: Stage,
    attached: Attached,
    directions: Directions,
    states: Float[Tensor, "t n ..."],
    responses: Float[Tensor, "two t n ..."],
    conditions: Conditions,
    *,
    step: float = 0.1,
    around: Float[Tensor, " k"] | None = None,
    tick: Tick = lambda done, total: None,
) -> Moments:
    """The Jacobian of the target's velocity in the coefficients, by central differences, as moments.

    `∂v/∂c_k ≈ (v(c + h e_k) - v(c - h e_k)) / 2h` for every probe and time step; 2 K + 2 passes each. Nothing is kept
    but the columns of one group of probes at a time.

    Args:
        step: h. Weights of 16 bits need a larger one than float32, since their passes are noisy.
        around: c, direct reuse by default.
        tick: told after each coefficient.
    """
    times = stage.schedule.times[:-1]
    c = directions.start() if around is None else around
    count = len(directions.items)
    gathering = Gathering.empty(len(times), count + 3)
    parts = range(0, states.shape[1], 4 * stage.batch)
    total = len(parts) * count
    for number, first in enumerate(parts):
        rows = slice(first, first + 4 * stage.batch)
        some = Conditions(conditions.prompts[rows], conditions.empty)
        here = states[:, rows]
        columns = torch.empty(len(times), count + 3, here[0].numel())

        def run(update: Float[Tensor, " k"] | None, here: Tensor = here, some: Conditions = some) -> Tensor:
            attached.take_off() if update is None else attached.put_on(update)
            return torch.stack([stage.own(x, t, some) for x, t in zip(here, times, strict=True)]).flatten(1).cpu()

        for k in range(count):
            nudge = torch.zeros_like(c)
            nudge[k] = step
            columns[:, k] = (run(c + nudge) - run(c - nudge)) / (2 * step)
            tick(number * count + k + 1, total)
        columns[:, NOW] = run(c) - run(None)
        columns[:, PROMPTED], columns[:, EMPTY] = (part[:, rows].flatten(1) for part in responses)
        for at in range(len(times)):
            gathering.add(at, columns[at])
    attached.take_off()
    return gathering.moments()


def target_response(
    stage: Stage,
    attached: Attached,
    coefficients: Float[Tensor, " k"],
    states: Float[Tensor, "t n ..."],
    conditions: Conditions,
) -> Float[Tensor, "t n ..."]:
    """What an update changes in the target's velocity, with the target's own guidance."""
    times = stage.schedule.times[:-1]
    attached.take_off()
    before = [stage.own(x, t, conditions) for x, t in zip(states, times, strict=True)]
    attached.put_on(coefficients)
    after = [stage.own(x, t, conditions) for x, t in zip(states, times, strict=True)]
    attached.take_off()
    return torch.stack(after) - torch.stack(before)


def _plain(stage: Stage, x: Tensor, time: float, conditions: Conditions) -> Tensor:
    return stage.map(lambda a, p: stage.velocity(a, time, p), x, conditions.prompts)
