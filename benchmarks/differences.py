"""How wide a difference must be: gains fitted from passes in 16 bits against those from float32.

    python benchmarks/differences.py

On a bundled pair, eight gains (one a type of layer) are fitted with several sizes h of the central differences, with
the target in float32 and in bfloat16. The table shows the largest error of any gain against float32 with h = 0.1.
"""

import argparse

import torch
from jaxtyping import Float
from torch import Tensor

from loraport import zoo
from loraport.calibration.attach import Attached
from loraport.calibration.directions import Directions, gains
from loraport.calibration.probes import source_responses, target_moments, visited
from loraport.calibration.prompts import tiny_prompts
from loraport.calibration.rollout import Stage, draw_noise
from loraport.calibration.wan import open_runnable
from loraport.formats.adapter import open_adapter

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
    directions = Directions(tuple(gains(update, "type")))
    source, target = open_runnable("zoo:source"), open_runnable(f"zoo:{options.target}")
    conditions = tiny_prompts().take(0, options.probes)
    noise = draw_noise(target.latents, range(options.probes))
    near, far = Stage.of(target, BATCH), Stage.of(source, BATCH)
    with near.threads():
        with Attached(near.denoiser, directions) as attached:
            attached.put_on(directions.start())
            states = visited(near, noise, conditions)
        with Attached(far.denoiser, directions) as attached:
            times = target.schedule.times[:-1]
            responses = source_responses(far, attached, directions.start(), states, times, conditions)

        def fitted(step: float) -> Float[Tensor, " k"]:
            with Attached(near.denoiser, directions) as attached:
                moments = target_moments(near, attached, directions, states, responses, conditions, step=step)
            free = list(range(len(directions.items)))
            return moments.ridge(directions.start(), guidance=GUIDANCE, penalty=PENALTY, free=free)

        exact = fitted(0.1)
        print(
            f"gains: {', '.join(f'{label} {value:.2f}' for label, value in zip(directions.labels, exact, strict=True))}"
        )
        print("| h | float32 | bfloat16 |\n| --- | --- | --- |")
        single = {h: float((fitted(h) - exact).abs().max()) for h in SIZES}
        near.denoiser.network.to(torch.bfloat16)
        half = {h: float((fitted(h) - exact).abs().max()) for h in SIZES}
        for h in SIZES:
            print(f"| {h:g} | {single[h]:.3f} | {half[h]:.3f} |")


if __name__ == "__main__":
    main()
