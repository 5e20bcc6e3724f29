"""Two checks of calibration on a bundled pair: forward passes against gradients, and differences in 16 bits.

    python benchmarks/calibration.py

Solvers: how much of what 40 gradient steps gain in the objective the closed form gains, in one round and in two (32
gains). Differences: the largest error of any of eight gains, fitted with several sizes h of the central differences in
float32 and in bfloat16, against float32 with h = 0.1.
"""

import argparse
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport import zoo
from loraport.adapters.parse import open_adapter
from loraport.calibration.attach import Attached
from loraport.calibration.directions import Directions, gains
from loraport.calibration.gradient import objective, solve_by_gradient
from loraport.calibration.moments import Moments
from loraport.calibration.probes import source_responses, target_moments, visited
from loraport.core.lowrank import LowRank
from loraport.sampling.prompts import tiny_prompts
from loraport.sampling.rollout import Conditions, Stage, draw_noise
from loraport.sampling.wan import open_runnable

SIZES = (0.025, 0.05, 0.1, 0.25, 0.5)
GUIDANCE, PENALTY = 1.5, 0.3
BATCH = 16


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lora", default="outline")
    parser.add_argument("--target", default="step-strong")
    parser.add_argument("--probes", type=int, default=8)
    options = parser.parse_args()
    update = {name: layer.load() for name, layer in open_adapter(zoo.path(options.lora)).layers.items()}
    source, target = open_runnable("zoo:source"), open_runnable(f"zoo:{options.target}")
    conditions = tiny_prompts().take(0, options.probes)
    noise = draw_noise(target.latents, range(options.probes))
    near, far = Stage.of(target, BATCH), Stage.of(source, BATCH)
    with near.threads():
        solvers(Probed.of(update, "type-depth", near, far, conditions, noise))
        differences(Probed.of(update, "type", near, far, conditions, noise))


@dataclass(frozen=True)
class Probed:
    """A pair up to what the fit starts from."""

    stage: Stage
    directions: Directions
    states: Tensor
    responses: Tensor
    conditions: Conditions

    @classmethod
    def of(
        cls, update: dict[str, LowRank], groups: str, near: Stage, far: Stage, conditions: Conditions, noise: Tensor
    ) -> "Probed":
        """States from the target with the LoRA as it is, and what the source does there."""
        directions = Directions(tuple(gains(update, groups)))
        with Attached(near.denoiser, directions) as attached:
            attached.put_on(directions.start())
            states = visited(near, noise, conditions)
        with Attached(far.denoiser, directions) as attached:
            times = near.schedule.times[:-1]
            responses = source_responses(far, attached, directions.start(), states, times, conditions)
        return cls(near, directions, states, responses, conditions)

    def moments(self, step: float, around: Tensor | None = None) -> Moments:
        """The Jacobian, as moments."""
        with Attached(self.stage.denoiser, self.directions) as attached:
            return target_moments(
                self.stage, attached, self.directions, self.states, self.responses, self.conditions, step=step,
                around=around,
            )  # fmt: skip

    def fitted(self, step: float) -> Float[Tensor, " k"]:
        """The gains of one round."""
        free = list(range(len(self.directions.items)))
        return self.moments(step).ridge(self.directions.start(), guidance=GUIDANCE, penalty=PENALTY, free=free)


def solvers(pair: Probed) -> None:
    """Print the share of the gradient solver's gain that one round and two rounds of the closed form reach."""
    start, free = pair.directions.start(), list(range(len(pair.directions.items)))
    first = pair.moments(0.1)
    scale = first.scale(free)
    prompted, empty = pair.responses
    wanted = empty + GUIDANCE * (prompted - empty)

    def cost(c: Float[Tensor, " k"]) -> float:
        with torch.no_grad(), Attached(pair.stage.denoiser, pair.directions) as attached:
            loss = objective(pair.stage, attached, c, pair.states, wanted, pair.conditions)
        return float(loss + PENALTY * scale * (c - start).square().sum())

    one = first.ridge(start, guidance=GUIDANCE, penalty=PENALTY, free=free)
    two = pair.moments(0.1, one).ridge(start, guidance=GUIDANCE, penalty=PENALTY, free=free, around=one, scale=scale)
    best = solve_by_gradient(
        pair.stage, pair.directions, pair.states, pair.responses, pair.conditions,
        guidance=GUIDANCE, strength=PENALTY * scale,
    )  # fmt: skip
    whole = cost(start) - cost(best)
    print(f"objective: {cost(start):.5f} as it is, {cost(best):.5f} after 40 gradient steps")
    for name, c in (("one round", one), ("two rounds", two)):
        print(f"{name} of forward passes: {cost(c):.5f}, {100 * (cost(start) - cost(c)) / whole:.0f} % of that gain")


def differences(pair: Probed) -> None:
    """Print the largest error of any gain; leaves the target in bfloat16."""
    exact = pair.fitted(0.1)
    named = [f"{label} {value:.2f}" for label, value in zip(pair.directions.labels, exact.tolist(), strict=True)]
    print(f"gains: {', '.join(named)}")
    print("| h | float32 | bfloat16 |\n| --- | --- | --- |")
    single = {h: float((pair.fitted(h) - exact).abs().max()) for h in SIZES}
    pair.stage.denoiser.network.to(torch.bfloat16)
    half = {h: float((pair.fitted(h) - exact).abs().max()) for h in SIZES}
    for h in SIZES:
        print(f"| {h:g} | {single[h]:.3f} | {half[h]:.3f} |")


if __name__ == "__main__":
    main()
