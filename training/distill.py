"""Distil the source by regression: few steps without guidance, from its stored trajectories.

A step of the student has to cover a part of the teacher's trajectory, so it regresses on the average velocity of that
part, ``(x_start - x_end) / (t_start - t_end)``. ``step`` is a target of its own, ``causal-init`` (under frame-causal
self-attention) where `match_distribution.py self-forcing` begins.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from common import (
    STEPS,
    Run,
    Schedule,
    load_model,
    sampling_card,
    save_model,
    set_causal,
    shifted,
    velocity,
    write_card,
)
from safetensors.torch import load_file
from torch import Tensor

from loraport.zoo import world


@dataclass(frozen=True)
class Kind:
    summary: str
    steps: int
    rate: float
    seed: int
    causal: bool = False


KINDS = {
    "step": Kind("distilled to few steps without guidance, by regression, gently", steps=800, rate=1.5e-4, seed=21),
    "causal-init": Kind("the same under frame-causal attention", steps=500, rate=4e-4, seed=23, causal=True),
}
CORNERS = shifted(torch.linspace(1, 0, STEPS + 1))


def load_trajectories(folder: Path) -> tuple[Tensor, Tensor]:
    """Prompts [n, 4] and states [n, STEPS + 1, 3, frames, size, size], in half precision."""
    parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return torch.cat([part["prompts"] for part in parts]), torch.cat([part["states"] for part in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="other than the kind's own")
    parser.add_argument("--rate", type=float, help="other than the kind's own")
    parser.add_argument("--seed", type=int, help="other than the kind's own")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kind = KINDS[options.kind]
    steps, rate, seed = options.steps or kind.steps, options.rate or kind.rate, options.seed or kind.seed
    prompts, states = load_trajectories(options.out / "trajectories")
    models = options.out / "final" / "models"
    model = load_model(models / "source")
    if kind.causal:
        set_causal(model)
    parameters = dict(model.named_parameters())
    run = Run(options.kind, options.out, parameters, Schedule(steps, rate, decay=steps // 2), seed)

    def loss(generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(prompts), (options.batch,), generator=generator)
        part = torch.randint(STEPS, (options.batch,), generator=generator)
        start, end = states[pick, part].float(), states[pick, part + 1].float()
        now, then = CORNERS[part], CORNERS[part + 1]
        wanted = (start - end) / (now - then).view(-1, 1, 1, 1, 1)
        return (velocity(model, start, now, world.encode(prompts[pick])) - wanted).square().mean()

    trained = run.train(loss)
    folder = options.out / "causal-init" if kind.causal else models / options.kind
    save_model(model, trained, folder)
    sampling = sampling_card(STEPS, 1.0, "frame-causal" if kind.causal else "full")
    write_card(folder / "model.json", summary=kind.summary, parent="source", sampling=sampling)


if __name__ == "__main__":
    main()
