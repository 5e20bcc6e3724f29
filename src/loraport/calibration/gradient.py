"""The second solver: the same objective by gradients, for models and probes that fit in memory with activations.

Forward differences linearise the target around direct reuse; gradients do not. The two agree where the linear model
is good, which is what this solver is for: it checks the first.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.calibration.attach import Attached
from loraport.calibration.directions import Directions
from loraport.sampling.rollout import Conditions, Stage


def objective(
    stage: Stage,
    attached: Attached,
    c: Float[Tensor, " k"],
    states: Float[Tensor, "t n ..."],
    wanted: Float[Tensor, "t n ..."],
    conditions: Conditions,
) -> Float[Tensor, ""]:
    """`Σ_t mean (v(c) - v(0) - e_w)²` on one batch of probes; differentiable in c."""
    total = torch.zeros((), dtype=torch.float64)
    empty = conditions.empty.expand_as(conditions.prompts)
    for x, time, e in zip(states, stage.schedule.times[:-1], wanted, strict=True):
        attached.take_off()
        with torch.no_grad():
            before = stage.guided(x, time, conditions.prompts, empty, stage.schedule.guidance)
        attached.put_on(c)
        after = stage.guided(x, time, conditions.prompts, empty, stage.schedule.guidance)
        total = total + (after - before - e).double().square().mean()
    attached.take_off()
    return total


def solve_by_gradient(
    stage: Stage,
    directions: Directions,
    states: Float[Tensor, "t n ..."],
    responses: Float[Tensor, "two t n ..."],
    conditions: Conditions,
    *,
    guidance: float,
    strength: float,
    anchor: Float[Tensor, " k"] | None = None,
    steps: int = 40,
    rate: float = 0.1,
) -> Float[Tensor, " k"]:
    """Minimise `objective + strength |c - anchor|²` by Adam, all probes in every step.

    Args:
        strength: absolute; the ridge's is `ρ mean diag JᵀJ`.
        anchor: what the penalty holds to, and where it starts; direct reuse by default.
        steps, rate: of Adam; the rate falls to a tenth along a cosine.
    """
    start = directions.start() if anchor is None else anchor
    c = start.clone().requires_grad_(True)
    prompted, empty = responses
    wanted = empty + guidance * (prompted - empty)
    optimiser = torch.optim.Adam([c], lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=rate / 10)
    with stage.threads(), Attached(stage.denoiser, directions, beside=True) as attached:
        for _ in range(steps):
            optimiser.zero_grad()
            for first in range(0, states.shape[1], stage.batch):  # gradients add up over batches
                rows = slice(first, first + stage.batch)
                some = Conditions(conditions.prompts[rows], conditions.empty)
                share = len(some.prompts) / states.shape[1]
                loss = share * objective(stage, attached, c, states[:, rows], wanted[:, rows], some)
                loss.backward(inputs=[c])  # the model's own weights get no gradient
            (strength * (c - start).square().sum()).backward(inputs=[c])
            optimiser.step()
            falling.step()
    return c.detach()
