"""Distil the source by regression: few steps without guidance, from its stored trajectories.

A step of the student has to cover a part of the teacher's trajectory, so it regresses on the average velocity of that
part, ``(x_start - x_end) / (t_start - t_end)``. ``step`` is a target of its own, ``causal-init`` (under frame-causal
self-attention) where `match_distribution.py self-forcing` begins.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from common import (
    STEPS,
    Run,
    Schedule,
    begin,
    load_model,
    model_card,
    plan_of,
    save_model,
    set_causal,
    shifted,
    spread,
    training_arguments,
    velocity,
    write_card,
)
from safetensors.torch import load_file
from torch import Tensor

from loraport.zoo import world


@dataclass(frozen=True)
class Kind:
    summary: str
    seed: int
    causal: bool = False


KINDS = {
    "step": Kind("distilled to few steps without guidance, by regression, gently", seed=21),
    "causal-init": Kind("the same under frame-causal attention", seed=23, causal=True),
}


def load_trajectories(folder: Path) -> tuple[Tensor, Tensor]:
    """Prompts [n, 4] and states [n, STEPS + 1, 3, frames, size, size], in half precision."""
    parts = [load_file(path, str(torch.get_default_device())) for path in sorted(folder.glob("*.safetensors"))]
    return torch.cat([part["prompts"] for part in parts]), torch.cat([part["states"] for part in parts])


def main() -> None:
    parser = training_arguments(__doc__)
    parser.add_argument("kind", choices=KINDS)
    options = begin(parser)
    kind, size, plan = KINDS[options.kind], options.size, plan_of(options.kind, options)
    corners = shifted(torch.linspace(1, 0, STEPS + 1))
    prompts, states = load_trajectories(options.out / "trajectories")
    models = options.out / "final" / "models"
    model = load_model(models / plan.start, size)
    if kind.causal:
        set_causal(model, size)
    parameters = dict(model.named_parameters())
    schedule = Schedule(plan.steps, plan.rate, decay=plan.steps // 2)
    run = Run(options.kind, options.out, parameters, schedule, options.seed or kind.seed)

    def loss(generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(prompts), (plan.batch,), generator=generator)
        part = torch.randint(STEPS, (plan.batch,), generator=generator)
        start, end = states[pick, part].float(), states[pick, part + 1].float()
        now, then = corners[part], corners[part + 1]
        wanted = (start - end) / spread(now - then)
        return (velocity(model, start, now, world.encode(prompts[pick])) - wanted).square().mean()

    trained = run.train(loss)
    folder = options.out / "causal-init" if kind.causal else models / options.kind
    save_model(model, trained, folder, size)
    card = model_card(size, STEPS, 1.0, "frame-causal" if kind.causal else "full")
    write_card(folder / "model.json", summary=kind.summary, parent="source", **card)


if __name__ == "__main__":
    main()
