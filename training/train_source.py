"""Train the source: flow matching on captioned clips of the seen attribute combinations, 10 % prompt dropout."""

import argparse
from pathlib import Path

import torch
from common import (
    Run,
    Schedule,
    draw,
    encode,
    flow_matching_loss,
    load_model,
    new_model,
    prompt_pool,
    sampling_card,
    save_model,
    write_card,
)

from loraport.zoo import world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--decay", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--begin", type=Path, help="a model to go on from, such as one of another world")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.begin).requires_grad_(True) if options.begin else new_model(options.seed)
    schedule = Schedule(options.steps, options.rate, warmup=200, decay=options.decay)
    run = Run("source", options.out, dict(model.named_parameters()), schedule, options.seed, average_decay=0.999)

    pool = prompt_pool(held_out=False)

    def loss(generator: torch.Generator) -> torch.Tensor:
        prompts = draw(pool, options.batch, generator)
        drop = torch.rand(options.batch, generator=generator) < 0.1
        return flow_matching_loss(model, world.render(prompts, generator=generator), encode(prompts, drop), generator)

    folder = options.out / "final" / "models" / "source"
    save_model(model, run.train(loss), folder)
    summary = "the base model: 20 steps with guidance"
    write_card(folder / "model.json", summary=summary, parent=None, sampling=sampling_card(20, 2.0))


if __name__ == "__main__":
    main()
